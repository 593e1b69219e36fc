"""Scored, named mask candidates of one image: what every kind of output is made from.

`candidates` are detectron2 `Instances` at the original image size with

    scores               (K,) objectness in [0, 1]
    mask_logits          (K, H, W) float
    pred_classes         (K,) long class ids, -1 where there is no vocabulary or no class fits
    pred_category_names  CategoryNames of length K
    name_scores          (K,) mean log-probability of the name
    pred_roles           (K,) long super-patch roles
    pred_patches         (K,) long patch indices

and, where there is a vocabulary,

    mapped_classes       (K,) long class by any mapping rule, -1 unmapped
    mapping_rules        (K,) long indices into `MAPPING_RULES`
"""

from __future__ import annotations

import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.layers.mask_ops import masks_to_boxes
from rose_d2.modeling.mapping_rules import MAPPING_RULES, counts_at


def pixel_scores(candidates: Instances, index: int) -> Tensor:
    """Objectness times mask probability of one candidate, float32 (H, W) in [0, 1]."""
    return candidates.scores[index].float() * candidates.mask_logits[index].float().sigmoid()


def best_first(scores: Tensor, keep: Tensor | None = None) -> Tensor:
    """Indices by descending score, equal scores in the input's order.

    Args:
        scores: (K,).
        keep: bool (K,), leaves out the others.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order if keep is None else order[keep[order]]


def binarised(candidates: Instances) -> Instances:
    """A copy with `pred_masks` (logits above 0) and `pred_boxes` in place of `mask_logits`."""
    fields = {
        name: value for name, value in candidates.get_fields().items() if name != "mask_logits"
    }
    masks = candidates.mask_logits > 0
    return Instances(
        candidates.image_size, **fields, pred_masks=masks, pred_boxes=masks_to_boxes(masks)
    )


def classes_at(candidates: Instances, level: str) -> Tensor:
    """Classes of the candidates when only the mapping rules up to a level count.

    Args:
        candidates: with mapped_classes and mapping_rules.
        level: one of the vocabulary's levels.

    Returns:
        (K,) long, -1 where no rule up to the level knows the name.
    """
    counting = [counts_at(rule, level) for rule in MAPPING_RULES]
    rules = candidates.mapping_rules
    counts = torch.tensor(counting, device=rules.device)[rules]
    return torch.where(counts, candidates.mapped_classes, -1)
