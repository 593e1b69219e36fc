"""The one codec of masks: COCO's run-length code and polygons, and segment ids as colours."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from rose_d2.dependencies import require

# Pixels of masks that are encoded together.
_PIXELS_AT_ONCE = 1 << 24
# Coordinates beyond are a mistake of the file, in pixels.
_FARTHEST = 1e6
# Lists in lists around the corners of a polygon.
_DEEPEST = 4
# Digits of a run's length, five bits each, in a compressed code.
_LONGEST_RUN = 7


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode all masks of an image at once.

    Args:
        masks: bool (N, H, W) on any device, or `LogitMasks`, which are drawn a few at a time.

    Returns:
        N dicts with "size" [H, W] and "counts" as text, which JSON can hold.
    """
    codes: list[dict[str, Any]] = []
    at_once = max(1, _PIXELS_AT_ONCE // max(1, math.prod(masks.shape[1:])))
    for start in range(0, len(masks), at_once):
        drawn = masks[start : start + at_once]
        # The code runs down the columns: turned on their side, masks need no copy each.
        turned = np.empty((len(drawn), *masks.shape[:0:-1]), dtype=np.uint8)  # (n, W, H)
        for mask, into in zip(drawn, turned, strict=True):
            cv2.transpose(mask.cpu().numpy().view(np.uint8), dst=into)
        codes += [_as_text(code) for code in coco_mask.encode(turned.transpose(2, 1, 0))]
    return codes


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, bool (H, W), as `encode_masks` does."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw a COCO segmentation, see `clean_segmentation`.

    Returns:
        bool (H, W) with its columns first in memory; all False where nothing is drawn.

    Raises:
        UnusableMaskError: something is drawn, but it cannot be used.
    """
    rle = segmentation_to_rle(segmentation, height, width)
    if rle is None:
        return np.zeros((height, width), dtype=bool, order="F")
    return coco_mask.decode(rle).astype(bool)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict | None:
    """Bring any COCO-style segmentation into pycocotools' compressed form.

    Args:
        segmentation: see `clean_segmentation`.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        One compressed RLE dict, or None where nothing was drawn.

    Raises:
        UnusableMaskError: something is drawn, but it cannot be used.
    """
    cleaned = clean_segmentation(segmentation, height, width)
    if isinstance(cleaned, list):
        return coco_mask.merge(coco_mask.frPyObjects(cleaned, height, width))
    return cleaned


class UnusableMaskError(ValueError):
    """A segmentation that pycocotools would draw wrongly, or crash on.

    Attributes:
        kind: what such annotations are, in the plural, for counting them.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


def clean_segmentation(
    segmentation: Any, height: int, width: int
) -> list[list[float]] | dict[str, Any] | None:
    """Make a segmentation, in any form that tools write, safe for pycocotools.

    Its C code reads past its buffers, or draws anything, where corners are far away and where
    run-length codes are longer or shorter than the image.

    Args:
        segmentation: polygons ([x, y, ...], one or a list of them, or lists of [x, y] at any
            depth), a run-length code (its counts text, bytes or a list), a list of such, or None.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        Polygons of at least three corners, as they were or, where they reach far out, clipped to
        the image; one compressed code; or None where nothing is drawn.

    Raises:
        UnusableMaskError: a code of another size or length, or a corner that is no number or is
            absurdly far away.
    """
    if isinstance(segmentation, Mapping):
        return _clean_code(segmentation, height, width)
    parts = segmentation if isinstance(segmentation, list | tuple) else []
    codes = [_clean_code(part, height, width) for part in parts if isinstance(part, Mapping)]
    outlines = [part for part in parts if not isinstance(part, Mapping)]
    cleaned = (_clean_polygon(polygon, height, width) for polygon in _polygons(outlines))
    polygons = [polygon for polygon in cleaned if polygon is not None]
    if not codes:
        return polygons or None
    drawn = coco_mask.frPyObjects(polygons, height, width) if polygons else []
    return coco_mask.merge([*codes, *drawn])


def _polygons(value: Any, depth: int = 0) -> Iterator[list[Any]]:
    """The flat polygons of nested lists: numbers, pairs of numbers, or lists of either."""
    if not isinstance(value, list | tuple) or depth > _DEEPEST:
        return
    nested = [isinstance(part, list | tuple) for part in value]
    if not any(nested):
        yield list(value)
    elif all(nested) and all(len(part) == 2 and not _has_lists(part) for part in value):
        yield [number for pair in value for number in pair]
    else:
        for part in value:
            yield from _polygons(part, depth + 1)


def _has_lists(part: Sequence[Any]) -> bool:
    return any(isinstance(value, list | tuple) for value in part)


def _clean_polygon(polygon: list[Any], height: int, width: int) -> list[float] | None:
    """The polygon, inside the image where it reached far out of it; None below three corners."""
    if len(polygon) < 6 or len(polygon) % 2:
        return None
    try:
        corners = np.array(polygon, dtype=np.float64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        corners = np.full((1, 2), np.nan)
    if not np.isfinite(corners).all():
        raise UnusableMaskError(
            "annotations with coordinates that are no numbers",
            "a polygon has a coordinate that is no finite number",
        )
    if np.abs(corners).max() > _FARTHEST:
        raise UnusableMaskError(
            "annotations with absurd coordinates",
            f"a polygon has a coordinate of {np.abs(corners).max():.3g} pixels",
        )
    size = np.array([width, height])
    # pycocotools clips exactly, but its memory grows with the distance.
    if (corners < -size).any() or (corners > 2 * size).any():
        corners = _clip(corners, size)
        return corners.ravel().tolist() if len(corners) >= 3 else None
    # Text such as "12.5" has become numbers; what was numbers stays as it is, 3 or 3.0.
    are_numbers = all(isinstance(value, float | int) for value in polygon)
    return polygon if are_numbers else corners.ravel().tolist()


def _clip(corners: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Sutherland and Hodgman's clipping of (n, 2) corners to the image, (m, 2)."""
    for axis, sign, bound in ((0, 1, 0), (0, -1, size[0]), (1, 1, 0), (1, -1, size[1])):
        kept: list[np.ndarray] = []
        inside = sign * (corners[:, axis] - bound) >= 0
        for start, end, was_in, is_in in zip(
            np.roll(corners, 1, axis=0), corners, np.roll(inside, 1), inside, strict=True
        ):
            if was_in != is_in:
                share = (bound - start[axis]) / (end[axis] - start[axis])
                kept.append(start + share * (end - start))
            if is_in:
                kept.append(end)
        corners = np.array(kept).reshape(-1, 2)
    return np.clip(corners, 0, size)


def _clean_code(code: Mapping[str, Any], height: int, width: int) -> dict[str, Any]:
    """A run-length code in compressed form, once its runs are known to fill the image."""
    try:
        size = [int(side) for side in code["size"]]
        counts = code["counts"]
        text = counts.encode("ascii") if isinstance(counts, str) else counts
        runs = _runs_of_text(text) if isinstance(text, bytes) else _runs_of_list(counts)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UnusableMaskError(
            "annotations with a damaged run-length code",
            f"a run-length code is damaged ({error!r})",
        ) from error
    if size != [height, width]:
        raise UnusableMaskError(
            "annotations whose mask has another size than their image",
            f"A mask has size (height, width) {tuple(size)} but its image {(height, width)}; the "
            "annotation file belongs to other images.",
        )
    if (runs < 0).any() or runs.sum() != height * width:
        raise UnusableMaskError(
            "annotations with a damaged run-length code",
            f"a run-length code has runs of {runs.sum()} pixels in all, but its image has "
            f"{height * width}",
        )
    if isinstance(counts, bytes | str):
        return {"size": size, "counts": counts}
    return coco_mask.frPyObjects({"size": size, "counts": runs.tolist()}, height, width)


def _runs_of_list(counts: Any) -> np.ndarray:
    runs = np.array([int(float(count)) for count in counts], dtype=np.int64)
    if any(int(float(count)) != float(count) for count in counts):
        raise ValueError("its counts are no whole numbers")
    return runs


def _runs_of_text(counts: bytes) -> np.ndarray:
    """Length of every run, int64, by the rules of pycocotools (maskApi.c, rleFrString)."""
    digits = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    is_last = (digits & 0x20) == 0
    if not len(digits) or (digits < 0).any() or (digits > 63).any() or not is_last[-1]:
        raise ValueError("its counts are no text of run lengths")
    ends = np.flatnonzero(is_last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_RUN:
        raise ValueError("its counts have an endless number")
    position = np.arange(len(digits)) - np.repeat(starts, lengths)
    runs = np.add.reduceat((digits & 0x1F) << (5 * position), starts)
    is_negative = (digits[ends] & 0x10) != 0
    runs[is_negative] -= 1 << (5 * lengths[is_negative])
    # From the fourth on, a run is told by how much it differs from the one before the last.
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def ids_to_colours(segment_ids: np.ndarray) -> np.ndarray:
    """Spell segment ids, int (H, W), as the colours of a COCO panoptic PNG, uint8 (H, W, 3)."""
    # id = R + 256 G + 65536 B: the three lower bytes, without division.
    octets = np.ascontiguousarray(segment_ids, dtype="<u4").view(np.uint8)
    return cv2.cvtColor(octets.reshape(*segment_ids.shape, 4), cv2.COLOR_RGBA2RGB)


def colours_to_ids(colours: np.ndarray) -> np.ndarray:
    """Read segment ids, int (H, W), from the colours of a COCO panoptic PNG, (H, W, 3 or 4)."""
    # Only what reads such PNGs needs the package.
    return require("panopticapi.utils", "A panoptic PNG").rgb2id(colours)


def _as_text(code: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
