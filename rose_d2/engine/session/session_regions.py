"""Masks and boxes that a user hands to a session, checked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rose_d2.structures.segment import Segment


def as_mask(region: Any, size: tuple[int, int]) -> np.ndarray | None:
    """A mask, if a region is one.

    Args:
        region: a mask (H, W): bool, or numbers that are 0 outside; or a box.
        size: (height, width) of the image.

    Returns:
        bool (H, W), or None for anything that is no two-dimensional array.

    Raises:
        ValueError: the mask is empty or of another size.
    """
    values = region.cpu().numpy() if isinstance(region, torch.Tensor) else region
    if not isinstance(values, np.ndarray) or values.ndim != 2:
        return None
    if values.shape != size:
        raise ValueError(
            f"Got a mask of (height, width) {values.shape} for an image of {size}; bring the mask "
            "to the size of the image, or take a segment of this image."
        )
    mask = values != 0
    if not mask.any():
        raise ValueError(
            "The mask is empty; mark at least one pixel, or give the box (x1, y1, x2, y2) of "
            "something that was not found to missed()."
        )
    return mask


def as_box(region: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """A box, cut at the border of the image.

    Args:
        region: four numbers (x1, y1, x2, y2) in pixels.
        size: (height, width) of the image.

    Raises:
        ValueError: not four finite numbers, or without area inside the image.
    """
    height, width = size
    try:
        values = np.asarray(region, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,) or not np.isfinite(values).all():
        raise ValueError(
            f"A box is four numbers (x1, y1, x2, y2) in pixels of the image, got {_shown(region)}."
        )
    x1, x2 = values[[0, 2]].clip(0, width).tolist()
    y1, y2 = values[[1, 3]].clip(0, height).tolist()
    if not (x1 < x2 and y1 < y2):
        raise ValueError(
            f"The box {values.tolist()} has no area inside the image, which is {width} pixels wide "
            f"and {height} high; give x1 < x2 and y1 < y2 inside it."
        )
    return x1, y1, x2, y2


def as_segment(segment: Any, size: tuple[int, int]) -> Segment:
    """A segment from elsewhere whose mask fits the image.

    Raises:
        ValueError: it is no `Segment`, or its mask is none, empty or of another size.
    """
    mask = as_mask(segment.mask, size) if isinstance(segment, Segment) else None
    if mask is None:
        raise ValueError(
            f"Got {_shown(segment)}; bring masks in as Segment(mask, name, score) with a mask "
            "bool (height, width)."
        )
    return Segment(mask, segment.category_name, segment.score, segment.name_score, segment.is_thing)


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    return repr(value)[:80] if shape is None else f"an array of shape {tuple(shape)}"
