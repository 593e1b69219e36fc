"""From mask candidates to a panoptic segmentation, at one or all levels of name mapping."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.modeling.mask_candidates import best_first, classes_at, pixel_scores


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
        candidates: see `mask_candidates`.
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
    order = best_first(candidates.scores, keep).tolist()
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


def panoptic_levels(
    candidates: Instances,
    levels: Sequence[str],
    *,
    score_threshold: float,
    overlap_threshold: float,
    stuff_role: int,
    is_thing: Sequence[bool],
) -> dict[str, dict]:
    """Panoptic segmentation at every level of name mapping.

    Args:
        candidates: see `mask_candidates`; those unmapped at a level take no part in it.
        levels: the vocabulary's, in order.
        score_threshold: see `panoptic_inference`, as the other arguments.
        overlap_threshold: see there.
        stuff_role: see there.
        is_thing: see there.

    Returns:
        level -> {"panoptic_seg": (map, segments_info)}, one and the same dict for consecutive
        levels that map no further candidate above the score threshold.
    """
    outputs: dict[str, dict] = {}
    competing = candidates[candidates.scores >= score_threshold]
    known = competing.mapped_classes.new_full((len(competing),), -1)
    for level in levels:
        classes = classes_at(competing, level)
        if not outputs or not torch.equal(classes, known):
            competing.pred_classes = classes
            segmentation = panoptic_inference(
                competing,
                score_threshold=score_threshold,
                overlap_threshold=overlap_threshold,
                stuff_role=stuff_role,
                is_thing=is_thing,
            )
            output = {"panoptic_seg": segmentation}
        outputs[level] = output
        known = classes
    return outputs


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
            scores = pixel_scores(candidates, index)
            wins = (candidates.mask_logits[index] > 0) & (scores > best)
            best[wins] = scores[wins]
            owners[wins] = number
    return owners
