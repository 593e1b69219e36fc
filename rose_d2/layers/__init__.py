"""Stateless tensor maths and small building blocks."""

from rose_d2.layers.losses import (
    dice_loss,
    info_nce_loss,
    objectness_loss,
    sigmoid_bce_mask_loss,
    text_cross_entropy,
)
from rose_d2.layers.mask_ops import (
    mask_centre,
    mask_coverage,
    masks_to_boxes,
    pairwise_mask_iou,
    resize_masks,
)
from rose_d2.layers.mlp import MLP
from rose_d2.layers.nms import mask_nms
from rose_d2.layers.token_trie import TokenTrie

__all__ = [
    "MLP",
    "TokenTrie",
    "dice_loss",
    "info_nce_loss",
    "mask_centre",
    "mask_coverage",
    "mask_nms",
    "masks_to_boxes",
    "objectness_loss",
    "pairwise_mask_iou",
    "resize_masks",
    "sigmoid_bce_mask_loss",
    "text_cross_entropy",
]
