"""From a dataset dict to what the model should answer: one small class per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.data.catalog import Metadata
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from rose_d2.data.annotated_regions import (
    AnnotatedRegions,
    decode_annotations,
    decode_label_map,
    decode_panoptic,
)
from rose_d2.data.candidates import draw_candidates
from rose_d2.layers.mask_ops import mask_centre
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.counting import counting_response
from rose_d2.prompts.templates import build_instruction
from rose_d2.structures.category_names import CategoryNames


@dataclass(frozen=True)
class Targets:
    """What one training image is supervised with, in the language model's view (I, I).

    Attributes:
        instances: gt_masks, gt_classes, gt_category_names, gt_is_stuff of N targets.
        conversation: the instruction and the counting response.
        negative_points: float32 (M, 2) centres (x, y) of regions that are not asked for.
        ignore_mask: bool (I, I), pixels about which nothing is known.
        candidates: the class names the instruction lists, or None.
    """

    instances: Instances
    conversation: Conversation
    negative_points: Tensor
    ignore_mask: Tensor
    candidates: list[str] | None


class TargetBuilder:
    """Turns one dataset dict of its task into `Targets`.

    A task says how its annotations are decoded, which regions its instruction asks for and what
    the classes are called; regions that are not asked for become negative points.
    """

    task: str
    # Whether the instruction may list class candidates.
    takes_candidates = True

    def __init__(
        self,
        *,
        size: int,
        max_counted_names: int,
        candidate_prob: float = 0.0,
        max_distractors: int = 10,
    ) -> None:
        """
        Args:
            size: side I of the language model's square view.
            max_counted_names: most different names in the response.
            candidate_prob: share of samples whose instruction lists class candidates.
            max_distractors: most names in such a list that are not in the image.
        """
        self.size = size
        self.max_counted_names = max_counted_names
        self.candidate_prob = candidate_prob if self.takes_candidates else 0.0
        self.max_distractors = max_distractors

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        """All annotated regions of the image, asked for or not."""
        raise NotImplementedError

    def class_names(self, metadata: Metadata) -> list[str]:
        """Names by contiguous class."""
        raise NotImplementedError

    def asked_for(self, record: dict[str, Any], regions: AnnotatedRegions) -> np.ndarray:
        """Which regions the instruction asks for, bool (R,)."""
        return np.ones(len(regions), dtype=bool)

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
            rng: draws the wording and the candidates.
            flip: mirror the regions, as the image is.
        """
        regions = self.decode(record, metadata)
        regions = regions.flipped() if flip else regions
        class_names = self.class_names(metadata)
        # Class -1 has no name: referring targets of data sets without categories.
        names = [class_names[c] if c >= 0 else "" for c in regions.classes.tolist()]
        # What vanished in the view can neither be predicted nor serve as a negative.
        visible = regions.masks.any(axis=(1, 2))
        asked = self.asked_for(record, regions) & visible
        candidates = None
        if rng.random() < self.candidate_prob:
            present = sorted({names[i] for i in np.flatnonzero(asked)})
            # What training must not name must not be offered to it either.
            unseen = set(metadata.get("unseen_classes", ()))
            known = [name for name in class_names if name not in unseen]
            candidates = draw_candidates(present, known, self.max_distractors, rng)
            asked &= np.asarray([name in candidates for name in names], dtype=bool)
        return Targets(
            instances=_to_instances(regions, names, asked, self.size),
            conversation=Conversation(
                instruction=build_instruction(
                    self.task, description=record.get("sentence"), candidates=candidates, rng=rng
                ),
                response=self._response(regions, names, asked),
            ),
            negative_points=_centres(regions.masks[visible & ~asked]),
            ignore_mask=torch.from_numpy(regions.ignore),
            candidates=candidates,
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


class SemanticTargetBuilder(TargetBuilder):
    """Everything in the image: each thing by itself, each stuff category as one region.

    Instance-level supervision of things is the paper's (section 6.3). A data set with nothing but
    a label map gives one region per class.
    """

    task = "semantic"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        if "pan_seg_file_name" in record:
            return _decode_panoptic(record, self.size)
        things = set(getattr(metadata, "thing_classes", []))
        names = self.class_names(metadata)
        stuff_ids = {i for i, name in enumerate(names) if name not in things}
        shape = record["height"], record["width"]
        return decode_label_map(
            record["sem_seg_file_name"],
            *shape,
            self.size,
            ignore_label=metadata.ignore_label,
            stuff_ids=stuff_ids,
        )

    def class_names(self, metadata: Metadata) -> list[str]:
        return metadata.stuff_classes


class PanopticTargetBuilder(TargetBuilder):
    """Everything in the image, from a COCO panoptic annotation."""

    task = "panoptic"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return _decode_panoptic(record, self.size)

    def class_names(self, metadata: Metadata) -> list[str]:
        # Panoptic metadata lists things and stuff here, so that the index is the class.
        return metadata.stuff_classes


class InstanceTargetBuilder(TargetBuilder):
    """Things only; stuff is negative wherever a panoptic annotation says where it is."""

    task = "instance"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return _decode_objects(record, self.size)

    def class_names(self, metadata: Metadata) -> list[str]:
        return metadata.thing_classes

    def asked_for(self, record: dict[str, Any], regions: AnnotatedRegions) -> np.ndarray:
        return ~regions.is_stuff


class ReferringTargetBuilder(TargetBuilder):
    """The objects an expression describes; every other one is negative."""

    task = "referring"
    takes_candidates = False

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return _decode_objects(record, self.size)

    def class_names(self, metadata: Metadata) -> list[str]:
        return getattr(metadata, "thing_classes", [])

    def asked_for(self, record: dict[str, Any], regions: AnnotatedRegions) -> np.ndarray:
        asked = np.zeros(len(regions), dtype=bool)
        asked[record["target_indices"]] = True
        return asked


_DENSE = (SemanticTargetBuilder, InstanceTargetBuilder, PanopticTargetBuilder)
TARGET_BUILDERS: dict[str, type[TargetBuilder]] = {
    builder.task: builder for builder in (*_DENSE, ReferringTargetBuilder)
}


def _decode_panoptic(record: dict[str, Any], size: int) -> AnnotatedRegions:
    shape = record["height"], record["width"]
    return decode_panoptic(record["pan_seg_file_name"], record["segments_info"], *shape, size)


def _decode_objects(record: dict[str, Any], size: int) -> AnnotatedRegions:
    objects = decode_annotations(record["annotations"], record["height"], record["width"], size)
    if "pan_seg_file_name" not in record:
        return objects
    return objects.with_stuff_of(_decode_panoptic(record, size))


def _to_instances(
    regions: AnnotatedRegions, names: list[str], asked: np.ndarray, size: int
) -> Instances:
    indices = np.flatnonzero(asked)
    instances = Instances((size, size))
    instances.gt_masks = BitMasks(torch.from_numpy(regions.masks[indices]))
    instances.gt_classes = torch.from_numpy(regions.classes[indices])
    instances.gt_category_names = CategoryNames(names[i] for i in indices)
    instances.gt_is_stuff = torch.from_numpy(regions.is_stuff[indices])
    return instances


def _centres(masks: np.ndarray) -> Tensor:
    centres = [mask_centre(torch.from_numpy(mask)) for mask in masks]
    return torch.tensor(centres, dtype=torch.float32).reshape(-1, 2)
