"""From the candidates of one image to the outputs of its task.

Candidates are Instances of the original size (H, W) with `scores` (K,), objectness in 0..1;
`mask_logits` (K, H, W); `pred_category_names` and their probabilities `name_scores`;
`pred_classes` (K,), -1 where a vocabulary has no class; `pred_roles` and `pred_patches` (K,). With
a vocabulary also `mapped_classes` and `mapping_rules`, see `classes_at`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.layers.masks import mask_nms, masks_to_boxes
from rose_d2.vocabulary.vocabulary import MAPPING_RULES, counts_at

MERGES = ("max", "sum")


def instance_inference(candidates: Instances, score_threshold: float) -> Instances:
    """Instances above a score, best first.

    Args:
        candidates: of one image.
        score_threshold: smallest objectness to keep.

    Returns:
        Instances with `pred_masks` bool (N, H, W) and tight `pred_boxes` in place of the logits;
        candidates without a positive pixel are dropped.
    """
    instances = binarised(candidates)
    keep = (instances.scores >= score_threshold) & instances.pred_masks.flatten(1).any(dim=1)
    return instances[best_first(instances.scores, keep)]


def known_instances(found: Instances, is_thing: Sequence[bool]) -> Instances:
    """The instances that a dataset knows, which is what detectron2 means by the word.

    Args:
        found: N instances, whatever their names.
        is_thing: flag per class of the dataset.

    Returns:
        Those whose class is a thing, in order; `found` itself where that is all of them.
    """
    # The last entry is that of class -1.
    things = torch.tensor([*is_thing, False], device=found.pred_classes.device)
    known = things[found.pred_classes]
    return found if known.all() else found[known]


def referring_inference(
    candidates: Instances,
    *,
    multi_target: bool = False,
    score_threshold: float = 0.0,
    nms_threshold: float = 1.0,
) -> dict:
    """The answer to a referring expression.

    Args:
        candidates: of one image.
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
    chosen = binarised(candidates)
    if multi_target:
        chosen = chosen[best_first(chosen.scores, chosen.scores >= score_threshold)]
        chosen = chosen[mask_nms(chosen.pred_masks, chosen.scores, nms_threshold)]
    else:
        chosen = chosen[best_first(chosen.scores)[:1]]
    found = len(chosen) > 0
    return {
        "ref_seg": chosen.pred_masks.any(dim=0),
        "ref_patch": int(chosen.pred_patches[0]) if found else -1,
        "ref_score": float(chosen.scores[0]) if found else 0.0,
        "instances": chosen,
    }


def semantic_inference(
    candidates: Instances,
    levels: Sequence[str],
    headline_level: str,
    num_classes: int,
    non_object_score: float,
    merge: str = "max",
) -> dict:
    """Semantic segmentation at every level of name mapping.

    Levels only ever map more candidates, so each candidate is added once.

    Args:
        candidates: of one image; those unmapped at a level take no part in it.
        levels: the vocabulary's, in order.
        headline_level: one of them.
        num_classes: C.
        non_object_score: constant score of "no object".
        merge: "max" or "sum" of the candidates of a class.

    Returns:
        sem_seg: float32 (C, H, W) scores at the headline level.
        sem_seg_labels: int16 (H, W), the best class of each pixel, C where "no object" wins.
        non_object_score: as given.
        levels: level -> {"sem_seg_labels": int16 (H, W), C = no object}, one and the same dict
            for consecutive levels that map no further candidate.

    Raises:
        ValueError: if `merge` is unknown.
    """
    device = candidates.scores.device
    scores = SemanticScores(candidates.image_size, num_classes, non_object_score, merge, device)
    added = torch.zeros(len(candidates), dtype=torch.bool, device=device)
    outputs: dict = {"levels": {}, "non_object_score": non_object_score}
    for level in levels:
        classes = classes_at(candidates, level)
        further = (classes >= 0) & ~added
        for index in further.nonzero().flatten().tolist():
            scores.add(int(classes[index]), pixel_scores(candidates, index))
        if not outputs["levels"] or further.any():
            labels = {"sem_seg_labels": scores.labels()}
        outputs["levels"][level] = labels
        added |= further
        if level == headline_level:
            outputs |= {"sem_seg": scores.dense(), **labels}
    return outputs


