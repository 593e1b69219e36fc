"""The formulas of referring segmentation, from integers.

With I and U the pixels of intersection and union of a sample, ignored ones left out:

* cIoU: sum of I over sum of U of all samples (also called oIoU or overall IoU);
* gIoU: mean of I / U (also called mIoU), where U = 0 counts as 1: nothing asked for, nothing
  answered. That is LISA's rule (dvlab-research/LISA: train_ds.py); LAVT counts 0;
* P@t: share of the samples with a target whose I / U is at or above t;
* N-acc and T-acc, only where some samples have no target: share of those without a target that
  are answered with nothing, and of those with one that are answered with something.

Samples without a target follow GRES (henghuiding/ReLA: gres_model/evaluation/
refer_evaluation.py). With an empty target the formulas above are its rule: nothing answered
counts 1 in gIoU and adds nothing to cIoU; anything answered counts 0 and adds its pixels to the
union. ReLA lets a head of its own decide that there is no target; here an answer is nothing when
it has no pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from rose_d2.data.expression_kinds import EXPRESSION_KINDS

_PRECISION_TENTHS = (5, 6, 7, 8, 9)
_KIND_METRICS = ("cIoU", "P@0.5", "P@answer_patch")


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
        cIoU, gIoU, P@0.5 to P@0.9; N-acc and T-acc if some samples have no target; P@answer_patch
        (share of the samples with a target whose answering patch lies in the window around a
        target's centre) if all their outputs name a patch. NaN where there is nothing to average.
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
        # In integers, so that an IoU of exactly 0.6 is not lost to rounding.
        hits = sum(10 * score.intersection >= tenths * score.union for score in targeted)
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
