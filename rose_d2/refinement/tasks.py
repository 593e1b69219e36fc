"""What differs between the tasks that can be refined: which regions, and how they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from rose_d2.evaluation.ground_truth import DatasetGroundTruth
from rose_d2.modeling.postprocessing import semantic_labels
from rose_d2.refinement.regions import (
    RefinementSettings,
    RegionRefinement,
    instance_regions,
    referring_regions,
    semantic_regions,
)
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.segments import found_instances

GROUND_TRUTH = "ground truth"
EVERY_ANSWER = "every answer"
# A repaired channel is replaced before a misnamed region is erased from it, and new pixels are
# written last.
_ORDER = ("mask", "category", "missed")


class TaskRefinement(Protocol):
    """One task's part of `ROSEWithRefinement`.

    Attributes:
        chosen_with: what decides which regions are refined.
    """

    chosen_with: str

    def regions(
        self, output: dict, item: dict, truth: DatasetGroundTruth, settings: RefinementSettings
    ) -> list[RegionRefinement]:
        """The regions to refine.

        Args:
            output: of the model for this item, or of an earlier round.
            item: the model's input.
            truth: of its dataset.
            settings: thresholds and counts.
        """

    def merge(
        self, output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
    ) -> dict:
        """A refined copy of the output.

        Args:
            output: of the model.
            regions: of this output.
            answers: one for each of them.
        """


class SemanticRefinement:
    """The worst categories by UmI, in the situations of Algorithm 1.

    The instances of the output stay as they were: what is refined is the score map.
    """

    chosen_with = GROUND_TRUTH

    def regions(
        self, output: dict, item: dict, truth: DatasetGroundTruth, settings: RefinementSettings
    ) -> list[RegionRefinement]:
        predicted = output["sem_seg_labels"].long()
        labels = truth.labels(item).to(predicted.device)
        return semantic_regions(predicted, labels, truth.class_names, settings)

    def merge(
        self, output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
    ) -> dict:
        hidden = output["non_object_score"]
        sem_seg = merge_semantic(output["sem_seg"], regions, answers, hidden)
        labels = semantic_labels(sem_seg, hidden)
        return {**output, "sem_seg": sem_seg, "sem_seg_labels": labels}


class InstanceRefinement:
    """Predictions under 50 IoU, in the situation of their class."""

    chosen_with = GROUND_TRUTH

    def regions(
        self, output: dict, item: dict, truth: DatasetGroundTruth, settings: RefinementSettings
    ) -> list[RegionRefinement]:
        return instance_regions(found_instances(output), truth.objects(item), settings)

    def merge(
        self, output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
    ) -> dict:
        found = merge_instances(found_instances(output), regions, answers)
        # Instance data have no classes of stuff.
        return {**output, "open_instances": found, "instances": found[found.pred_classes >= 0]}


class ReferringRefinement:
    """Every answer, as situation "mask"; ground truth only scores what became of it."""

    chosen_with = EVERY_ANSWER

    def regions(
        self, output: dict, item: dict, truth: DatasetGroundTruth, settings: RefinementSettings
    ) -> list[RegionRefinement]:
        return referring_regions(output["ref_seg"], truth.target(item), item["sentence"])

    def merge(
        self, output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
    ) -> dict:
        return merge_referring(output, regions, answers)


TASK_REFINEMENTS: dict[str, TaskRefinement] = {
    "semantic": SemanticRefinement(),
    "instance": InstanceRefinement(),
    "referring": ReferringRefinement(),
}


def merge_semantic(
    sem_seg: Tensor,
    regions: Sequence[RegionRefinement],
    answers: Sequence[dict],
    non_object_score: float,
) -> Tensor:
    """Replace, rename and add regions of a score map.

    * mask: the answer takes the place of its class's channel, whatever name it has;
    * category: the prior is erased under the wrong name, and the answer written under its own;
    * missed: the answer is written under its own name.

    An answer whose name fits no class is not written. Written pixels score higher than all that
    was there, since the user pointed at them; where two answers overlap, the higher objectness
    wins. Pixels that a repaired mask gives up go to the best other class that beats "no object"
    there, and stay what they were where there is none, for nobody said that nothing is there.

    Args:
        sem_seg: (C, H, W) non-negative scores.
        regions: of `semantic_regions`.
        answers: one for each of them.
        non_object_score: score of "no object".

    Returns:
        (C, H, W).
    """
    merged = sem_seg.clone()
    ceiling = max(float(merged.max()), non_object_score)
    pairs = [pair for pair in zip(regions, answers, strict=True) if is_answered(pair[1])]
    for region, answer in sorted(pairs, key=lambda pair: _ORDER.index(pair[0].situation)):
        score = ceiling + float(answer["ref_score"])
        class_id = answer_class(answer)
        if region.situation == "mask":
            class_id = region.position
            _give_up(merged[class_id], region.prior, non_object_score)
        elif region.situation == "category":
            merged[region.class_id][region.prior] = 0
        if class_id >= 0:
            written = answer["ref_seg"].to(merged.device) * score
            merged[class_id] = torch.maximum(merged[class_id], written)
    return merged


def _give_up(scores: Tensor, region: Tensor, non_object_score: float) -> None:
    """Take all from a class, in place, except that it still beats "no object" in its region."""
    hidden = torch.full_like(scores, non_object_score)
    least = torch.nextafter(hidden, torch.full_like(scores, torch.inf))
    scores.copy_(torch.where(region, torch.minimum(scores, least), 0))


def merge_instances(
    instances: Instances, regions: Sequence[RegionRefinement], answers: Sequence[dict]
) -> Instances:
    """Replace masks and names of predictions; their scores and order stay.

    Args:
        instances: N predictions.
        regions: of `instance_regions`.
        answers: one for each of them.

    Returns:
        N predictions, with the fields that answers have too.
    """
    pairs = [pair for pair in zip(regions, answers, strict=True) if is_answered(pair[1])]
    if not pairs:
        return instances
    rows = [region.position for region, _ in pairs]
    new = Instances.cat([_plain(found_instances(answer), instances) for _, answer in pairs])
    fields = {
        name: _with_rows(value, rows, new.get(name)) if name != "scores" else value
        for name, value in instances.get_fields().items()
        if new.has(name)
    }
    return Instances(instances.image_size, **fields)


def merge_referring(
    output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
) -> dict:
    """Replace the answer to an expression.

    Args:
        output: of the model for task "referring".
        regions: of `referring_regions`, at most one.
        answers: one for each of them.
    """
    replaced = [answer for _, answer in zip(regions, answers, strict=True) if is_answered(answer)]
    return {**output, **replaced[0]} if replaced else output


def is_answered(answer: dict) -> bool:
    """Whether the model drew anything."""
    return bool(answer["ref_seg"].any())


def answer_class(answer: dict) -> int:
    """Class of the answer's generated name, -1 where it fits none."""
    classes = found_instances(answer).pred_classes
    return int(classes[0]) if len(classes) else -1


def _plain(answer: Instances, like: Instances) -> Instances:
    """The one instance of an answer, with the fields that `like` has."""
    fields = {name: value for name, value in answer.get_fields().items() if like.has(name)}
    return Instances(answer.image_size, **fields)[:1]


def _with_rows(values: Any, rows: Sequence[int], new: Any) -> Any:
    """A copy of one field with some of its rows replaced, in order."""
    if isinstance(values, CategoryNames):
        names = list(values)
        for row, name in zip(rows, new, strict=True):
            names[row] = name
        return CategoryNames(names)
    if isinstance(values, Boxes):
        return Boxes(_with_rows(values.tensor, rows, new.tensor))
    copy = values.clone()
    copy[list(rows)] = new.to(copy)
    return copy
