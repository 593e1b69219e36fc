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

import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from detectron2.utils.logger import create_small_table
from torch import Tensor

from rose_d2.data.annotated_regions import decode_annotations
from rose_d2.evaluation.ground_truth import decode_segmentation
from rose_d2.layers.mask_ops import mask_centre
from rose_d2.structures.patch_grid import PatchGrid

logger = logging.getLogger(__name__)

_PRECISION_TENTHS = (5, 6, 7, 8, 9)


class SentenceScore(NamedTuple):
    """All that is kept of one answer.

    Attributes:
        ref_id: reference of the sentence.
        sent_id: sentence within the reference.
        intersection: pixels of answer and target.
        union: pixels of answer or target.
        patch_right: 1 if the answering patch lies in the window of a target, 0 if not, -1 if the
            output does not name its patch.
    """

    ref_id: int
    sent_id: int
    intersection: int
    union: int
    patch_right: int

    @property
    def iou(self) -> float:
        """1.0 when answer and target are both empty (LISA's rule; LAVT says 0)."""
        return self.intersection / self.union if self.union else 1.0


class RefCOCOEvaluator(DatasetEvaluator):
    """cIoU, gIoU and precision of referring segmentation.

    Every sentence is one sample, free-running, at the size of its image. With I and U the pixels
    of intersection and union of a sample:

    * cIoU: sum of I over sum of U of all samples;
    * gIoU: mean of I / U, where U = 0 counts as 1 (nothing asked for, nothing answered);
    * P@t: share of samples with I / U at or above t;
    * P@answer_patch: share of the answers whose patch lies in the window around the target's
      centre, in the model's square view.

    All are percentages. A sample is known by its reference and sentence id; a result is refused
    unless every sentence of the dataset was answered exactly once.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        patch_grid: PatchGrid,
        window: int = 3,
        distributed: bool = True,
        output_dir: str | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered referring dataset, one dict per (reference, sentence).
            patch_grid: grid that "ref_patch" counts on.
            window: side of the window around a target's centre, in patches.
            distributed: gather the scores of all processes.
            output_dir: where the score of every sentence is written; None writes nothing.

        Raises:
            ValueError: if the dataset has two dicts for one sentence.
        """
        self._dataset_name = dataset_name
        self._patch_grid = patch_grid
        self._window = window
        self._distributed = distributed
        self._output_dir = output_dir
        dataset_dicts = DatasetCatalog.get(dataset_name)
        self._samples = {_key(sample): sample for sample in dataset_dicts}
        if len(self._samples) != len(dataset_dicts):
            double = [key for key, n in Counter(map(_key, dataset_dicts)).items() if n > 1]
            raise ValueError(
                f"Dataset {dataset_name!r} lists these (ref_id, sent_id) more than once: "
                f"{_some(double)}; prepare the dataset again."
            )
        self._scores: list[SentenceScore] = []

    def reset(self) -> None:
        """Forget all answers."""
        self._scores = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "ref_id" and "sent_id".
            outputs: with "ref_seg" bool (H, W) at original size and, optionally, "ref_patch".

        Raises:
            ValueError: if a sentence is not of this dataset or an answer has another size.
        """
        for sample_input, output in zip(inputs, outputs, strict=True):
            self._scores.append(self._score(_key(sample_input), output))

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            {"referring": metrics}; empty on all but the main process.

        Raises:
            ValueError: on every process, if a sentence has no answer or more than one.
        """
        scores = self._scores
        if self._distributed:
            scores = list(itertools.chain(*comm.all_gather(scores)))
        self._refuse_incomplete(scores)
        if self._distributed and not comm.is_main_process():
            return OrderedDict()
        scores = sorted(scores)
        self._write(scores)
        metrics = referring_metrics(scores)
        logger.info("Referring evaluation results:\n%s", create_small_table(metrics))
        return OrderedDict(referring=metrics)

    def _score(self, key: tuple[int, int], output: dict) -> SentenceScore:
        if key not in self._samples:
            raise ValueError(
                f"Got an answer to (ref_id, sent_id) {key}, which dataset {self._dataset_name!r} "
                "does not have; evaluate with the loader of the same dataset."
            )
        sample = self._samples[key]
        targets = self._decode_targets(sample)
        answer = output["ref_seg"].to(device="cpu", dtype=torch.bool)
        if answer.shape != targets.shape[1:]:
            raise ValueError(
                f"The answer to {key} has size {tuple(answer.shape)} but its image is "
                f"{tuple(targets.shape[1:])}; return masks at the original size."
            )
        target = targets.any(dim=0)
        patch_right = -1
        if "ref_patch" in output:
            patch_right = int(int(output["ref_patch"]) in self._window_patches(sample))
        intersection, union = int((answer & target).sum()), int((answer | target).sum())
        return SentenceScore(*key, intersection, union, patch_right)

    def _decode_targets(self, sample: dict) -> Tensor:
        """One mask per target, bool (T, H, W)."""
        size = sample["height"], sample["width"]
        masks = [decode_segmentation(annotation, *size) for annotation in _targets(sample)]
        return torch.stack(masks) if masks else torch.zeros(0, *size, dtype=torch.bool)

    def _window_patches(self, sample: dict) -> set[int]:
        """Patches that may answer: the windows around the targets' centres, as in training."""
        grid = self._patch_grid
        size = sample["height"], sample["width"]
        patches: set[int] = set()
        for annotation in _targets(sample):
            view = decode_annotations([annotation], *size, grid.image_size).masks[0]
            if not view.any():  # crowd, or lost between the pixels of the view
                view = decode_segmentation(annotation, *size).numpy()
            if view.any():
                x, y = mask_centre(torch.from_numpy(view))
                x, y = x / view.shape[1] * grid.image_size, y / view.shape[0] * grid.image_size
                patches.update(grid.window((x, y), self._window).tolist())
        return patches

    def _refuse_incomplete(self, scores: Sequence[SentenceScore]) -> None:
        counts = Counter(score[:2] for score in scores)
        missing = sorted(self._samples.keys() - counts.keys())
        double = sorted(key for key, n in counts.items() if n > 1)
        if missing or double:
            raise ValueError(
                f"Dataset {self._dataset_name!r} has {len(self._samples)} sentences; "
                f"{len(missing)} were not answered ({_some(missing)}) and {len(double)} more than "
                f"once ({_some(double)}), as (ref_id, sent_id). Evaluate the whole dataset with a "
                "sampler that neither pads nor drops."
            )

    def _write(self, scores: Sequence[SentenceScore]) -> None:
        if self._output_dir:
            PathManager.mkdirs(self._output_dir)
            path = os.path.join(self._output_dir, "referring_scores.json")
            with PathManager.open(path, "w") as file:
                json.dump([score._asdict() for score in scores], file)


