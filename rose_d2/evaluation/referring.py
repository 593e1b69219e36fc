"""Referring expression segmentation, scored per sentence at the original image size."""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table

from rose_d2.data.build import fixed_subset, sample_key
from rose_d2.data.datasets.refer_files import (
    EXPRESSION_KINDS,
    expression_kind,
    referring_samples,
)
from rose_d2.evaluation.ground_truth import ReferringTarget
from rose_d2.structures.patches import PatchGrid

logger = logging.getLogger(__name__)

# Task of the results by protocol: numbers per reference must not pass for numbers per sentence.
RESULT_TASKS = {"per_sentence": "referring", "per_ref": "referring_per_ref"}
_PRECISION_TENTHS = (5, 6, 7, 8, 9)
_KIND_METRICS = ("cIoU", "P@0.5", "P@answer_patch")


class RefCOCOEvaluator(DatasetEvaluator):
    """cIoU, gIoU and precision of referring segmentation, see `referring_metrics`.

    Every sentence is one sample (or every reference, by protocol), answered free-running, at the
    size of its image. A sample is known by its reference and sentence id; a result is refused
    unless every sample of the dataset was answered exactly once.

    gRefCOCO's sentences about nothing or about several objects are samples with that many
    `target_indices`; where some have none there are N-acc and T-acc too. ReasonSeg's ignored
    regions are a sample's "ignore_annotations".
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        patch_grid: PatchGrid,
        window: int = 3,
        protocol: str = "per_sentence",
        distributed: bool = True,
        output_dir: str | None = None,
        num_samples: int = 0,
    ) -> None:
        """
        Args:
            dataset_name: registered referring dataset, one dict per (reference, sentence).
            patch_grid: grid that "ref_patch" counts on.
            window: side of the window around a target's centre, in patches.
            protocol: what one sample is, see `referring_samples`.
            distributed: gather the scores of all processes.
            output_dir: where the score of every sample is written; None writes nothing.
            num_samples: TEST.NUM_SAMPLES.

        Raises:
            ValueError: if the dataset has two dicts for one sample, or the protocol is unknown.
        """
        self._dataset_name = dataset_name
        self._patch_grid = patch_grid
        self._window = window
        self._distributed = distributed
        self._output_dir = output_dir
        samples = referring_samples(DatasetCatalog.get(dataset_name), protocol)
        samples = fixed_subset(samples, num_samples)
        self._result_task = RESULT_TASKS[protocol]
        self._samples = {sample_key(sample): sample for sample in samples}
        if len(self._samples) != len(samples):
            double = [key for key, n in Counter(map(sample_key, samples)).items() if n > 1]
            raise ValueError(
                f"Dataset {dataset_name!r} lists these ref_id-sent_id more than once: "
                f"{_some(double)}; prepare the dataset again."
            )
        self._scores: list[SentenceScore] = []
        self._target: ReferringTarget | None = None

    def reset(self) -> None:
        """Forget all answers."""
        self._scores = []
        self._target = None

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "ref_id" and "sent_id".
            outputs: with "ref_seg" bool (H, W) at original size and, optionally, "ref_patch".

        Raises:
            ValueError: if a sample is not of this dataset or an answer has another size.
        """
        for sample_input, output in zip(inputs, outputs, strict=True):
            self._scores.append(self._score(sample_key(sample_input), output))

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            {"referring": metrics}, per reference {"referring_per_ref": metrics}, with those by
            kind of expression; empty on all but the main process.

        Raises:
            ValueError: on every process, if a sample has no answer or more than one.
        """
        scores = self._scores
        if self._distributed:
            scores = list(itertools.chain(*comm.all_gather(scores)))
        self._refuse_incomplete(scores)
        if self._distributed and not comm.is_main_process():
            return OrderedDict()
        scores = sorted(scores)
        self._write(scores)
        self._warn_of_answers_to_all(scores)
        metrics, by_kind = referring_metrics(scores), metrics_by_kind(scores)
        logger.info("Results of %s:\n%s", self._result_task, create_small_table(metrics))
        if by_kind:
            counts = dict(Counter(score.kind for score in scores))
            logger.info("By kind of expression, %s:\n%s", counts, create_small_table(by_kind))
        return OrderedDict({self._result_task: metrics | by_kind})

    def leave_out(self, samples: Sequence[dict]) -> None:
        """Give up samples, which need no answer.

        Args:
            samples: with "ref_id" and "sent_id".
        """
        for sample in samples:
            self._samples.pop(sample_key(sample), None)

    def _score(self, key: str, output: dict) -> SentenceScore:
        if key not in self._samples:
            raise ValueError(
                f"Got an answer to ref_id-sent_id {key}, which dataset {self._dataset_name!r} "
                "does not have; evaluate with the test loader of the same dataset and "
                "TEST.REFERRING.PROTOCOL."
            )
        sample = self._samples[key]
        target = self._decode(sample)
        answer = output["ref_seg"].to(device="cpu", dtype=torch.bool)
        if answer.shape != target.size:
            raise ValueError(
                f"The answer to {key} has size {tuple(answer.shape)} but its image is "
                f"{target.size}; return masks at the original size."
            )
        patch_right = -1
        if "ref_patch" in output:
            patches = target.window_patches(self._patch_grid, self._window)
            patch_right = int(int(output["ref_patch"]) in patches)
        overlap = mask_overlap(answer.numpy(), target.mask, target.ignore)
        kind = expression_kind(sample["sentence"])
        ids = int(sample["ref_id"]), int(sample["sent_id"])
        return SentenceScore(*ids, *overlap, len(target), patch_right, kind)

    def _decode(self, sample: dict) -> ReferringTarget:
        # The sentences of a reference follow each other and have one target.
        if self._target is None or not self._target.fits(sample):
            self._target = ReferringTarget(sample)
        return self._target

    def _refuse_incomplete(self, scores: Sequence[SentenceScore]) -> None:
        counts = Counter(sample_key(score._asdict()) for score in scores)
        missing = sorted(self._samples.keys() - counts.keys())
        double = sorted(key for key, n in counts.items() if n > 1)
        if missing or double:
            raise ValueError(
                f"Dataset {self._dataset_name!r} has {len(self._samples)} samples; "
                f"{len(missing)} were not answered ({_some(missing)}) and {len(double)} more than "
                f"once ({_some(double)}), as ref_id-sent_id. Evaluate the whole dataset with a "
                "sampler that neither pads nor drops."
            )

    def _write(self, scores: Sequence[SentenceScore]) -> None:
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, f"{self._result_task}_scores.json")
            with PathManager.open(path, "w") as file:
                json.dump([score._asdict() for score in scores], file)

    def _warn_of_answers_to_all(self, scores: Sequence[SentenceScore]) -> None:
        targetless = sum(score.num_targets == 0 for score in scores)
        if targetless and all(score.answer for score in scores):
            logger.warning(
                "%d of %d samples of %s have no target, but all were answered; the model can "
                "answer nothing, or several objects, with TEST.REFERRING.MULTI_TARGET True.",
                targetless,
                len(scores),
                self._dataset_name,
            )


def _some(keys: Sequence[str], limit: int = 5) -> str:
    shown = ", ".join(keys[:limit])
    return shown + (", ..." if len(keys) > limit else "") if keys else "none"


class MaskOverlap(NamedTuple):
    """Pixels of one sample that are not ignored.

    Attributes:
        intersection: of answer and target.
        union: of answer or target.
        answer: of the answer.
    """

    intersection: int
    union: int
    answer: int


class SentenceScore(NamedTuple):
    """All that is kept of one answer.

    Attributes:
        ref_id: reference of the sentence.
        sent_id: sentence within the reference; -1 if the sample has all of them.
        intersection: pixels of answer and target.
        union: pixels of answer or target.
        answer: pixels of the answer.
        num_targets: objects the sentence is about; 0 if there is nothing to find.
        patch_right: 1 if the answering patch lies in the window of a target, 0 if not, -1 if the
            output does not name its patch.
        kind: what the sentence goes by, see `expression_kind`.
    """

    ref_id: int
    sent_id: int
    intersection: int
    union: int
    answer: int
    num_targets: int = 1
    patch_right: int = -1
    kind: str = "name"

    @property
    def iou(self) -> float:
        """Intersection over union, in [0, 1]; 1.0 when answer and target are both empty."""
        return self.intersection / self.union if self.union else 1.0


def mask_overlap(
    answer: np.ndarray, target: np.ndarray, ignore: np.ndarray | None = None
) -> MaskOverlap:
    """Count the pixels of an answer and its target.

    Args:
        answer: bool (H, W).
        target: bool (H, W).
        ignore: bool (H, W), pixels that count for neither; None ignores nothing.
    """
    if ignore is not None:
        answer, target = answer & ~ignore, target & ~ignore
    intersection = int(np.count_nonzero(answer & target))
    num_answer, num_target = int(np.count_nonzero(answer)), int(np.count_nonzero(target))
    return MaskOverlap(intersection, num_answer + num_target - intersection, num_answer)


def referring_metrics(scores: Sequence[SentenceScore]) -> dict[str, float]:
    """Percentages of the module, independent of the samples' order.

    Args:
        scores: one per sample.

    Returns:
        cIoU, gIoU; P@0.5 to P@0.9 of the samples with a target, as ReLA counts them; N-acc and
        T-acc if some samples have no target; P@answer_patch (share of the samples with a target
        whose answering patch lies in the window around a target's centre) if all their outputs
        name a patch. NaN where there is nothing to average.
    """
    targeted = [score for score in scores if score.num_targets]
    intersection = sum(score.intersection for score in scores)
    union = sum(score.union for score in scores)
    metrics = {
        "cIoU": _percent(intersection, union),
        # fsum is exact, so that the order cannot show.
        "gIoU": _percent(math.fsum(score.iou for score in scores), len(scores)),
    }
    for tenths in _PRECISION_TENTHS:
        # In integers, so that an IoU of exactly 0.6 is not lost to rounding. A target without a
        # pixel is never found, as in ReLA.
        found = [score for score in targeted if score.union]
        hits = sum(10 * score.intersection >= tenths * score.union for score in found)
        metrics[f"P@0.{tenths}"] = _percent(hits, len(targeted))
    targetless = [score for score in scores if not score.num_targets]
    if targetless:
        rejected = sum(score.answer == 0 for score in targetless)
        metrics["N-acc"] = _percent(rejected, len(targetless))
        metrics["T-acc"] = _percent(sum(score.answer > 0 for score in targeted), len(targeted))
    if targeted and all(score.patch_right >= 0 for score in targeted):
        right = sum(score.patch_right for score in targeted)
        metrics["P@answer_patch"] = _percent(right, len(targeted))
    return metrics


def metrics_by_kind(scores: Sequence[SentenceScore]) -> dict[str, float]:
    """Metrics of each kind of expression, named as detectron2 names those of a class.

    Args:
        scores: one per sample.

    Returns:
        "cIoU-position", "P@0.5-position", "P@answer_patch-position" (where there is one), and so
        on for every kind that occurs; nothing if it is only one.
    """
    kinds = [kind for kind in EXPRESSION_KINDS if any(score.kind == kind for score in scores)]
    table: dict[str, float] = {}
    for kind in kinds if len(kinds) > 1 else ():
        chosen = [score for score in scores if score.kind == kind]
        metrics = referring_metrics(chosen)
        table |= {f"{n}-{kind}": metrics[n] for n in _KIND_METRICS if n in metrics}
    return table


def _percent(part: float, whole: int) -> float:
    return 100.0 * part / whole if whole else math.nan
