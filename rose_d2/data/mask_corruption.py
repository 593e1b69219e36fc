"""Imperfect masks made from true ones: the two batches of refinement data (section 4.1).

A corruption puts the pixels of the view into an order and flips the first of them. Every flip
lowers the IoU with the true mask, so how many to flip follows from the IoU that is aimed at:
nothing is tried and measured again, and the IoU is met to the pixel.

The result is never empty and always overlaps the true mask. Its IoU lies in the range if the mask
has at least 1 / (highest - lowest) pixels, since one flip changes the IoU by at most 1 / area.
Below that it is the IoU nearest to the range that the order passes, which may be 1 (no change).
"""

from __future__ import annotations

import cv2
import numpy as np

IouRange = tuple[float, float]

# CascadePSP trains on targets from 0.7 (or 0.8) to 1.0. Good masks belong to it: at evaluation the
# worst classes of an image and every referring answer are refined, and most of them are good.
HOLES_IOU: IouRange = (0.7, 1.0)
# Ours: from below the 0.5 under which instances are refined (section 6.1).
SHAPE_IOU: IouRange = (0.3, 0.9)

# Ours, as everything below. Blobs of each kind, and how much faster the fastest of them grows.
_MOST_BLOBS = 4
_GROWTH_SPREAD = 5.0
# Patches lie within this share of the object's box around it, and at least so many pixels.
_MARGIN_SHARE, _LEAST_MARGIN = 0.3, 3
# IoU of the whole shrunk or stretched object with the true one, as a share of the target: the
# smaller, the smaller the parts of the variation that are kept.
_VARIATION_SHARE = (0.6, 0.95)
# Levels are told apart as finely as this.
_RANKS = 4096
# Added to the distance from the outline, relative to the largest one: the more, the less the parts
# that are kept hug the outline.
_UNEVENNESS = 0.25


def holes_and_patches(
    mask: np.ndarray, rng: np.random.Generator, iou_range: IouRange = HOLES_IOU
) -> np.ndarray:
    """Punch holes and bites into a mask and add patches in and around its box.

    Some masks only get holes and some only patches.

    Args:
        mask: bool (H, W) with at least one pixel.
        rng: source of all randomness.
        iou_range: lowest and highest IoU of the result with `mask`.

    Returns:
        bool (H, W), see the module about its IoU.

    Raises:
        ValueError: the mask is empty or not bool (H, W), or the range is not within (0, 1].
    """
    _check(mask, iou_range)
    target = rng.uniform(*iou_range)
    window = _window(mask, _MARGIN_SHARE)
    crop = mask[window]
    area, outside = np.count_nonzero(crop), np.count_nonzero(~crop)
    kinds = rng.choice(["both", "holes", "patches"], p=[0.5, 0.25, 0.25])
    # Patches alone may not suffice where the object fills its surroundings.
    with_holes = kinds != "patches" or area / (area + outside) >= iou_range[0]
    with_patches = kinds != "holes" and outside > 0
    levels = np.full(crop.shape, np.inf, dtype=np.float32)
    for wanted, where in ((with_holes, crop), (with_patches, ~crop)):
        if wanted:
            levels[where] = _growing_blobs(where, rng)[where]
    # Uneven growth makes the blobs irregular.
    levels *= 0.5 + _smooth_noise(crop.shape, 8, rng)
    return _flip_first(mask, window, levels, target, iou_range)


def shrink_or_stretch(
    mask: np.ndarray, rng: np.random.Generator, iou_range: IouRange = SHAPE_IOU
) -> np.ndarray:
    """Shrink or stretch the object towards a point of its box and keep parts of the difference.

    Where that cannot change enough, because the object fills the view, it is also eroded.

    Args:
        mask: bool (H, W) with at least one pixel.
        rng: source of all randomness.
        iou_range: lowest and highest IoU of the result with `mask`.

    Returns:
        bool (H, W), see the module about its IoU.

    Raises:
        ValueError: the mask is empty or not bool (H, W), or the range is not within (0, 1].
    """
    _check(mask, iou_range)
    target = rng.uniform(*iou_range)
    varied = _scaled(mask, target * rng.uniform(*_VARIATION_SHARE), rng)
    window = _window(mask | varied, 0.0)
    crop, changed = mask[window], (mask != varied)[window]
    depth = np.where(crop, _depth(crop), _depth(~crop))
    # From the outline inwards or outwards, in some parts much earlier than in others.
    noise = _smooth_noise(crop.shape, int(rng.integers(2, 6)), rng)
    levels = noise * (_UNEVENNESS + depth / depth.max())
    levels[crop & ~changed] += levels.max()
    levels[~crop & ~changed] = np.inf
    return _flip_first(mask, window, levels, target, iou_range)


def check_iou_range(iou_range: IouRange) -> None:
    """Refuse what is not a range of IoUs.

    Raises:
        ValueError: not two numbers with 0 < lowest <= highest <= 1.
    """
    if len(iou_range) != 2 or not 0 < iou_range[0] <= iou_range[1] <= 1:
        raise ValueError(
            f"Got the IoU range {list(iou_range)}; it must be (lowest, highest) with 0 < lowest <= "
            "highest <= 1. Set INPUT.REFINEMENT.HOLES_IOU and SHAPE_IOU accordingly."
        )


