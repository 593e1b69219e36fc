"""What one training image is supervised with, and the base of the classes that make it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from rose_d2.data.annotations import AnnotatedRegions
from rose_d2.layers.masks import mask_centre
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import counting_response
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.segments import NormalisedBox


@dataclass(frozen=True)
class Targets:
    """What one training image is supervised with, in the language model's view (I, I).

    Attributes:
        instances: gt_masks, gt_classes, gt_category_names, gt_is_stuff of N targets, and, so that
            no step has to read the masks for them, gt_centres (N, 2) and gt_areas (N,).
        conversation: the instruction and the counting response.
        negative_points: float64 (M, 2) centres (x, y) of regions that are not asked for.
        ignore_mask: bool (I, I), pixels about which nothing is known.
        candidates: the class names the instruction lists, or None.
        prior_mask: float32 (1, I, I), 0 or 1: the mask the instruction speaks of, zeros if it
            speaks of none; None for tasks without.
        named_box: the box the instruction names, or None.
    """

    instances: Instances
    conversation: Conversation
    negative_points: Tensor
    ignore_mask: Tensor
    candidates: list[str] | None = None
    prior_mask: Tensor | None = None
    named_box: NormalisedBox | None = None


@dataclass(kw_only=True)
class TargetBuilder:
    """Turns one dataset dict of its task into `Targets`.

    Regions that the instruction does not ask for become negative points.

    Attributes:
        size: side I of the language model's square view.
        max_counted_names: most different names in the response.
    """

    task: ClassVar[str]
    size: int
    max_counted_names: int

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        """The attributes by name, as the config gives them."""
        return {
            "size": cfg.MODEL.LMM.IMAGE_SIZE,
            "max_counted_names": cfg.MODEL.ROSE.MAX_COUNTED_NAMES,
        }

    def build(
        self,
        record: dict[str, Any],
        metadata: Metadata,
        rng: np.random.Generator,
        *,
        flip: bool = False,
    ) -> Targets:
        """Build the targets of one image.

        Args:
            record: a dataset dict of this task.
            metadata: of the dataset it comes from.
            rng: draws everything that is random: wording, candidates, regions, corruptions.
            flip: mirror the regions, as the image is.
        """
        raise NotImplementedError

    def _targets(
        self,
        regions: AnnotatedRegions,
        names: list[str],
        asked: np.ndarray,
        instruction: str,
        *,
        candidates: list[str] | None = None,
        prior_mask: np.ndarray | None = None,
        named_box: NormalisedBox | None = None,
    ) -> Targets:
        """Put the targets together.

        Args:
            regions: R regions.
            names: of the R regions, "" where the annotation has none.
            asked: bool (R,), the regions with pixels that the instruction asks for.
            instruction: the user's sentence.
            candidates: names it lists.
            prior_mask: bool (I, I).
            named_box: see `Targets`.
        """
        # What vanished in the view can neither be predicted nor serve as a negative.
        negative = regions.masks.any(axis=(1, 2)) & ~asked
        if prior_mask is not None:
            prior = torch.from_numpy(prior_mask.astype(np.float32))[None]
        else:
            prior = None
        return Targets(
            instances=_to_instances(regions, names, asked, self.size),
            conversation=Conversation(instruction, self._response(regions, names, asked)),
            negative_points=_centres(regions.masks[negative]),
            ignore_mask=torch.from_numpy(regions.ignore),
            candidates=candidates,
            prior_mask=prior,
            named_box=named_box,
        )

    def _response(
        self, regions: AnnotatedRegions, names: list[str], asked: np.ndarray
    ) -> str | None:
        # In the order of the data set's classes, as in the paper's example.
        order = [i for i in np.argsort(regions.classes, kind="stable") if asked[i]]
        counted = [names[i] for i in order]
        if "" in counted:
            return None
        return counting_response(counted, self.max_counted_names)


def names_of(regions: AnnotatedRegions, class_names: list[str]) -> list[str]:
    """One name per region, "" for class -1: referring targets of data sets without categories.

    Args:
        regions: R regions.
        class_names: by contiguous class.
    """
    return [class_names[c] if c >= 0 else "" for c in regions.classes.tolist()]


def _to_instances(
    regions: AnnotatedRegions, names: list[str], asked: np.ndarray, size: int
) -> Instances:
    indices = np.flatnonzero(asked)
    instances = Instances((size, size))
    instances.gt_masks = BitMasks(torch.from_numpy(regions.masks[indices]))
    instances.gt_classes = torch.from_numpy(regions.classes[indices])
    instances.gt_category_names = CategoryNames(names[i] for i in indices)
    instances.gt_is_stuff = torch.from_numpy(regions.is_stuff[indices])
    instances.gt_centres = _centres(regions.masks[indices])
    instances.gt_areas = torch.from_numpy(regions.masks[indices].sum(axis=(1, 2)))
    return instances


def _centres(masks: np.ndarray) -> Tensor:
    """Centre of each mask in pixels, float64 (R, 2): a rounded one may lie in another patch."""
    centres = [mask_centre(torch.from_numpy(mask)) for mask in masks]
    return torch.tensor(centres, dtype=torch.float64).reshape(-1, 2)
