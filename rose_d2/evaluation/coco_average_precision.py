"""COCO's average precision, through the faster of two implementations that give one result."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_faster = None

logger = logging.getLogger(__name__)

FASTER, OFFICIAL = "faster-coco-eval", "pycocotools"
_COCO_MAX_DETS = 100


def installed_implementation() -> str:
    """Name of the package that computes AP here: `FASTER` where it is installed."""
    return OFFICIAL if COCOeval_faster is None else FASTER


def evaluate_coco(
    ground_truth: COCO,
    results: Sequence[Mapping[str, Any]],
    iou_type: str,
    *,
    max_dets: int = _COCO_MAX_DETS,
    implementation: str | None = None,
    log_summary: bool = False,
) -> Any:
    """Match predictions and compute AP and AR.

    Args:
        ground_truth: the annotation file.
        results: at least one prediction in COCO's result format, with the dataset's own category
            ids; entries of other keys are passed over.
        iou_type: "bbox" or "segm".
        max_dets: predictions per image and class that count, best first.
        implementation: `FASTER` or `OFFICIAL`; None takes the faster one that is installed.
        log_summary: log COCO's table of twelve lines.

    Returns:
        A COCOeval with `stats` (AP, AP50, AP75, AP small, medium, large, ...) in [0, 1], -1 where
        there is nothing to average, and eval["precision"] (T, R, C, areas, limits).
    """
    # With boxes beside masks, pycocotools would take the box's area for the size of an object.
    shape = "bbox" if iou_type == "bbox" else "segmentation"
    keys = ("image_id", "category_id", "score", shape)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        predictions = ground_truth.loadRes([{key: row[key] for key in keys} for row in results])
        arguments = (ground_truth, predictions, iou_type)
        if (implementation or installed_implementation()) == FASTER:
            coco_eval = COCOeval_faster(*arguments, print_function=print)
        elif max_dets == _COCO_MAX_DETS:
            coco_eval = COCOeval(*arguments)
        else:  # COCOeval itself reports AP at a hundred predictions only
            coco_eval = COCOevalMaxDets(*arguments)
        # COCOeval sorts the limits and needs three; the largest is the one of AP.
        coco_eval.params.maxDets = [min(1, max_dets), min(10, max_dets), max_dets]
        coco_eval.evaluate()
        coco_eval.accumulate()
        coco_eval.summarize()
    if log_summary:
        table = [line for line in said.getvalue().splitlines() if line.startswith(" Average")]
        logger.info("COCO's summary for %s:\n%s", iou_type, "\n".join(table))
    return coco_eval


def repair_annotations(ground_truth: COCO) -> int:
    """Make an annotation file safe to evaluate against, in memory.

    Annotations without a usable mask, or with one of another size than their image, are left out,
    as they are when the dataset is loaded; a missing "iscrowd" is 0 and a missing "area" that of
    the mask; ids are counted from 1 where one is 0, since COCOeval takes a match with object 0
    for no match.

    Args:
        ground_truth: the annotation file; changed.

    Returns:
        Number of annotations left out.
    """
    annotations = ground_truth.dataset["annotations"]
    kept = [a for a in annotations if _is_usable(a, ground_truth.imgs.get(a["image_id"]))]
    for annotation in kept:
        annotation.setdefault("iscrowd", 0)
        if "area" not in annotation:
            annotation["area"] = int(coco_mask.area(ground_truth.annToRLE(annotation)))
    if any(annotation["id"] == 0 for annotation in kept):
        for number, annotation in enumerate(kept, start=1):
            annotation["id"] = number
    ground_truth.dataset["annotations"] = kept
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    return len(annotations) - len(kept)


def _is_usable(annotation: Mapping[str, Any], image: Mapping[str, Any] | None) -> bool:
    segmentation = annotation.get("segmentation")
    if image is None or len(annotation.get("bbox") or ()) != 4:
        return False
    if isinstance(segmentation, Mapping):
        return list(segmentation["size"]) == [image["height"], image["width"]]
    return any(len(polygon) >= 6 for polygon in segmentation or ())
