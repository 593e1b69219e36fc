"""ROSE with second turns: answers, refined in conversation where ground truth says it is needed."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rose_d2.evaluation.ground_truth import DatasetGroundTruth
from rose_d2.refinement.regions import (
    RefinementSettings,
    RegionRefinement,
    better_of_both,
    refinement_input,
)
from rose_d2.refinement.tasks import TASK_REFINEMENTS, TaskRefinement, answer_class, is_answered
from rose_d2.structures.segments import found_instances

# What the instances say about other levels of the vocabulary than the headline's.
_LEVEL_FIELDS = ("mapped_classes", "mapping_rules")


class ROSEWithRefinement(nn.Module):
    """A ROSE whose answers went through conversation-based refinement (paper section 6.1).

    It is called as the model is, in the manner of detectron2's `GeneralizedRCNNWithTTA`. Which
    regions are refined, and in which situation, is decided with the ground truth of the input's
    dataset, as in the paper (for referring, every answer is refined). The model itself sees only
    image, prior mask, box and name. Semantic, instance and referring inputs are refined; outputs
    of other tasks pass through.

    Args and outputs of a call are those of `ROSE.forward` in evaluation, and besides

    * "before": the output of the first turn;
    * "refinements": dicts of round, box in words, box_of ("target" or "prior"), situation,
      chosen_with, name, class_id (before and after), target_class, iou_before and iou_after with
      the target.

    Names generated in refinement count at the vocabulary's headline level, so the output has no
    "levels", mapped_classes and mapping_rules; "before" keeps them.
    """

    def __init__(
        self, model: nn.Module, *, settings: RefinementSettings, batch_size: int = 8
    ) -> None:
        """
        Args:
            model: a ROSE.
            settings: how much is refined.
            batch_size: most second turns that go through the model at once.
        """
        super().__init__()
        self.model = model.module if isinstance(model, DistributedDataParallel) else model
        self.settings = settings
        self.batch_size = batch_size
        self._truths: dict[str, DatasetGroundTruth] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> ROSEWithRefinement:
        """Read TEST.REFINEMENT; all regions of an image go through the model at once."""
        settings = RefinementSettings.from_config(cfg)
        most = max(settings.worst_classes, settings.max_instances, cfg.TEST.IMS_PER_BATCH)
        return cls(model, settings=settings, batch_size=most)

    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """See the class.

        Raises:
            ValueError: in training, or an input is of no registered dataset.
        """
        if self.model.training:
            raise ValueError("Refinement is for evaluation: call .eval() on the model first.")
        batched_inputs = self.model.with_sam_features(batched_inputs)
        first = self.model(batched_inputs)
        chosen = [i for i, item in enumerate(batched_inputs) if item["task"] in TASK_REFINEMENTS]
        items = [batched_inputs[i] for i in chosen]
        outputs = list(first)
        for index, refined in zip(chosen, self._refine(items, [first[i] for i in chosen])):
            outputs[index] = {**refined, "before": first[index]}
        return outputs

    def _refine(self, items: Sequence[dict], first: Sequence[dict]) -> list[dict]:
        """All rounds over a batch."""
        outputs = [_headline_only(output) for output in first]
        histories: list[list[dict]] = [[] for _ in items]
        for number in range(1, self.settings.rounds + 1):
            regions = [self._regions(*pair) for pair in zip(items, outputs, strict=True)]
            answers = self._ask(items, regions)
            for index, (asked, given) in enumerate(zip(regions, answers, strict=True)):
                task = TASK_REFINEMENTS[items[index]["task"]]
                side = items[index]["image"].shape[-1]
                outputs[index] = task.merge(outputs[index], asked, given)
                histories[index] += [
                    {
                        "round": number,
                        "box": list(region.box(side, self.settings.box)),
                        "box_of": region.box_of(self.settings.box),
                        **_record(task, region, answer),
                    }
                    for region, answer in zip(asked, given, strict=True)
                ]
        return [
            {**output, "refinements": history}
            for output, history in zip(outputs, histories, strict=True)
        ]

    def _regions(self, item: dict, output: dict) -> list[RegionRefinement]:
        name = item.get("dataset_name")
        if not name:
            raise ValueError(
                "Refinement at evaluation needs the ground truth of a registered dataset, but an "
                "input has no dataset_name; use RosePredictor for images of no dataset."
            )
        truth = self._truths.setdefault(name, DatasetGroundTruth(name))
        return TASK_REFINEMENTS[item["task"]].regions(output, item, truth, self.settings)

    def _ask(
        self, items: Sequence[dict], regions: Sequence[Sequence[RegionRefinement]]
    ) -> list[list[dict]]:
        """The model's answers to all second turns, in batches, sorted by item again."""
        turns = [
            refinement_input(
                item, region, box=self.settings.box, within_box=self.settings.within_box
            )
            for item, asked in zip(items, regions, strict=True)
            for region in asked
        ]
        answers: list[dict] = []
        for start in range(0, len(turns), self.batch_size):
            answers += self.model(turns[start : start + self.batch_size])
        if self.settings.keep_better:
            priors = [region.prior for asked in regions for region in asked]
            answers = [
                answer if prior is None else better_of_both(answer, prior)
                for answer, prior in zip(answers, priors, strict=True)
            ]
        rest = iter(answers)
        return [[next(rest) for _ in asked] for asked in regions]


def _headline_only(output: dict) -> dict:
    """A copy without what other levels of the vocabulary say: refined names have one class."""
    plain = {key: value for key, value in output.items() if key != "levels"}
    for key in ("instances", "open_instances"):
        if key in plain:
            fields = plain[key].get_fields().items()
            kept = {name: value for name, value in fields if name not in _LEVEL_FIELDS}
            plain[key] = Instances(plain[key].image_size, **kept)
    return plain


def _record(task: TaskRefinement, region: RegionRefinement, answer: dict) -> dict:
    """What became of one region, as numbers and words."""
    answered = is_answered(answer)
    names = found_instances(answer).pred_category_names
    before = region.iou(region.prior)
    return {
        "situation": region.situation,
        "chosen_with": task.chosen_with,
        "name_before": region.name,
        "name_after": names[0] if answered else region.name,
        "class_before": region.class_id,
        "class_after": answer_class(answer) if answered else region.class_id,
        "target_class": region.target_class,
        "iou_before": before,
        "iou_after": region.iou(answer["ref_seg"]) if answered else before,
    }
