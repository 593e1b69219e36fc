"""Counting panoptic segments: panopticapi's PQ over several processes, and Open PQ."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from panopticapi.evaluation import PQStat

VOID = 0
_ID_OFFSET = 1 << 24
# A fixed number, so that sums do not depend on the number of cores.
_IMAGES_PER_TASK = 64

Pair = tuple[dict[str, Any], dict[str, Any]]


class ClassCredit:
    """How much of a true positive a predicted class is on an annotated one."""

    def __init__(
        self,
        similarity: np.ndarray,
        class_of_id: Mapping[int, int],
        categories: Mapping[int, Mapping[str, Any]],
    ) -> None:
        """
        Args:
            similarity: (C, C) in [0, 1], predicted by annotated class, ones on the diagonal.
            class_of_id: category id in the file -> row of `similarity`.
            categories: the file's categories by id, with "isthing".
        """
        self._similarity = similarity
        self._class_of_id = dict(class_of_id)
        self._is_thing = {key: bool(category["isthing"]) for key, category in categories.items()}

    def __call__(self, predicted_id: int, annotated_id: int) -> float:
        """Similarity of two category ids; 0 between a thing and stuff."""
        if self._is_thing[predicted_id] != self._is_thing[annotated_id]:
            return 0.0
        rows = self._class_of_id
        return float(self._similarity[rows[predicted_id], rows[annotated_id]])


def count_segments(
    pairs: Sequence[Pair],
    annotated_folder: str,
    predicted_folder: str,
    categories: Mapping[int, Mapping[str, Any]],
    credit: ClassCredit | None = None,
) -> PQStat:
    """True positives, false positives, misses and IoU sums of every category.

    Args:
        pairs: (annotated, predicted) entries of the panoptic format, one per image.
        annotated_folder: of the annotated PNGs.
        predicted_folder: of the predicted PNGs.
        categories: the file's categories by id.
        credit: None counts with panopticapi's own code; otherwise similar classes count in part,
            see `open_metrics`.

    Returns:
        panopticapi's PQStat.
    """
    from panopticapi.evaluation import PQStat

    tasks = [pairs[i : i + _IMAGES_PER_TASK] for i in range(0, len(pairs), _IMAGES_PER_TASK)]
    count = partial(
        _count_official if credit is None else partial(_count_with_credit, credit=credit),
        annotated_folder=annotated_folder,
        predicted_folder=predicted_folder,
        categories=categories,
    )
    total = PQStat()
    workers = min(os.cpu_count() or 1, len(tasks))
    if workers < 2:
        for task in tasks:
            total += count(task)
        return total
    with multiprocessing.Pool(workers) as pool:
        for counted in pool.imap(count, tasks):
            total += counted
    return total


def average_quality(
    stat: PQStat, categories: Mapping[int, Mapping[str, Any]], is_thing: bool | None
) -> dict[str, float]:
    """Mean PQ, SQ and RQ of the categories with any segment.

    Args:
        stat: from `count_segments`.
        categories: the file's categories by id.
        is_thing: only things (True) or stuff (False); None takes all.

    Returns:
        "pq", "sq", "rq" in percent, NaN where there is no segment, and "n" categories.
    """
    try:
        average, _ = stat.pq_average(categories, isthing=is_thing)
    except ZeroDivisionError:  # panopticapi divides by the number of categories it found
        return {**dict.fromkeys(("pq", "sq", "rq"), float("nan")), "n": 0}
    return {**{k: float(100 * average[k]) for k in ("pq", "sq", "rq")}, "n": average["n"]}


def _count_official(task: Sequence[Pair], **where: Any) -> PQStat:
    from panopticapi.evaluation import pq_compute_single_core

    folders = where["annotated_folder"], where["predicted_folder"]
    with contextlib.redirect_stdout(io.StringIO()):
        return pq_compute_single_core(0, task, *folders, where["categories"])


def _count_with_credit(task: Sequence[Pair], *, credit: ClassCredit, **where: Any) -> PQStat:
    from panopticapi.evaluation import PQStat

    stat = PQStat()
    for annotated, predicted in task:
        annotated_ids = _read_ids(where["annotated_folder"], annotated)
        predicted_ids = _read_ids(where["predicted_folder"], predicted)
        _count_image(stat, annotated, predicted, annotated_ids, predicted_ids, credit)
    return stat


def _count_image(
    stat: PQStat,
    annotated: dict[str, Any],
    predicted: dict[str, Any],
    annotated_ids: np.ndarray,
    predicted_ids: np.ndarray,
    credit: ClassCredit,
) -> None:
    truths = {segment["id"]: segment for segment in annotated["segments_info"]}
    guesses = {segment["id"]: segment for segment in predicted["segments_info"]}
    areas = _count_values(predicted_ids)
    shared = {
        divmod(pair, _ID_OFFSET): pixels
        for pair, pixels in _count_values(annotated_ids * _ID_OFFSET + predicted_ids).items()
    }
    granted: dict[int, float] = {}  # by annotated segment
    earned: dict[int, float] = {}  # by predicted segment
    for (truth, guess), pixels in shared.items():
        if truth not in truths or guess not in guesses or truths[truth]["iscrowd"] == 1:
            continue
        union = areas[guess] + truths[truth]["area"] - pixels - shared.get((VOID, guess), 0)
        if pixels / union <= 0.5:
            continue
        category = truths[truth]["category_id"]
        share = credit(guesses[guess]["category_id"], category)
        stat[category].tp += share
        stat[category].iou += share * (pixels / union)
        granted[truth] = earned[guess] = share
    crowds = {}
    for truth, segment in truths.items():
        if segment["iscrowd"] == 1:
            crowds[segment["category_id"]] = truth
        else:
            stat[segment["category_id"]].fn += 1 - granted.get(truth, 0.0)
    for guess, segment in guesses.items():
        ignored = shared.get((VOID, guess), 0)
        if segment["category_id"] in crowds:
            ignored += shared.get((crowds[segment["category_id"]], guess), 0)
        if ignored / areas[guess] <= 0.5:
            stat[segment["category_id"]].fp += 1 - earned.get(guess, 0.0)


def _read_ids(folder: str, entry: dict[str, Any]) -> np.ndarray:
    """Segment ids of a panoptic PNG, int64 (H, W)."""
    with Image.open(os.path.join(folder, entry["file_name"])) as image:
        colours = np.asarray(image, dtype=np.int64)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]


def _count_values(array: np.ndarray) -> dict[int, int]:
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))
