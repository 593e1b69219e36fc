"""From scored, named mask candidates of one image to the outputs of each task.

All functions take the same `candidates`: detectron2 `Instances` at the original image size with

    scores               (K,) objectness in [0, 1]
    mask_logits          (K, H, W) float
    pred_classes         (K,) long class ids, -1 where there is no vocabulary or no class fits
    pred_category_names  CategoryNames of length K
    name_scores          (K,) mean log-probability of the name
    pred_roles           (K,) long super-patch roles
    pred_patches         (K,) long patch indices

and use one candidate's full-size probabilities at a time.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.layers.mask_ops import masks_to_boxes
from rose_d2.layers.nms import mask_nms


def semantic_inference(
    candidates: Instances, num_classes: int, non_object_score: float, merge: str = "max"
) -> Tensor:
    """Class scores of every pixel, with one more channel for "no object" (paper section 6.3).

    Args:
        candidates: see the module; those of class -1 are dropped.
        num_classes: C.
        non_object_score: constant score of the extra channel.
        merge: "max" or "sum" of objectness times mask probability over the candidates of a class.

    Returns:
        float32 (C + 1, H, W) non-negative scores; the last channel is "no object".

    Raises:
        ValueError: if `merge` is unknown.
    """
    if merge not in ("max", "sum"):
        raise ValueError(f"Got TEST.SEMANTIC.MERGE {merge!r}; use 'max' or 'sum'.")
    size = candidates.image_size
    sem_seg = torch.zeros((num_classes + 1, *size), device=candidates.scores.device)
    sem_seg[num_classes] = non_object_score
    for index, class_id in enumerate(candidates.pred_classes.tolist()):
        if class_id < 0:
            continue
        pixel_scores = _pixel_scores(candidates, index)
        if merge == "max":
            sem_seg[class_id] = torch.maximum(sem_seg[class_id], pixel_scores)
        else:
            sem_seg[class_id] += pixel_scores
    return sem_seg


def instance_inference(candidates: Instances, score_threshold: float) -> Instances:
    """Instances above a score, best first.

    Args:
        candidates: see the module.
        score_threshold: smallest objectness to keep.

    Returns:
        Instances with `pred_masks` bool (N, H, W) and tight `pred_boxes` in place of the logits;
        candidates without a positive pixel are dropped.
    """
    instances = _binarise(candidates)
    keep = (instances.scores >= score_threshold) & instances.pred_masks.flatten(1).any(dim=1)
    return instances[_best_first(instances.scores, keep)]


def panoptic_inference(
    candidates: Instances,
    *,
    score_threshold: float,
    overlap_threshold: float,
    stuff_role: int,
    is_thing: Sequence[bool] | None = None,
) -> tuple[Tensor, list[dict]]:
    """One segment per pixel, like Mask2Former by objectness times mask probability.

    A pixel goes to the candidate that scores highest among those whose mask covers it. A segment
    that keeps less than `overlap_threshold` of its own mask is dropped and leaves its pixels void.
    Stuff candidates of one kind are merged before they compete (Mask2Former merges afterwards):
    several patches of one region propose it, and must not push each other under the threshold.

    Args:
        candidates: see the module.
        score_threshold: smallest objectness of a candidate.
        overlap_threshold: smallest share of its mask that a segment must keep.
        stuff_role: role that means stuff when there is no vocabulary.
        is_thing: flag per class of the vocabulary; candidates of class -1 are then dropped and
            stuff merges by class. None: thing or stuff by role, stuff merges by name.

    Returns:
        panoptic_seg: int32 (H, W), 0 where no segment is.
        segments_info: dicts with id, category_id (-1 without a vocabulary), isthing,
            category_name, score (the highest of its candidates) and name_score, best first.
    """
    keep = candidates.scores >= score_threshold
    if is_thing is not None:
        keep = keep & (candidates.pred_classes >= 0)
    order = _best_first(candidates.scores, keep).tolist()
    groups = _group_segments(candidates, order, stuff_role, is_thing)
    owners = _assign_pixels(candidates, groups)
    panoptic_seg = torch.zeros_like(owners)
    segments_info: list[dict] = []
    for number, group in enumerate(groups):
        visible = owners == number
        mask_area = (candidates.mask_logits[group.members] > 0).any(dim=0).sum()
        if not visible.any() or visible.sum() < overlap_threshold * mask_area:
            continue
        best = group.members[0]
        segments_info.append(
            {
                "id": len(segments_info) + 1,
                "category_id": int(candidates.pred_classes[best]) if is_thing is not None else -1,
                "isthing": group.is_thing,
                "category_name": candidates.pred_category_names[best],
                "score": float(candidates.scores[best]),
                "name_score": float(candidates.name_scores[best]),
            }
        )
        panoptic_seg[visible] = len(segments_info)
    return panoptic_seg, segments_info


def referring_inference(
    candidates: Instances,
    *,
    multi_target: bool = False,
    score_threshold: float = 0.0,
    nms_threshold: float = 1.0,
) -> dict:
    """The answer to a referring expression.

    Args:
        candidates: see the module.
        multi_target: False answers with the candidate of highest objectness, whatever its score.
            True answers with the union of all above `score_threshold` after NMS, possibly none.
        score_threshold: smallest objectness, only for `multi_target`.
        nms_threshold: IoU above which the worse mask is dropped, only for `multi_target`.

    Returns:
        ref_seg: bool (H, W), mask logits above 0; all False when there is no answer.
        ref_patch: patch index of the best candidate, -1 when there is no answer.
        ref_score: its objectness, 0.0 when there is no answer.
        instances: the chosen ones, with `pred_masks` and `pred_boxes`.
    """
    chosen = _binarise(candidates)
    if multi_target:
        chosen = chosen[_best_first(chosen.scores, chosen.scores >= score_threshold)]
        chosen = chosen[mask_nms(chosen.pred_masks, chosen.scores, nms_threshold)]
    else:
        chosen = chosen[_best_first(chosen.scores)[:1]]
    found = len(chosen) > 0
    return {
        "ref_seg": chosen.pred_masks.any(dim=0),
        "ref_patch": int(chosen.pred_patches[0]) if found else -1,
        "ref_score": float(chosen.scores[0]) if found else 0.0,
        "instances": chosen,
    }


@dataclass(frozen=True)
class _SegmentGroup:
    """Candidates that form one panoptic segment, best first."""

    members: list[int]
    is_thing: bool


def _group_segments(
    candidates: Instances,
    order: Sequence[int],
    stuff_role: int,
    is_thing: Sequence[bool] | None,
) -> list[_SegmentGroup]:
    """One group per thing, one per kind of stuff; in the given order of candidates."""
    groups: dict[Hashable, _SegmentGroup] = {}
    classes, roles = candidates.pred_classes.tolist(), candidates.pred_roles.tolist()
    for index in order:
        if is_thing is None:
            thing, kind = roles[index] != stuff_role, candidates.pred_category_names[index]
        else:
            thing, kind = bool(is_thing[classes[index]]), classes[index]
        key = ("thing", index) if thing else ("stuff", kind)
        groups.setdefault(key, _SegmentGroup([], thing)).members.append(index)
    return list(groups.values())


def _assign_pixels(candidates: Instances, groups: Sequence[_SegmentGroup]) -> Tensor:
    """Number of the group that wins each pixel, int32 (H, W), -1 for none."""
    device = candidates.scores.device
    best = torch.zeros(candidates.image_size, device=device)
    owners = torch.full(candidates.image_size, -1, dtype=torch.int32, device=device)
    for number, group in enumerate(groups):
        for index in group.members:
            pixel_scores = _pixel_scores(candidates, index)
            wins = (candidates.mask_logits[index] > 0) & (pixel_scores > best)
            best[wins] = pixel_scores[wins]
            owners[wins] = number
    return owners


def _pixel_scores(candidates: Instances, index: int) -> Tensor:
    return candidates.scores[index].float() * candidates.mask_logits[index].float().sigmoid()


def _best_first(scores: Tensor, keep: Tensor | None = None) -> Tensor:
    """Indices by descending score, equal scores in the input's order; only where `keep`."""
    order = torch.argsort(scores, descending=True, stable=True)
    return order if keep is None else order[keep[order]]


def _binarise(candidates: Instances) -> Instances:
    """A copy with `pred_masks` and `pred_boxes` in place of `mask_logits`."""
    fields = {
        name: value for name, value in candidates.get_fields().items() if name != "mask_logits"
    }
    masks = candidates.mask_logits > 0
    return Instances(
        candidates.image_size, **fields, pred_masks=masks, pred_boxes=masks_to_boxes(masks)
    )
