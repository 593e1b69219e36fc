"""Geometry of masks: boxes, overlap, suppression, centre and resizing."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes
from torch import Tensor

_PIXELS_PER_CHUNK = 1 << 16


def masks_to_boxes(masks: Tensor) -> Boxes:
    """Tight boxes around masks.

    Args:
        masks: bool (N, H, W).

    Returns:
        N boxes (x0, y0, x1, y1) with exclusive right and bottom; all zeros for an empty mask.
    """
    return boxes_around(masks.any(dim=2), masks.any(dim=1))


def boxes_around(rows: Tensor, columns: Tensor) -> Boxes:
    """Tight boxes by the rows and columns that have a pixel, as `masks_to_boxes`.

    Args:
        rows: bool (N, H).
        columns: bool (N, W).
    """
    (top, bottom), (left, right) = first_and_end(rows), first_and_end(columns)
    return Boxes(torch.stack([left, top, right, bottom], dim=1).float())


def first_and_end(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """Where True values begin and end.

    Args:
        occupied: bool (N, X).

    Returns:
        The first, and one past the last, long (N,) each; zeros where there are none.
    """
    positions = torch.arange(occupied.shape[1], device=occupied.device)
    end = torch.where(occupied, positions + 1, 0).amax(dim=1)
    first = torch.where(occupied, positions, occupied.shape[1]).amin(dim=1)
    return torch.where(end > 0, first, 0), end


def pairwise_mask_iou(masks_a: Tensor, masks_b: Tensor) -> Tensor:
    """Intersection over union of every pair of masks.

    Args:
        masks_a: bool (N, H, W).
        masks_b: bool (M, H, W).

    Returns:
        (N, M) float32 in [0, 1]; 0 where both masks are empty.
    """
    intersection = pairwise_intersection(masks_a, masks_b)
    union = mask_areas(masks_a)[:, None] + mask_areas(masks_b)[None, :] - intersection
    return intersection.float() / union.clamp(min=1)


def paired_mask_iou(masks_a: Tensor, masks_b: Tensor) -> Tensor:
    """IoU of each mask with the one at its place.

    Args:
        masks_a: bool (N, H, W), or (1, H, W) for the same one N times.
        masks_b: bool (N, H, W).

    Returns:
        float32 (N,); 0 for two empty masks.
    """
    both = (masks_a & masks_b).sum(dim=(1, 2))
    either = (masks_a | masks_b).sum(dim=(1, 2))
    return both / either.clamp(min=1)


def mask_areas(masks: Tensor) -> Tensor:
    """Number of pixels of each mask.

    Args:
        masks: bool (N, H, W) on any device, or `LogitMasks`.

    Returns:
        (N,) long, on the same device.
    """
    if masks.device.type != "cpu":
        areas = [mask.sum() for mask in masks]
        return torch.stack(areas) if areas else torch.zeros(0, dtype=torch.long).to(masks.device)
    # NumPy counts bytes, twenty times as fast as torch adds up booleans.
    areas = [np.count_nonzero(mask.numpy()) for mask in masks]
    return torch.tensor(areas, dtype=torch.long, device="cpu")


def pairwise_intersection(masks_a: Tensor, masks_b: Tensor) -> Tensor:
    """Number of pixels that every pair of masks shares, exact for any image size.

    Args:
        masks_a: bool (N, H, W), or `LogitMasks`, which are drawn one by one.
        masks_b: bool (M, H, W), likewise.

    Returns:
        (N, M) long.

    Raises:
        ValueError: if the two sets of masks differ in height or width.
    """
    if masks_a.shape[1:] != masks_b.shape[1:]:
        raise ValueError(
            f"Got masks of sizes {tuple(masks_a.shape[1:])} and {tuple(masks_b.shape[1:])}; "
            "bring both to one size first."
        )
    if masks_a.device.type == "cpu":
        bits = _packed(masks_a)
        return _shared_bits(bits, bits if masks_b is masks_a else _packed(masks_b))
    flat_a, flat_b = masks_a.flatten(1), masks_b.flatten(1)  # (N, H*W), (M, H*W)
    counts = torch.zeros(len(flat_a), len(flat_b), dtype=torch.long, device=flat_a.device)
    # Chunks bound the float copies; without autocast, since float16 cannot count to 65536.
    with torch.autocast(device_type=flat_a.device.type, enabled=False):
        for start in range(0, flat_a.shape[1], _PIXELS_PER_CHUNK):
            pixels = slice(start, start + _PIXELS_PER_CHUNK)
            counts += (flat_a[:, pixels].float() @ flat_b[:, pixels].float().T).long()
    return counts


def _packed(masks: Tensor) -> np.ndarray:
    """Bool (N, H, W) as bits, uint64 (N, ceil(H * W / 64)), one mask after another."""
    words = -(-masks.shape[1] * masks.shape[2] // 64)
    bits = np.zeros((len(masks), 8 * words), dtype=np.uint8)
    for row, mask in zip(bits, masks, strict=True):
        packed = np.packbits(mask.numpy())
        row[: len(packed)] = packed
    return bits.view(np.uint64)


def _shared_bits(bits_a: np.ndarray, bits_b: np.ndarray) -> Tensor:
    counts = np.zeros((len(bits_a), len(bits_b)), dtype=np.int64)
    for row, bits in zip(counts, bits_a, strict=True):
        row[:] = np.bitwise_count(bits & bits_b).sum(axis=1, dtype=np.int64)
    return torch.from_numpy(counts)


def mask_centre(mask: Tensor) -> tuple[float, float]:
    """The point that stands for a mask: its centroid, or its deepest point if that lies outside.

    Args:
        mask: bool (H, W).

    Returns:
        (x, y) in pixels, where the centre of the top left pixel is (0.5, 0.5).

    Raises:
        ValueError: if the mask has no pixel.
    """
    drawn = np.ascontiguousarray(mask.cpu().numpy()).view(np.uint8)
    # Sums of whole numbers, which are exact.
    sums = cv2.moments(drawn)
    if not sums["m00"]:
        raise ValueError(
            "Got a mask without any pixel, which has no centre; drop empty masks first."
        )
    x, y = sums["m10"] / sums["m00"] + 0.5, sums["m01"] / sums["m00"] + 0.5
    if drawn[int(y), int(x)]:
        return x, y
    left, top, width, height = cv2.boundingRect(drawn)
    crop = drawn[top : top + height, left : left + width]
    # One ring of background, so that the image border bounds the object like any other border.
    depth = cv2.distanceTransform(np.pad(crop, 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # Squares of distances are whole numbers. OpenCV's last bits depend on where the array lies in
    # memory, and would decide between points of equal depth.
    deepest_row, deepest_column = np.unravel_index(np.argmax(np.rint(depth**2)), depth.shape)
    return float(left + deepest_column - 0.5), float(top + deepest_row - 0.5)


def resize_lines(lines: Tensor, length: int) -> Tensor:
    """Resizing along one axis, as bilinear resizing does along each of its two.

    Args:
        lines: float (N, l).
        length: L of the result.

    Returns:
        (N, L).
    """
    return F.interpolate(lines[None], size=length, mode="linear", align_corners=False)[0]


def mask_coverage(masks: Tensor, size: tuple[int, int]) -> Tensor:
    """Share of each target pixel that a mask covers: the soft target of the mask losses.

    Args:
        masks: bool (N, h, w), or float (N, h, w) in [0, 1].
        size: (H, W) of the result.

    Returns:
        float32 (N, H, W) in [0, 1].
    """
    if len(masks) == 0:
        return torch.zeros((0, *size), dtype=torch.float32, device=masks.device)
    # Without antialiasing a thin object can vanish between the samples.
    resized = F.interpolate(
        masks[:, None].float(), size=size, mode="bilinear", align_corners=False, antialias=True
    )
    return resized[:, 0].clamp(0, 1)


def mask_nms(
    masks: Tensor, scores: Tensor, threshold: float, classes: Tensor | None = None
) -> Tensor:
    """Greedy suppression: a mask falls to a better scored one that it overlaps too much.

    Empty masks overlap nothing, so they stay; equal scores keep the input's order.

    Args:
        masks: bool (N, H, W).
        scores: (N,).
        threshold: masks are suppressed at an IoU strictly above this value.
        classes: (N,) long; when given, only masks of one class suppress each other.

    Returns:
        (kept,) long indices into the input, by descending score.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    conflicts = pairwise_mask_iou(masks, masks) > threshold
    if classes is not None:
        conflicts &= classes[:, None] == classes[None, :]
    conflicts = conflicts[order][:, order].cpu()
    alive = torch.ones(len(order), dtype=torch.bool, device="cpu")
    for rank in range(len(order)):
        if alive[rank]:
            alive[rank + 1 :] &= ~conflicts[rank, rank + 1 :]
    return order[alive.to(order.device)]
