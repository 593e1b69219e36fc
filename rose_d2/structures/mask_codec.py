"""The one codec of masks: COCO's run-length code and polygons, and segment ids as colours."""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor

from rose_d2.dependencies import require


def encode_masks(masks: Tensor) -> list[dict[str, Any]]:
    """Encode all masks of an image at once.

    Args:
        masks: bool (N, H, W) on any device.

    Returns:
        N dicts with "size" [H, W] and "counts" as text, which JSON can hold.
    """
    if not len(masks):
        return []
    # The code runs down the columns: turned on their side in one go, masks need no copy each.
    columns = masks.transpose(1, 2).contiguous().cpu().numpy().view(np.uint8)  # (N, W, H)
    return [_as_text(code) for code in coco_mask.encode(columns.transpose(2, 1, 0))]


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, bool (H, W), as `encode_masks` does."""
    return _as_text(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8)))


def decode_mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """Draw a COCO segmentation, see `segmentation_to_rle`.

    Returns:
        bool (H, W) with its columns first in memory; all False where nothing is drawn.

    Raises:
        ValueError: a run-length code is of another size.
    """
    rle = segmentation_to_rle(segmentation, height, width)
    if rle is None:
        return np.zeros((height, width), dtype=bool, order="F")
    return coco_mask.decode(rle).astype(bool)


def segmentation_to_rle(segmentation: Any, height: int, width: int) -> dict | None:
    """Bring any COCO-style segmentation into pycocotools' compressed form.

    Args:
        segmentation: polygons, an RLE dict (compressed or not), or a list of RLE dicts.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        One RLE dict with bytes, or None where nothing was drawn.
    """
    if isinstance(segmentation, dict):
        return _compress(segmentation, height, width)
    parts = [part for part in segmentation or [] if isinstance(part, dict)]
    if parts:
        return coco_mask.merge([_compress(part, height, width) for part in parts])
    polygons = [polygon for polygon in segmentation or [] if len(polygon) >= 6]
    if not polygons:
        return None
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def _compress(rle: dict, height: int, width: int) -> dict:
    if list(rle["size"]) != [height, width]:
        raise ValueError(
            f"A mask has size (height, width) {tuple(rle['size'])} but its image {(height, width)};"
            " the annotation file belongs to other images."
        )
    if isinstance(rle["counts"], list):
        return coco_mask.frPyObjects(rle, height, width)
    if isinstance(rle["counts"], str):
        return {"size": rle["size"], "counts": rle["counts"].encode("ascii")}
    return rle


def ids_to_colours(segment_ids: np.ndarray) -> np.ndarray:
    """Spell segment ids, int (H, W), as the colours of a COCO panoptic PNG, uint8 (H, W, 3)."""
    # Only what reads or writes such PNGs needs the package.
    return require("panopticapi.utils", "A panoptic PNG").id2rgb(segment_ids)


def colours_to_ids(colours: np.ndarray) -> np.ndarray:
    """Read segment ids, int (H, W), from the colours of a COCO panoptic PNG, (H, W, 3 or 4)."""
    return require("panopticapi.utils", "A panoptic PNG").rgb2id(colours)


def _as_text(code: dict[str, Any]) -> dict[str, Any]:
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}
