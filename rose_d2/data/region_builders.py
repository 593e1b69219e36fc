"""Targets of instructions about one region, and those of region prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode, configurable
from detectron2.data.catalog import Metadata

from rose_d2.data.annotated_regions import AnnotatedRegions
from rose_d2.data.record_regions import decode_any
from rose_d2.data.targets import TargetBuilder, Targets, names_of
from rose_d2.prompts.refinement_templates import build_region_instruction, normalised_box
from rose_d2.structures.refinement_request import BOX_SCALE

WHOLE_VIEW = (0, 0, BOX_SCALE, BOX_SCALE)
LEAST_PIXELS = 16


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


class OneRegionTargetBuilder(TargetBuilder):
    """Targets of an instruction about one region, from any dataset dict that has masks.

    One region is drawn, a thing or stuff; a referring expression's object where there is one.
    Everything else annotated is negative. An image without a usable region gives no target, and
    its instruction asks for the whole view.
    """

    @configurable
    def __init__(
        self, *, size: int, max_counted_names: int, min_pixels: int = LEAST_PIXELS
    ) -> None:
        """
        Args:
            size: side I of the language model's square view.
            max_counted_names: most different names in the response.
            min_pixels: regions with fewer pixels of the view are not drawn.
        """
        super().__init__(size=size, max_counted_names=max_counted_names)
        self.min_pixels = min_pixels

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "min_pixels": cfg.INPUT.REFINEMENT.MIN_PIXELS}

    def decode(
        self, record: dict[str, Any], metadata: Metadata
    ) -> tuple[AnnotatedRegions, list[str]]:
        """All annotated regions of the image, and names by contiguous class."""
        return decode_any(record, metadata, self.size)

    def ask(self, drawn: DrawnRegion, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        """The instruction for a region and the prior mask it speaks of.

        Args:
            drawn: the region.
            rng: source of randomness.

        Returns:
            The user's sentence, and bool (I, I), without any pixel where there is no prior.
        """
        raise NotImplementedError

    def ask_for_nothing(self, rng: np.random.Generator) -> str:
        """The instruction for an image without a usable region."""
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
            instruction, prior = self.ask(drawn, rng)
        else:
            instruction = self.ask_for_nothing(rng)
            prior = np.zeros((self.size, self.size), dtype=bool)
        return self._targets(regions, names, asked, instruction, prior_mask=prior)

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


class RegionTargetBuilder(OneRegionTargetBuilder):
    """Region prompts: mask and name of a region given as a mask or as a box in words."""

    task = "region"

    @configurable
    def __init__(
        self,
        *,
        size: int,
        max_counted_names: int,
        min_pixels: int = LEAST_PIXELS,
        mask_prob: float = 0.5,
    ) -> None:
        """
        Args:
            size: side I of the language model's square view.
            max_counted_names: most different names in the response.
            min_pixels: regions with fewer pixels of the view are not drawn.
            mask_prob: share of samples whose region is given as a mask; the others as a box.
        """
        super().__init__(size=size, max_counted_names=max_counted_names, min_pixels=min_pixels)
        self.mask_prob = mask_prob

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {**super().from_config(cfg), "mask_prob": cfg.INPUT.REGION_MASK_PROB}

    def ask(self, drawn: DrawnRegion, rng: np.random.Generator) -> tuple[str, np.ndarray]:
        if rng.random() < self.mask_prob:
            return build_region_instruction(rng=rng), drawn.mask
        box = normalised_box(drawn.mask, self.size)
        return build_region_instruction(box, rng=rng), np.zeros_like(drawn.mask)

    def ask_for_nothing(self, rng: np.random.Generator) -> str:
        return build_region_instruction(WHOLE_VIEW, rng=rng)