def referring_metrics(scores: Sequence[SentenceScore]) -> dict[str, float]:
    """Percentages of `RefCOCOEvaluator`, from integers and independent of the samples' order.

    Args:
        scores: one per sentence.

    Returns:
        cIoU, gIoU, P@0.5 to P@0.9 and, if every output named its patch, P@answer_patch; NaN
        where there is nothing to average.
    """
    intersection = sum(score.intersection for score in scores)
    union = sum(score.union for score in scores)
    metrics = {
        "cIoU": _percent(intersection, union),
        "gIoU": _percent(math.fsum(score.iou for score in scores), len(scores)),
    }
    for tenths in _PRECISION_TENTHS:
        # In integers, so that an IoU of exactly 0.6 is not lost to rounding.
        hits = sum(10 * score.intersection >= tenths * score.union for score in scores)
        metrics[f"P@0.{tenths}"] = _percent(hits, len(scores))
    if scores and all(score.patch_right >= 0 for score in scores):
        right = sum(score.patch_right for score in scores)
        metrics["P@answer_patch"] = _percent(right, len(scores))
    return metrics


def _percent(part: float, whole: int) -> float:
    return 100.0 * part / whole if whole else math.nan


def _key(sample: dict) -> tuple[int, int]:
    return int(sample["ref_id"]), int(sample["sent_id"])


def _targets(sample: dict) -> list[dict]:
    return [sample["annotations"][index] for index in sample["target_indices"]]


def _some(keys: Sequence[tuple[int, int]], limit: int = 5) -> str:
    shown = ", ".join(map(str, keys[:limit]))
    return shown + (", ..." if len(keys) > limit else "") if keys else "none"
