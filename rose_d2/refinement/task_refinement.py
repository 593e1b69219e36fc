"""What differs between the tasks that can be refined: which regions, and how they are merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from rose_d2.evaluation.prediction_encoding import best_labels
from rose_d2.refinement.dataset_ground_truth import DatasetGroundTruth
from rose_d2.refinement.merging import merge_instances, merge_referring, merge_semantic
from rose_d2.refinement.region_refinement import RegionRefinement
from rose_d2.refinement.region_selection import (
    instance_regions,
    referring_regions,
    semantic_regions,
)
from rose_d2.refinement.settings import RefinementSettings

GROUND_TRUTH = "ground truth"
EVERY_ANSWER = "every answer"


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
        predicted = best_labels(output["sem_seg"]).long()
        labels = truth.labels(item).to(predicted.device)
        return semantic_regions(predicted, labels, truth.class_names, settings)

    def merge(
        self, output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
    ) -> dict:
        return {**output, "sem_seg": merge_semantic(output["sem_seg"], regions, answers)}


class InstanceRefinement:
    """Predictions under 50 IoU, in the situation of their class."""

    chosen_with = GROUND_TRUTH

    def regions(
        self, output: dict, item: dict, truth: DatasetGroundTruth, settings: RefinementSettings
    ) -> list[RegionRefinement]:
        return instance_regions(output["instances"], truth.objects(item), settings)

    def merge(
        self, output: dict, regions: Sequence[RegionRefinement], answers: Sequence[dict]
    ) -> dict:
        return {**output, "instances": merge_instances(output["instances"], regions, answers)}


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
