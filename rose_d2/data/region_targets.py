"""Targets of instructions about one region, and those of region prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata

from rose_d2.data.annotations import AnnotatedRegions, decode_any, decode_classes
from rose_d2.data.mask_corruption import (
    HOLES_IOU,
    SHAPE_IOU,
    IouRange,
    check_iou_range,
    holes_and_patches,
    shrink_or_stretch,
)
from rose_d2.data.targets import TargetBuilder, Targets, names_of
from rose_d2.prompts.instructions import (
    build_refinement_instruction,
    build_region_instruction,
    normalised_box,
)
from rose_d2.structures.segments import (
    BOX_SCALE,
    SITUATIONS,
    NormalisedBox,
    RefinementRequest,
)

WHOLE_VIEW = (0, 0, BOX_SCALE, BOX_SCALE)


@dataclass(frozen=True)
class DrawnRegion:
    """The region an instruction is about.

    Attributes:
        mask: bool (I, I).
        name: "" where the annotation has none.
        wrong_names: names it could be mistaken for; may be empty.
        expression: the referring expression of the sample, if it has one.
        others: bool (M, I, I), what else is annotated and large enough to be drawn.
    """

    mask: np.ndarray
    name: str
    wrong_names: list[str]
    expression: str | None
    others: np.ndarray


class RegionQuestion(NamedTuple):
    """An instruction about a region, and what it speaks of.

    Attributes:
        instruction: the user's sentence.
        prior: bool (I, I), without any pixel where there is no prior mask.
        box: the box it names, None for none.
    """

    instruction: str
    prior: np.ndarray
    box: NormalisedBox | None


@dataclass(kw_only=True)
class OneRegionTargetBuilder(TargetBuilder):
    """Targets of an instruction about one region, from any dataset dict that has masks.

    One region is drawn, a thing or stuff; a referring expression's object where there is one.
    Everything else annotated is negative. An image without a usable region gives no target, and
    its instruction asks for the whole view.

    Attributes:
        min_pixels: regions with fewer pixels of the view are not drawn.
    """

    min_pixels: int

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().settings(cfg), "min_pixels": cfg.INPUT.REFINEMENT.MIN_PIXELS}

    def decode(
        self, record: dict[str, Any], metadata: Metadata
    ) -> tuple[AnnotatedRegions, list[str]]:
        """All annotated regions of the image, and names by contiguous class."""
        return decode_any(record, metadata, self.size)

    def ask(self, drawn: DrawnRegion, rng: np.random.Generator) -> RegionQuestion:
        """The question about a region.

        Args:
            drawn: the region.
            rng: source of randomness.
        """
        raise NotImplementedError

    def ask_for_nothing(self, rng: np.random.Generator) -> str:
        """The instruction for an image without a usable region; it names the whole view."""
        raise NotImplementedError

    def build(
        self,
        record: dict[str, Any],
        metadata: Metadata,
        rng: np.random.Generator,
        *,
        flip: bool = False,
    ) -> Targets:
        regions, class_names = self.decode(record, metadata)
        regions = regions.flipped() if flip else regions
        names = names_of(regions, class_names)
        asked = np.zeros(len(regions), dtype=bool)
        usable = self._usable(regions)
        drawable = self._asked_for(record, usable)
        if len(drawable):
            index = int(rng.choice(drawable))
            asked[index] = True
            # What training must not name must not be mistaken for either.
            taboo = {names[index], *metadata.get("unseen_classes", ())}
            drawn = DrawnRegion(
                regions.masks[index],
                names[index],
                [name for name in class_names if name not in taboo] if names[index] else [],
                record.get("sentence"),
                regions.masks[usable & ~asked],
            )
            question = self.ask(drawn, rng)
        else:
            nothing = np.zeros((self.size, self.size), dtype=bool)
            question = RegionQuestion(self.ask_for_nothing(rng), nothing, WHOLE_VIEW)
        return self._targets(
            regions,
            names,
            asked,
            question.instruction,
            prior_mask=question.prior,
            named_box=question.box,
        )

    def _usable(self, regions: AnnotatedRegions) -> np.ndarray:
        """Which regions are large enough, bool (N,)."""
        areas = np.asarray([np.count_nonzero(mask) for mask in regions.masks], dtype=np.int64)
        # Stuff without a class only completes the annotation of objects.
        return (areas >= max(1, self.min_pixels)) & ((regions.classes >= 0) | ~regions.is_stuff)

    def _asked_for(self, record: dict[str, Any], usable: np.ndarray) -> np.ndarray:
        """Positions of the regions that one is drawn from."""
        if "target_indices" in record:
            return np.asarray([i for i in record["target_indices"] if usable[i]], dtype=np.int64)
        return np.flatnonzero(usable)


@dataclass(kw_only=True)
class RegionTargetBuilder(OneRegionTargetBuilder):
    """Region prompts: mask and name of a region given as a mask or as a box in words.

    Attributes:
        mask_prob: share of samples whose region is given as a mask; the others as a box.
    """

    task = "region"
    mask_prob: float = 0.5

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().settings(cfg), "mask_prob": cfg.INPUT.REGION_MASK_PROB}

    def ask(self, drawn: DrawnRegion, rng: np.random.Generator) -> RegionQuestion:
        if rng.random() < self.mask_prob:
            return RegionQuestion(build_region_instruction(rng=rng), drawn.mask, None)
        box = normalised_box(drawn.mask, self.size)
        words = build_region_instruction(box, rng=rng)
        return RegionQuestion(words, np.zeros_like(drawn.mask), box)

    def ask_for_nothing(self, rng: np.random.Generator) -> str:
        return build_region_instruction(WHOLE_VIEW, rng=rng)


@dataclass(kw_only=True)
class RefinementTargetBuilder(OneRegionTargetBuilder):
    """Refinement samples in the paper's three situations (section 3.4).

    "mask": a corrupted mask and its box. "category": the same and a wrong name; where there is
    none to take, the situation becomes "mask". "missed": no mask, the box of the region.
    A sample with a referring expression is always "mask" (section 6.1), and its prior may lie on
    another object, as a first answer may.

    Attributes:
        situation_probs: shares of "mask", "category" and "missed"; any scale.
        holes_prob: share of corrupted masks with holes and patches, not another shape.
        holes_iou: IoU range of masks with holes and patches.
        shape_iou: IoU range of shrunk and stretched masks.
        other_object_prob: share of referring priors that lie on another object.
        target_box_prob: share of samples with a prior whose words have the box of the target, as
            a person who knows it draws it, and not that of the prior.
        box_jitter: how far a person's box is off, as a share of its sides.

    Raises:
        ValueError: the shares are not three numbers from 0 up, one of them above 0, or an IoU
            range is not one.
    """

    task = "refinement"
    situation_probs: Sequence[float] = (0.4, 0.3, 0.3)
    holes_prob: float = 0.5
    holes_iou: IouRange = HOLES_IOU
    shape_iou: IouRange = SHAPE_IOU
    other_object_prob: float = 0.2
    target_box_prob: float = 0.0
    box_jitter: float = 0.0

    def __post_init__(self) -> None:
        probs = np.asarray(self.situation_probs, dtype=np.float64)
        if probs.shape != (len(SITUATIONS),) or probs.min() < 0 or probs.sum() <= 0:
            raise ValueError(
                f"INPUT.REFINEMENT.SITUATION_PROBS is {list(self.situation_probs)}; give the "
                f"shares of {', '.join(SITUATIONS)}: three numbers from 0 up, at least one above 0."
            )
        self.situation_probs = (probs / probs.sum()).tolist()
        for iou_range in (self.holes_iou, self.shape_iou):
            check_iou_range(iou_range)

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        refinement = cfg.INPUT.REFINEMENT
        return {
            **super().settings(cfg),
            "situation_probs": refinement.SITUATION_PROBS,
            "holes_prob": refinement.HOLES_PROB,
            "holes_iou": tuple(refinement.HOLES_IOU),
            "shape_iou": tuple(refinement.SHAPE_IOU),
            "other_object_prob": refinement.OTHER_OBJECT_PROB,
            "target_box_prob": refinement.TARGET_BOX_PROB,
            "box_jitter": refinement.BOX_JITTER,
        }

    def decode(
        self, record: dict[str, Any], metadata: Metadata
    ) -> tuple[AnnotatedRegions, list[str]]:
        """Whole classes where there is a label map, as semantic answers are refined by class."""
        if "sem_seg_file_name" in record:
            return decode_classes(record, metadata, self.size), list(metadata.stuff_classes)
        return super().decode(record, metadata)

    def ask(self, drawn: DrawnRegion, rng: np.random.Generator) -> RegionQuestion:
        if drawn.expression is not None:
            return self._ask_again(drawn, drawn.expression, rng)
        situation = str(rng.choice(SITUATIONS, p=self.situation_probs))
        if situation == "missed":
            request = RefinementRequest(situation, self._drawn_box(drawn.mask, rng))
            words = build_refinement_instruction(request, rng=rng)
            return RegionQuestion(words, np.zeros_like(drawn.mask), request.box)
        prior = self._corrupted(drawn.mask, rng)
        box = self._box(drawn.mask, prior, rng)
        if situation == "category" and drawn.wrong_names:
            wrong = drawn.wrong_names[int(rng.integers(len(drawn.wrong_names)))]
            request = RefinementRequest("category", box, wrong)
        else:
            request = RefinementRequest("mask", box)
        return RegionQuestion(build_refinement_instruction(request, rng=rng), prior, box)

    def _ask_again(
        self, drawn: DrawnRegion, expression: str, rng: np.random.Generator
    ) -> RegionQuestion:
        """A second turn about a referring expression."""
        lies_elsewhere = len(drawn.others) > 0 and rng.random() < self.other_object_prob
        shown = drawn.others[int(rng.integers(len(drawn.others)))] if lies_elsewhere else drawn.mask
        prior = self._corrupted(shown, rng)
        box = self._box(drawn.mask, prior, rng)
        request = RefinementRequest("mask", box, expression=expression)
        return RegionQuestion(build_refinement_instruction(request, rng=rng), prior, box)

    def ask_for_nothing(self, rng: np.random.Generator) -> str:
        return build_refinement_instruction(RefinementRequest("missed", WHOLE_VIEW), rng=rng)

    def _box(
        self, target: np.ndarray, prior: np.ndarray, rng: np.random.Generator
    ) -> NormalisedBox:
        """Whose box the words have: the target's or the prior's."""
        if self.target_box_prob and rng.random() < self.target_box_prob:
            return self._drawn_box(target, rng)
        return normalised_box(prior, self.size)

    def _drawn_box(self, target: np.ndarray, rng: np.random.Generator) -> NormalisedBox:
        """A target's box as a person draws it."""
        box = normalised_box(target, self.size)
        return jittered_box(box, self.box_jitter, rng) if self.box_jitter else box

    def _corrupted(self, mask: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if rng.random() < self.holes_prob:
            return holes_and_patches(mask, rng, self.holes_iou)
        return shrink_or_stretch(mask, rng, self.shape_iou)


def jittered_box(box: NormalisedBox, jitter: float, rng: np.random.Generator) -> NormalisedBox:
    """Move every side of a box, up to a share of the box's extent in that direction.

    Args:
        box: (x1, y1, x2, y2), integers 0 to `BOX_SCALE`.
        jitter: the share, below 0.5, so that the sides stay in order.
        rng: source of randomness.
    """
    x1, y1, x2, y2 = box
    extent = np.array([x2 - x1, y2 - y1] * 2)
    moved = np.rint(np.array(box) + rng.uniform(-jitter, jitter, 4) * extent)
    left, top, right, bottom = (int(value) for value in moved.clip(0, BOX_SCALE))
    return left, top, right, bottom
