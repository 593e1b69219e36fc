"""Non-maximum suppression on masks."""

import torch
from torch import Tensor

from rose_d2.layers.mask_ops import pairwise_mask_iou


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
    alive = torch.ones(len(order), dtype=torch.bool)
    for rank in range(len(order)):
        if alive[rank]:
            alive[rank + 1 :] &= ~conflicts[rank, rank + 1 :]
    return order[alive.to(order.device)]