class SemanticScores:
    """Class scores of every pixel, with one more class for "no object" (paper section 6.3).

    Only the classes that occur take memory: large vocabularies have hundreds, an image a few.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_classes: int,
        non_object_score: float,
        merge: str = "max",
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            size: (H, W).
            num_classes: C.
            non_object_score: constant score of "no object".
            merge: "max" or "sum" of the candidates of a class.
            device: of the scores.

        Raises:
            ValueError: if `merge` is unknown.
        """
        if merge not in MERGES:
            raise ValueError(
                f"Got TEST.SEMANTIC.MERGE {merge!r}; use {' or '.join(map(repr, MERGES))}."
            )
        self.size = size
        self.num_classes = num_classes
        self.non_object_score = non_object_score
        self._combine = torch.maximum if merge == "max" else torch.add
        self._device = device
        self._channels: dict[int, Tensor] = {}

    def add(self, class_id: int, scores: Tensor) -> None:
        """Add one candidate.

        Args:
            class_id: its class, 0 to C - 1.
            scores: non-negative (H, W), objectness times mask probability.
        """
        known = self._channels.get(class_id)
        self._channels[class_id] = scores if known is None else self._combine(known, scores)

    def dense(self) -> Tensor:
        """The channels of all classes, float32 (C, H, W)."""
        sem_seg = torch.zeros((self.num_classes, *self.size), device=self._device)
        for class_id, scores in self._channels.items():
            sem_seg[class_id] = scores
        return sem_seg

    def labels(self) -> Tensor:
        """The class of the highest score per pixel, the smaller id where scores are equal.

        Returns:
            int16 (H, W), C where "no object" wins.
        """
        best = torch.full(self.size, self.non_object_score, device=self._device)
        labels = torch.full(self.size, self.num_classes, dtype=torch.int16, device=self._device)
        # Descending, so that the smallest of the classes that tie comes last and stays.
        for class_id in sorted(self._channels, reverse=True):
            wins = self._channels[class_id] >= best
            best = torch.where(wins, self._channels[class_id], best)
            labels[wins] = class_id
        return labels


def semantic_labels(sem_seg: Tensor, non_object_score: float) -> Tensor:
    """What `SemanticScores.labels` says of scores that were changed since.

    Args:
        sem_seg: non-negative (C, H, W).
        non_object_score: constant score of "no object".

    Returns:
        int16 (H, W), C where "no object" wins.
    """
    # Nearly all channels of a large vocabulary are empty.
    present = (sem_seg.flatten(1).amax(dim=1) > 0).nonzero().flatten()
    scores = SemanticScores(
        tuple(sem_seg.shape[1:]), len(sem_seg), non_object_score, device=sem_seg.device
    )
    for class_id in present.tolist():
        scores.add(class_id, sem_seg[class_id])
    return scores.labels()


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
        candidates: of one image.
        score_threshold: smallest objectness of a candidate.
        overlap_threshold: smallest share of its mask that a segment must keep.
        stuff_role: role that means stuff when there is no vocabulary.
        is_thing: flag per class of the vocabulary; candidates of class -1 are then dropped and
            stuff merges by class. None: thing or stuff by role, stuff merges by name.

    Returns:
        panoptic_seg: int32 (H, W), 0 where no segment is.
        segments_info: dicts with id, category_id (its `pred_classes`), isthing, category_name,
            score (the highest of its candidates) and name_score, best first.
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
                "category_id": int(candidates.pred_classes[best]),
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
        candidates: of one image; those unmapped at a level take no part in it.
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
