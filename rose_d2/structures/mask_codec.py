"""Masks as COCO's run-length code, the form in which evaluators keep them, and their areas."""

from __future__ import annotations

import numpy as np
from pycocotools import mask as coco_mask
from torch import Tensor


def encode_masks(masks: Tensor) -> list[dict]:
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
    codes = coco_mask.encode(columns.transpose(2, 1, 0))  # (H, W, N), columns first in memory
    return [{"size": code["size"], "counts": code["counts"].decode("ascii")} for code in codes]
