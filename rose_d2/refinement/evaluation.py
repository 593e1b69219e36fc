"""Evaluation before and after refinement, and what became of the refined regions."""

from __future__ import annotations

import itertools
import logging
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table
from torch import nn

from rose_d2.evaluation.loop import leave_out
from rose_d2.refinement.rose_with_refinement import ROSEWithRefinement
from rose_d2.refinement.tasks import GROUND_TRUTH
from rose_d2.structures.segments import SITUATIONS

logger = logging.getLogger(__name__)

RESULT = "refinement"
# What a second turn knows, by TEST.REFINEMENT.BOX.
BOX_WORDS = {
    "target": "boxes of the targets, as a person draws them",
    "prior": "boxes of the answers",
}
# Evaluator types of the tasks that are refined.
_REFINED_TYPES = ("coco", "sem_seg", "refcoco")


class RefinementEvaluator(DatasetEvaluator):
    """Scores the outputs of `ROSEWithRefinement` twice, before and after refinement.

    The result has, for every task of the ordinary evaluators, "<task>" (after), "<task>_before"
    and "<task>_gain" (after minus before, metric by metric), and `RESULT`, see
    `refinement_metrics`. The log says what regions and boxes were chosen with.
    """

    def __init__(
        self,
        before: DatasetEvaluator,
        after: DatasetEvaluator,
        *,
        box: str = "target",
        distributed: bool = True,
    ) -> None:
        """
        Args:
            before: evaluators of the dataset; their files should lie in a folder of their own.
            after: the same evaluators once more.
            box: TEST.REFINEMENT.BOX.
            distributed: gather the refinements of all processes.
        """
        self._before = before
        self._after = after
        self._box = box
        self._distributed = distributed
        self._refinements: list[dict] = []

    def reset(self) -> None:
        """Forget all outputs."""
        self._before.reset()
        self._after.reset()
        self._refinements = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: of the model.
            outputs: of `ROSEWithRefinement`.

        Raises:
            ValueError: the outputs come from a model without refinement.
        """
        for output in outputs:
            if "before" not in output:
                raise ValueError(
                    "An output has no entry 'before'; evaluate a model that "
                    "build_evaluation_model made with TEST.REFINEMENT.ENABLED."
                )
            self._refinements += output["refinements"]
        self._before.process(inputs, [output["before"] for output in outputs])
        self._after.process(inputs, outputs)

    def leave_out(self, samples: list[dict]) -> None:
        """Give up samples before and after refinement, where their evaluators can."""
        for evaluator in (self._before, self._after):
            leave_out(evaluator, samples)

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            The results described above; empty on all but the main process.
        """
        before, after = self._before.evaluate(), self._after.evaluate()
        refinements = self._refinements
        if self._distributed:
            refinements = list(itertools.chain(*comm.all_gather(refinements)))
            if not comm.is_main_process():
                return OrderedDict()
        results: OrderedDict = OrderedDict()
        # The levels of the vocabulary are results of "before" only.
        for task in dict.fromkeys([*after, *before]):
            if task in after:
                results[task] = after[task]
            if task in before:
                results[f"{task}_before"] = before[task]
            if task in after and task in before:
                results[f"{task}_gain"] = metric_gains(before[task], after[task])
        results[RESULT] = refinement_metrics(refinements)
        logger.info(
            "Refinement results (%s):\n%s",
            how_chosen(any(r["chosen_with"] == GROUND_TRUTH for r in refinements), self._box),
            create_small_table(results[RESULT]),
        )
        return results


def metric_gains(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """After minus before, for the metrics both have."""
    return {name: value - before[name] for name, value in after.items() if name in before}


def refinement_metrics(refinements: Sequence[Mapping]) -> dict[str, float]:
    """Statistics of refined regions, independent of their order.

    Args:
        refinements: of `ROSEWithRefinement`, of every image and round.

    Returns:
        number, and number-{situation}; in percent: share_worse and share_better (IoU with the
        target lower, higher than before), mean_iou_before and mean_iou_after, both also by
        situation; name_corrected, the share of "category" regions that got their target's class.
        NaN where there is nothing to average.
    """
    metrics: dict[str, float] = {"number": float(len(refinements))}
    for situation in SITUATIONS:
        metrics[f"number-{situation}"] = float(len(_of(refinements, situation)))
    metrics["share_worse"] = _mean([r["iou_after"] < r["iou_before"] for r in refinements])
    metrics["share_better"] = _mean([r["iou_after"] > r["iou_before"] for r in refinements])
    for situation in ("", *SITUATIONS):
        rows = _of(refinements, situation) if situation else refinements
        suffix = f"-{situation}" if situation else ""
        for when in ("before", "after"):
            metrics[f"mean_iou_{when}{suffix}"] = _mean([r[f"iou_{when}"] for r in rows])
    named = _of(refinements, "category")
    metrics["name_corrected"] = _mean(
        [r["class_after"] >= 0 and r["class_after"] == r["target_class"] for r in named]
    )
    return metrics


def how_chosen(with_truth: bool, box: str) -> str:
    """Say for logs and reports what decided which regions were refined, and whose box was named.

    Args:
        with_truth: ground truth chose regions and situations; else every answer was refined.
        box: TEST.REFINEMENT.BOX.
    """
    regions = "situations chosen with ground truth" if with_truth else "every answer refined"
    return f"{regions}; {BOX_WORDS[box]}"


def _of(refinements: Sequence[Mapping], situation: str) -> list[Mapping]:
    return [r for r in refinements if r["situation"] == situation]


def _mean(values: Sequence[float]) -> float:
    """In percent; the exact sum, so that the order does not matter."""
    return 100.0 * math.fsum(values) / len(values) if values else math.nan


def build_evaluation_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model that `--eval-only` runs: the given one, with refinement if that is on.

    Args:
        cfg: configuration with ROSE's keys.
        model: a ROSE with its weights.
    """
    if not cfg.TEST.REFINEMENT.ENABLED:
        return model
    return ROSEWithRefinement.from_config(cfg, model)


def build_refinement_evaluator(
    cfg: CfgNode, dataset_name: str, build: Callable[..., DatasetEvaluator]
) -> DatasetEvaluator:
    """Evaluators of a dataset, before and after refinement if that is on.

    Args:
        cfg: configuration with ROSE's keys.
        dataset_name: registered dataset.
        build: makes the dataset's ordinary evaluator from (cfg, dataset_name, output_dir), see
            `build_evaluator`; output_dir None is its own choice. Called twice for refinement, the
            files of "before" go to <OUTPUT_DIR>/inference/<dataset>/before.
    """
    if not cfg.TEST.REFINEMENT.ENABLED:
        return build(cfg, dataset_name, None)
    if MetadataCatalog.get(dataset_name).get("evaluator_type", None) not in _REFINED_TYPES:
        logger.info("%s is evaluated without refinement: its task has none.", dataset_name)
        return build(cfg, dataset_name, None)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name, "before")
    before, after = build(cfg, dataset_name, folder), build(cfg, dataset_name, None)
    return RefinementEvaluator(before, after, box=cfg.TEST.REFINEMENT.BOX)
