"""Open AP: average precision with partial credit for similar classes, see `open_metrics`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rose_d2.evaluation.open_metrics import check_similarity

# COCO's: ten IoU thresholds and 101 recalls.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_AP50, _AP75 = 0, 5


class _Votes(NamedTuple):
    """What one prediction does to one class, at T thresholds."""

    score: float
    true: np.ndarray  # (T,) in [0, 1]
    false: np.ndarray  # (T,) in [0, 1]


def open_average_precision(
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    similarity: np.ndarray,
    class_of_id: Mapping[int, int],
    *,
    max_dets: int = 100,
) -> dict[str, float]:
    """Open AP of masks over all areas.

    Args:
        ground_truth: the annotation file.
        results: predictions in COCO's result format with RLE masks and the dataset's ids.
        similarity: (C, C) in [0, 1], predicted by annotated class, ones on the diagonal.
        class_of_id: category id in the file -> row of `similarity`.
        max_dets: predictions per image and class that count, best first.

    Returns:
        "Open AP", "Open AP50" and "Open AP75" in percent; NaN without annotated objects.

    Raises:
        ValueError: the matrix does not fit the classes.
    """
    check_similarity(similarity, len(class_of_id))
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in results:
        by_image[row["image_id"]].append(row)
    votes: dict[int, list[_Votes]] = defaultdict(list)
    objects = np.zeros(len(similarity), dtype=np.int64)
    for image_id in sorted(ground_truth.getImgIds()):
        annotations = ground_truth.loadAnns(ground_truth.getAnnIds(imgIds=[image_id]))
        annotations = [a for a in annotations if a["category_id"] in class_of_id]
        truth = np.array([class_of_id[a["category_id"]] for a in annotations], dtype=np.int64)
        crowd = np.array([bool(a["iscrowd"]) for a in annotations], dtype=bool)
        objects += np.bincount(truth[~crowd], minlength=len(objects))
        rows = _best_per_class(by_image[image_id], class_of_id, max_dets)
        masks = [ground_truth.annToRLE(annotation) for annotation in annotations]
        for class_id, vote in _votes(rows, class_of_id, masks, truth, crowd, similarity):
            votes[class_id].append(vote)
    present = np.flatnonzero(objects)
    if not len(present):
        return dict.fromkeys(("Open AP", "Open AP50", "Open AP75"), float("nan"))
    # (C present, T, R)
    precisions = np.stack([_precision_at_recalls(votes[c], int(objects[c])) for c in present])
    return {
        "Open AP": float(100 * precisions.mean()),
        "Open AP50": float(100 * precisions[:, _AP50].mean()),
        "Open AP75": float(100 * precisions[:, _AP75].mean()),
    }


def _best_per_class(
    rows: Sequence[Mapping[str, Any]], class_of_id: Mapping[int, int], max_dets: int
) -> list[Mapping[str, Any]]:
    """The best `max_dets` predictions of each class, by descending score."""
    counts: dict[int, int] = defaultdict(int)
    kept = []
    for row in sorted(rows, key=lambda row: -row["score"]):
        counts[row["category_id"]] += 1
        if counts[row["category_id"]] <= max_dets and row["category_id"] in class_of_id:
            kept.append(row)
    return kept


def _votes(
    rows: Sequence[Mapping[str, Any]],
    class_of_id: Mapping[int, int],
    masks: list[dict],
    truth: np.ndarray,
    crowd: np.ndarray,
    similarity: np.ndarray,
) -> Iterator[tuple[int, _Votes]]:
    """Yield (class, votes) of the predictions of one image."""
    if not rows:
        return
    predicted = np.array([class_of_id[row["category_id"]] for row in rows], dtype=np.int64)
    shape = len(rows), len(masks)
    overlaps = np.zeros(shape)
    if masks:
        overlaps = coco_mask.iou([row["segmentation"] for row in rows], masks, crowd.tolist())
    own = predicted[:, None] == truth[None, :]  # (D, G)
    # A prediction may match several crowds' pixels, an object only one prediction.
    taken = np.zeros((len(IOU_THRESHOLDS), len(masks)), dtype=bool)
    matched = _match(np.where(own & ~crowd, overlaps, 0.0), taken)  # (T, D)
    floors = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    on_crowd = (np.where(own & crowd, overlaps, 0.0)[None] >= floors[:, None, None]).any(axis=2)
    settled = (matched >= 0) | on_crowd
    borrowed = _match(np.where(own | crowd, 0.0, overlaps), taken, settled)  # (T, D)
    for index, row in enumerate(rows):
        class_id, other = predicted[index], borrowed[:, index]
        credit = np.where(other >= 0, similarity[class_id, truth[other]] if masks else 0.0, 0.0)
        right = (matched[:, index] >= 0).astype(float)
        false = np.where(settled[:, index], 0.0, 1.0 - credit)
        yield int(class_id), _Votes(row["score"], right, false)
        for lender in np.unique(truth[other[other >= 0]]):
            lent = np.where((other >= 0) & (truth[other] == lender), credit, 0.0)
            yield int(lender), _Votes(row["score"], lent, np.zeros_like(lent))


def _match(
    overlaps: np.ndarray, taken: np.ndarray, settled: np.ndarray | None = None
) -> np.ndarray:
    """Give each prediction, in order, the free object it overlaps most; ties to the last one.

    Args:
        overlaps: (D, G) IoU, 0 where a match is not allowed.
        taken: bool (T, G), updated.
        settled: bool (T, D), predictions that need no match.

    Returns:
        (T, D) index of the object, -1 for none.
    """
    floors = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    matches = np.full((len(floors), len(overlaps)), -1)
    if not overlaps.shape[1]:
        return matches
    for index in np.flatnonzero((overlaps >= floors[0]).any(axis=1)):
        allowed = ~taken & (overlaps[index] >= floors[:, None])
        if settled is not None:
            allowed &= ~settled[:, index, None]
        reversed_overlaps = np.where(allowed, overlaps[index], -1.0)[:, ::-1]
        best = overlaps.shape[1] - 1 - reversed_overlaps.argmax(axis=1)
        found = np.flatnonzero(allowed.any(axis=1))
        matches[found, index] = best[found]
        taken[found, best[found]] = True
    return matches


def _precision_at_recalls(votes: Sequence[_Votes], num_objects: int) -> np.ndarray:
    """COCO's interpolated precision of one class, (T, R)."""
    precisions = np.zeros((len(IOU_THRESHOLDS), len(RECALLS)))
    if not votes:
        return precisions
    order = np.argsort([-vote.score for vote in votes], kind="stable")
    true = np.cumsum([votes[i].true for i in order], axis=0).T  # (T, D)
    false = np.cumsum([votes[i].false for i in order], axis=0).T
    precision = true / (false + true + np.spacing(1))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    for row, recall in enumerate(true / num_objects):
        positions = np.searchsorted(recall, RECALLS, side="left")
        reached = positions < len(votes)
        precisions[row, reached] = envelope[row, positions[reached]]
    return precisions
