"""The two views of an image that the model is given: a square one, and one of SAM's size."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor


def model_views(image: np.ndarray, lmm_size: int, sam_size: int) -> tuple[Tensor, Tensor]:
    """The two inputs the model makes of one image.

    Args:
        image: uint8 (H, W, 3), RGB.
        lmm_size: MODEL.LMM.IMAGE_SIZE.
        sam_size: MODEL.MASK_HEAD.IMAGE_SIZE.

    Returns:
        `image` uint8 (3, lmm_size, lmm_size) and `sam_image` uint8 (3, h, w).
    """
    views = square_view(image, lmm_size), longest_side_view(image, sam_size)
    lmm_view, sam_view = (
        torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1))) for view in views
    )
    return lmm_view, sam_view


def square_view(image: np.ndarray, size: int) -> np.ndarray:
    """The language model's view: resized to a square, aspect ratio ignored.

    Args:
        image: uint8 (H, W, 3).
        size: side in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    return _resize(image, size, size)


def longest_side_view(image: np.ndarray, size: int) -> np.ndarray:
    """SAM's view: the longest side resized to `size`, aspect ratio kept, no padding.

    Args:
        image: uint8 (H, W, 3).
        size: longest side in pixels.

    Returns:
        uint8 (h, w, 3) with max(h, w) == size.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    # Rounded half up, as segment-anything does.
    return _resize(image, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    # Area averaging avoids aliasing when shrinking; it degrades to blocks when enlarging.
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)
