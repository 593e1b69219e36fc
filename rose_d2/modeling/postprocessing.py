"""From the candidates of one image to the outputs of its task.

Candidates are Instances of the original size (H, W) with `scores` (K,), objectness in 0..1;
`pred_masks`, K `LogitMasks`; `pred_category_names` and their probabilities `name_scores`;
`pred_classes` (K,), -1 where a vocabulary has no class; `pred_roles` and `pred_patches` (K,). With
a vocabulary also `mapped_classes` and `mapping_rules`, see `classes_at`.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.layers.lazy_tensor import LazyTensor
from rose_d2.layers.logit_masks import LogitMasks, Window, stripes
from rose_d2.layers.masks import mask_nms
from rose_d2.vocabulary.vocabulary import MAPPING_RULES, counts_at

MERGES = ("max", "sum")


def instance_inference(candidates: Instances, score_threshold: float) -> Instances:
    """Instances above a score, best first.

    Args:
        candidates: of one image.
        score_threshold: smallest objectness to keep.

    Returns:
        N of them, with tight `pred_boxes`; those without a pixel are dropped.
    """
    keep = candidates.scores >= score_threshold
    instances = boxed(candidates[best_first(candidates.scores, keep)])
    return instances[best_first(instances.scores, instances.pred_boxes.nonempty())]


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
        ref_seg: bool (H, W); all False when there is no answer.
        ref_patch: patch index of the best candidate, -1 when there is no answer.
        ref_score: its objectness, 0.0 when there is no answer.
        instances: the chosen ones, with `pred_boxes`.
    """
    if multi_target:
        chosen = candidates[best_first(candidates.scores, candidates.scores >= score_threshold)]
        chosen = chosen[mask_nms(chosen.pred_masks.tensor, chosen.scores, nms_threshold)]
    else:
        chosen = candidates[best_first(candidates.scores)[:1]]
    chosen = boxed(chosen)
    found = len(chosen) > 0
    return {
        "ref_seg": chosen.pred_masks.union(),
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

    Args:
        candidates: of one image; those unmapped at a level take no part in it.
        levels: the vocabulary's, in order.
        headline_level: one of them.
        num_classes: C.
        non_object_score: constant score of "no object".
        merge: "max" or "sum" of the candidates of a class.

    Returns:
        sem_seg: `SemanticScores`, (C, H, W), at the headline level.
        sem_seg_labels: int16 (H, W), the best class of each pixel, C where "no object" wins.
        non_object_score: as given.
        levels: level -> {"sem_seg_labels": int16 (H, W), C = no object}, one and the same dict
            for consecutive levels that map no further candidate.

    Raises:
        ValueError: if `merge` is unknown.
    """
    outputs: dict = {"levels": {}, "non_object_score": non_object_score}
    known = None
    for level in levels:
        classes = classes_at(candidates, level)
        if known is None or not torch.equal(classes, known):
            scores = SemanticScores(candidates, classes, num_classes, non_object_score, merge)
            labels = {"sem_seg_labels": scores.labels()}
        outputs["levels"][level] = labels
        known = classes
        if level == headline_level:
            outputs |= {"sem_seg": scores, **labels}
    return outputs


class SemanticScores(LazyTensor):
    """Class scores of every pixel, float32 (C, H, W), of which an image has few but zeros.

    "No object" is one more class, of a constant score (paper section 6.3). The score of a candidate
    is its objectness times its mask probability.
    """

    def __init__(
        self,
        candidates: Instances,
        classes: Tensor,
        num_classes: int,
        non_object_score: float,
        merge: str = "max",
    ) -> None:
        """
        Args:
            candidates: of one image.
            classes: (K,) long, of each; -1 leaves it out.
            num_classes: C.
            non_object_score: constant score of "no object".
            merge: "max" or "sum" of the candidates of a class.

        Raises:
            ValueError: if `merge` is unknown.
        """
        if merge not in MERGES:
            raise ValueError(
                f"Got TEST.SEMANTIC.MERGE {merge!r}; use {' or '.join(map(repr, MERGES))}."
            )
        self.num_classes = num_classes
        self.non_object_score = non_object_score
        self._merge = merge
        self._candidates = candidates[classes >= 0]
        self._classes = classes[classes >= 0].tolist()

    @property
    def shape(self) -> torch.Size:
        """(C, H, W)."""
        return torch.Size((self.num_classes, *self._candidates.image_size))

    @property
    def dtype(self) -> torch.dtype:
        """float32."""
        return torch.float32

    @property
    def device(self) -> torch.device:
        """Of the scores."""
        return self._candidates.scores.device

    @property
    def tensor(self) -> Tensor:
        """The scores, which take C x H x W x 4 bytes."""
        sem_seg = torch.zeros(self.shape, device=self.device)
        for window in _stripes(self._candidates.image_size):
            for class_id, channel in self._channels(window).items():
                sem_seg[(class_id, *window)] = channel
        return sem_seg

    def labels(self) -> Tensor:
        """The class of the highest score per pixel, the smaller id where scores are equal.

        Returns:
            int16 (H, W), C where "no object" wins.
        """
        if self._merge == "max" and self.non_object_score > 0:
            return self._labels_of_best()
        size = self._candidates.image_size
        labels = torch.empty(size, dtype=torch.int16, device=self.device)
        for window in _stripes(size):
            best = torch.full(labels[window].shape, self.non_object_score, device=self.device)
            labels[window] = _best_class(self._channels(window), self.num_classes, best)
        return labels

    def _labels_of_best(self) -> Tensor:
        """The labels where one candidate decides, only drawn where it may win."""
        size, device = self._candidates.image_size, self.device
        best = torch.full(size, self.non_object_score, device=device)
        labels = torch.full(size, self.num_classes, dtype=torch.int16, device=device)
        masks, scores = self._candidates.pred_masks, self._candidates.scores.float()
        # Where the score of a candidate is that of "no object", and a little below for rounding.
        even = torch.logit((self.non_object_score / scores).clamp(0, 1)) - 1e-3
        above = LogitMasks(masks.logits.float() - even[:, None, None], masks.rows, masks.columns)
        for index, class_id in enumerate(self._classes):
            for window, logits in above.windows(index):
                own = scores[index] * (logits + even[index]).sigmoid()
                wins = own > best[window]
                wins |= (own == best[window]) & (class_id < labels[window])
                best[window] = torch.where(wins, own, best[window])
                labels[window].masked_fill_(wins, class_id)
        return labels

    def _channels(self, window: Window) -> dict[int, Tensor]:
        """Scores of the classes that occur, float32 (h, w) each."""
        combine = torch.maximum if self._merge == "max" else torch.add
        channels: dict[int, Tensor] = {}
        for index, class_id in enumerate(self._classes):
            logits = self._candidates.pred_masks.window(index, window)
            scores = self._candidates.scores[index].float() * logits.sigmoid()
            known = channels.get(class_id)
            channels[class_id] = scores if known is None else combine(known, scores)
        return channels


def semantic_labels(sem_seg: Tensor, non_object_score: float) -> Tensor:
    """What `SemanticScores.labels` says of scores that were changed since.

    Args:
        sem_seg: non-negative (C, H, W).
        non_object_score: constant score of "no object".

    Returns:
        int16 (H, W), C where "no object" wins.
    """
    # Nearly all channels of a large vocabulary are empty.
    present = (sem_seg.flatten(1).amax(dim=1) > 0).nonzero().flatten().tolist()
    best = sem_seg.new_full(sem_seg.shape[1:], non_object_score)
    return _best_class({index: sem_seg[index] for index in present}, len(sem_seg), best)


def _best_class(channels: Mapping[int, Tensor], num_classes: int, best: Tensor) -> Tensor:
    """The class of the highest score per pixel, the smaller id where scores are equal.

    Args:
        channels: class id -> scores (h, w).
        num_classes: C, which stands for "no object".
        best: (h, w), the scores of "no object", which loses where scores are equal.

    Returns:
        int16 (h, w).
    """
    labels = torch.full(best.shape, num_classes, dtype=torch.int16, device=best.device)
    # Descending, so that the smallest of the classes that tie comes last and stays.
    for class_id in sorted(channels, reverse=True):
        wins = channels[class_id] >= best
        best = torch.where(wins, channels[class_id], best)
        labels[wins] = class_id
    return labels


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
    owners, mask_areas = _assign_pixels(candidates, groups)
    visible = _count_pixels(owners, len(groups))
    ids = torch.zeros(len(groups) + 1, dtype=torch.int32, device=owners.device)
    segments_info: list[dict] = []
    for number, group in enumerate(groups):
        if not visible[number] or visible[number] < overlap_threshold * mask_areas[number]:
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
        ids[number] = len(segments_info)
    return _look_up(ids, owners), segments_info


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


def _assign_pixels(
    candidates: Instances, groups: Sequence[_SegmentGroup]
) -> tuple[Tensor, list[int]]:
    """Which group wins each pixel, int16 (H, W), their number for none; pixels of every mask."""
    size, device = candidates.image_size, candidates.scores.device
    best = torch.zeros(size, device=device)
    owners = torch.full(size, len(groups), dtype=torch.int16, device=device)
    areas = torch.zeros(len(groups), dtype=torch.long, device=device)
    for number, group in enumerate(groups):
        for index in group.members:
            for window, logits in candidates.pred_masks.windows(index):
                inside = logits > 0
                scores = candidates.scores[index].float() * logits.sigmoid()
                wins = inside & (scores > best[window])
                best[window] = torch.where(wins, scores, best[window])
                owners[window].masked_fill_(wins, number)
                areas[number] += inside.sum()
        if len(group.members) > 1:  # what they share counts once
            areas[number] = candidates.pred_masks[group.members].union().sum()
    return owners, areas.tolist()


def _stripes(size: Sequence[int]) -> Iterator[Window]:
    """A whole image of (H, W) in `stripes`."""
    height, width = size
    return stripes((slice(0, height), slice(0, width)))


def _count_pixels(owners: Tensor, num_groups: int) -> list[int]:
    """Pixels that each group won."""
    counts = torch.zeros(num_groups + 1, dtype=torch.long, device=owners.device)
    for window in _stripes(owners.shape):
        numbers = owners[window].flatten().long()
        counts.scatter_add_(0, numbers, torch.ones_like(numbers))
    return counts[:num_groups].tolist()


def _look_up(ids: Tensor, owners: Tensor) -> Tensor:
    """The ids of the groups that won each pixel, (H, W); indices take eight bytes, so in parts."""
    found = ids.new_empty(owners.shape)
    for window in _stripes(owners.shape):
        found[window] = ids[owners[window].long()]
    return found


def best_first(scores: Tensor, keep: Tensor | None = None) -> Tensor:
    """Indices by descending score, equal scores in the input's order.

    Args:
        scores: (K,).
        keep: bool (K,), leaves out the others.
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order if keep is None else order[keep[order]]


def boxed(candidates: Instances) -> Instances:
    """A copy with tight `pred_boxes`."""
    fields = candidates.get_fields()
    return Instances(candidates.image_size, **fields, pred_boxes=candidates.pred_masks.boxes())


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
