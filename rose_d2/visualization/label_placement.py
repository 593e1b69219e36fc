"""Where to write the labels of segments so that they hide little and never each other."""

import math
from collections.abc import Sequence

import cv2
import numpy as np

# Labels are placed on a raster of at most this many cells a side; finer is not visible.
_RASTER_SIDE = 300


# A label that would share more than this part of its area with another one is left out.
_MAX_SHARED = 0.08


# What is bad about a position, in units of one label area.
_COST_SHARED = 20.0


_COST_HIDES_OTHER_THINGS = 2.0


_COST_HIDES_OWN = 3.0


_COST_AWAY = 0.6


_COST_STRADDLES = 1.0


_COST_INSIDE_THING = 0.15


_COST_OUTSIDE_STUFF = 3.0


_COST_SHALLOW = 0.4


# Ties go to the earlier candidate: above the object before below, before the sides.
_COST_RANK = 0.1


_GRID_STEPS = 9


def place_labels(
    masks: Sequence[np.ndarray], sizes: Sequence[tuple[float, float]], is_thing: Sequence[bool]
) -> list[tuple[float, float] | None]:
    """Choose a position for the label of every segment, small objects first.

    Labels of things go beside small objects and inside large ones; labels of stuff go inside.

    Args:
        masks: N arrays, bool (H, W).
        sizes: N label sizes (width, height) in pixels.
        is_thing: N flags.

    Returns:
        N top left corners (x, y) in pixels, inside the image where the label fits into it; None
        where no position is free or the mask is empty.
    """
    if not masks:
        return []
    stride = max(1, math.ceil(max(masks[0].shape) / _RASTER_SIDE))
    boxes = [_box(mask) for mask in masks]
    rasters = [np.ascontiguousarray(mask[::stride, ::stride]).astype(np.uint8) for mask in masks]
    covered = np.zeros(rasters[0].shape, np.float32)
    for raster, thing in zip(rasters, is_thing, strict=True):
        covered += raster * bool(thing)
    positions: list[tuple[float, float] | None] = [None] * len(masks)
    placed = np.zeros((0, 4))
    order = sorted(range(len(masks)), key=lambda i: (not is_thing[i], rasters[i].sum()))
    for i in order:
        if boxes[i] is None:
            continue
        box, size = np.asarray(boxes[i]) / stride, np.asarray(sizes[i]) / stride
        corners = _candidates(box, size, covered.shape)
        costs, shared = _costs(corners, size, rasters[i], covered, placed, is_thing[i])
        best = int(np.argmin(costs))
        if shared[best] <= _MAX_SHARED:
            positions[i] = (float(corners[best, 0] * stride), float(corners[best, 1] * stride))
            placed = np.vstack([placed, [*corners[best], *(corners[best] + size)]])
    return positions


def _box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(columns) == 0:
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _candidates(box: np.ndarray, size: np.ndarray, canvas: tuple[int, ...]) -> np.ndarray:
    """Top left corners (M, 2) around the box, near ones first, then a grid over the box."""
    (x0, y0, x1, y1), (w, h) = box, size
    middle_x, middle_y = (x0 + x1 - w) / 2, (y0 + y1 - h) / 2
    corners = []
    for gap in (0.15 * h, 1.3 * h, 2.6 * h):
        for y in (y0 - h - gap, y1 + gap):
            corners += [(middle_x, y), (x0, y), (x1 - w, y)]
        for x in (x1 + gap, x0 - w - gap):
            corners += [(x, middle_y), (x, y0), (x, y1 - h)]
    xs = np.linspace(x0, max(x0, x1 - w), _GRID_STEPS)
    ys = np.linspace(y0, max(y0, y1 - h), _GRID_STEPS)
    corners += [(x, y) for y in ys for x in xs]
    limits = np.maximum(np.array([canvas[1], canvas[0]]) - size, 0)
    return np.clip(np.array(corners), 0, limits)  # (M, 2)


def _costs(
    corners: np.ndarray,
    size: np.ndarray,
    raster: np.ndarray,
    covered: np.ndarray,
    placed: np.ndarray,
    is_thing: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Cost (M,) of each position and the part (M,) of the label it shares with placed ones."""
    rects = np.hstack([corners, corners + size])  # (M, 4)
    label_area, own_area = max(float(size.prod()), 1.0), max(float(raster.sum()), 1.0)
    shared = _shared_area(rects, placed) / label_area
    own = _sum_inside(raster, rects)
    inside = np.clip(own / label_area, 0, 1)
    costs = _COST_SHARED * shared + _COST_HIDES_OWN * own / own_area
    others = _sum_inside(covered, rects) - own * is_thing
    costs += _COST_HIDES_OTHER_THINGS * others / label_area
    if is_thing:
        costs += _COST_AWAY * _distance(raster, rects) / max(float(size[1]), 1.0)
        costs += _COST_STRADDLES * 4 * inside * (1 - inside) + _COST_INSIDE_THING * inside
        costs += _COST_RANK * np.arange(len(rects)) / len(rects)
    else:
        costs += _COST_OUTSIDE_STUFF * (1 - inside)
        costs += _COST_SHALLOW * (1 - _relative_depth(raster, corners + size / 2))
    return costs, shared


def _shared_area(rects: np.ndarray, placed: np.ndarray) -> np.ndarray:
    """Area (M,) that each rectangle shares with all K placed ones."""
    low = np.maximum(rects[:, None, :2], placed[None, :, :2])  # (M, K, 2)
    high = np.minimum(rects[:, None, 2:], placed[None, :, 2:])
    return np.clip(high - low, 0, None).prod(axis=2).sum(axis=1)


def _distance(raster: np.ndarray, rects: np.ndarray) -> np.ndarray:
    """Gap (M,) between each rectangle and the mask, 0 where they touch."""
    to_mask = cv2.distanceTransform(1 - raster, cv2.DIST_L2, cv2.DIST_MASK_3)
    low, high = rects[:, None, :2], rects[:, None, 2:]
    across, down = np.meshgrid(np.linspace(0, 1, 9), np.linspace(0, 1, 3))
    points = low + (high - low) * np.stack([across.ravel(), down.ravel()], axis=1)  # (M, 27, 2)
    return _values_at(to_mask, points).min(axis=1)


def _values_at(raster: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values (...) of the raster at points (..., 2) as (x, y); outside ones take the border."""
    columns = np.clip(points[..., 0].astype(int), 0, raster.shape[1] - 1)
    rows = np.clip(points[..., 1].astype(int), 0, raster.shape[0] - 1)
    return raster[rows, columns]


def _relative_depth(raster: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Distance (M,) of points (x, y) to the mask's edge, as a part of the largest there is."""
    depth = cv2.distanceTransform(np.pad(raster, 1), cv2.DIST_L2, cv2.DIST_MASK_3)[1:-1, 1:-1]
    return _values_at(depth, points) / max(float(depth.max()), 1.0)


def _sum_inside(raster: np.ndarray, rects: np.ndarray) -> np.ndarray:
    """Sum (M,) of the raster's values inside each rectangle, rounded to whole cells."""
    integral = cv2.integral(raster)
    height, width = raster.shape
    x0, y0, x1, y1 = np.rint(rects).astype(int).T
    x0, x1 = np.clip(x0, 0, width), np.clip(x1, 0, width)
    y0, y1 = np.clip(y0, 0, height), np.clip(y1, 0, height)
    return integral[y1, x1] - integral[y0, x1] - integral[y1, x0] + integral[y0, x0]