def _growing_blobs(where: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """When growing blobs, each begun at a random pixel of `where`, reach each pixel; (h, w)."""
    starts = np.flatnonzero(where)
    rows = np.arange(where.shape[0], dtype=np.float32)[:, None]
    columns = np.arange(where.shape[1], dtype=np.float32)[None, :]
    reached = np.full(where.shape, np.inf, dtype=np.float32)
    for start in rng.choice(starts, size=int(rng.integers(1, _MOST_BLOBS + 1))):
        row, column = divmod(int(start), where.shape[1])
        angle = rng.uniform(0, np.pi)
        # Steps of time per pixel along the two axes of the blob.
        slow_u, slow_v = _GROWTH_SPREAD ** -rng.uniform(0, 1, size=2)
        cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u = np.float32(slow_u) * (cosine * (columns - column) + sine * (rows - row))
        v = np.float32(slow_v) * (cosine * (rows - row) - sine * (columns - column))
        is_ellipse = rng.random() < 0.5
        time = np.sqrt(u * u + v * v) if is_ellipse else np.maximum(np.abs(u), np.abs(v))
        np.minimum(reached, time, out=reached)
    return reached


def _scaled(mask: np.ndarray, ratio: float, rng: np.random.Generator) -> np.ndarray:
    """The object shrunk to `ratio` of its area, or stretched by the inverse.

    It keeps touching the borders of the view that cut it off; along an axis that it spans from
    border to border it is not scaled.
    """
    size = np.array(mask.shape[::-1])
    first, end = np.array(_extent(mask)[::-1]).T  # (x, y) each, as all that follows
    anchor = rng.uniform(first, end)
    anchor = np.where(first == 0, 0, np.where(end == size, size, anchor))
    spans = (first == 0) & (end == size)
    share = rng.uniform()
    power = (~spans).astype(float) if spans.any() else np.array([share, 1 - share])
    scale = ratio ** (power if rng.random() < 0.5 else -power)
    # Coordinates count from the centre of the first pixel, the anchor from its edge.
    matrix = np.column_stack([np.diag(scale), (anchor - 0.5) * (1 - scale)])
    return cv2.warpAffine(mask.astype(np.uint8), matrix, size.tolist(), flags=cv2.INTER_NEAREST) > 0


def _depth(region: np.ndarray) -> np.ndarray:
    """Distance of the pixels of a region (h, w) to its outline; the view's border is no outline."""
    distance = cv2.distanceTransform(region.astype(np.uint8), cv2.DIST_L2, 3)
    return np.minimum(distance, sum(region.shape))  # without any outline it is astronomical


def _smooth_noise(shape: tuple[int, int], cells: int, rng: np.random.Generator) -> np.ndarray:
    """Random values in [0, 1], float32 of `shape`, that vary over `cells` cells along a side."""
    coarse = rng.random((cells, cells), dtype=np.float32)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_LINEAR)


def _flip_first(
    mask: np.ndarray,
    window: tuple[slice, slice],
    levels: np.ndarray,
    target: float,
    iou_range: IouRange,
) -> np.ndarray:
    """Flip the pixels of the window in ascending level, as many as the target IoU takes.

    Pixels are counted by rank and only the rank at which the target is passed is flipped pixel by
    pixel, so the time grows in proportion to the window.

    Args:
        mask: bool (H, W).
        window: rows and columns that hold the whole object.
        levels: float32 (h, w) of the window's pixels, none negative; inf never flips.
        target: IoU aimed at.
        iou_range: lowest and highest IoU allowed.
    """
    inside, levels = mask[window].ravel(), levels.ravel()  # (h * w,)
    highest = float(levels[np.isfinite(levels)].max())
    ranks = np.minimum(levels * ((_RANKS - 1) / max(highest, 1e-6)), _RANKS).astype(np.int32)
    area = np.count_nonzero(inside)
    counts = [np.bincount(ranks[part], minlength=_RANKS)[:_RANKS] for part in (inside, ~inside)]
    passed = np.flatnonzero(_iou(area, *np.cumsum(counts, axis=1)) < target)
    last = int(passed[0]) if len(passed) else _RANKS - 1
    flips = ranks < last
    candidates = np.flatnonzero(ranks == last)
    # After 0, 1, 2, ... candidates.
    holes = np.concatenate([[0], np.cumsum(inside[candidates])])
    patches = np.arange(len(candidates) + 1) - holes
    holes, patches = holes + counts[0][:last].sum(), patches + counts[1][:last].sum()
    iou = _iou(area, holes, patches)[holes < area]
    outside = np.maximum(iou_range[0] - iou, iou - iou_range[1])
    distance = np.where(outside > 0, 2 + outside, np.abs(iou - target))
    flips[candidates[: int(np.argmin(distance))]] = True
    corrupted = mask.copy()
    corrupted[window] ^= flips.reshape(corrupted[window].shape)
    return corrupted


def _iou(area: int, holes: np.ndarray, patches: np.ndarray) -> np.ndarray:
    """IoU of a mask of `area` pixels with itself after losing and gaining so many pixels."""
    return (area - holes) / (area + patches)


def _extent(mask: np.ndarray) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and one past the last row, and column, of the mask's pixels."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1), (int(columns[0]), int(columns[-1]) + 1)


def _window(mask: np.ndarray, margin_share: float) -> tuple[slice, slice]:
    """Rows and columns of the mask's box, with a margin on every side within the view."""
    slices = []
    for (first, end), length in zip(_extent(mask), mask.shape, strict=True):
        margin = max(_LEAST_MARGIN, round(margin_share * (end - first)))
        slices.append(slice(max(0, first - margin), min(length, end + margin)))
    return slices[0], slices[1]


def _check(mask: np.ndarray, iou_range: IouRange) -> None:
    if mask.ndim != 2 or mask.dtype != bool or not mask.any():
        raise ValueError(
            f"Got a mask of shape {mask.shape}, type {mask.dtype} and {np.count_nonzero(mask)} "
            "pixels; only a bool (H, W) mask with at least one pixel can be corrupted."
        )
    check_iou_range(iou_range)
