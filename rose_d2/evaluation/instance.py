"""AP of boxes and masks at every level of the vocabulary, from one stored set of predictions,
the fast COCO metrics behind it, and Open AP, which counts similar names in part.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.evaluation.coco_evaluation import COCOevalMaxDets
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rose_d2.data.build import fixed_subset
from rose_d2.data.datasets.coco import load_coco_instances
from rose_d2.data.datasets.registration import registered_entries
from rose_d2.evaluation.semantic import check_similarity
from rose_d2.structures.mask_codec import encode_masks
from rose_d2.structures.segments import found_instances
from rose_d2.vocabulary.vocabulary import MAPPING_RULES, counts_at

logger = logging.getLogger(__name__)

FASTER, OFFICIAL = "faster-coco-eval", "pycocotools"
_COCO_MAX_DETS = 100
# COCO's: ten IoU thresholds and 101 recalls.
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0.0, 1.0, 101)
_AP50, _AP75 = 0, 5


class RoseCOCOEvaluator(COCOEvaluator):
    """COCO AP of boxes and masks; predictions of class -1 (no class fits) are left out.

    AP ranks predictions by how likely both are right: objectness times the probability of the
    name (geometric mean over its tokens). Objectness alone ranks a certain object with a doubtful
    name before a fair one with a certain name. AP by objectness alone, the paper's confidence
    (section 4.2), stands beside it as `AP_objectness`.

    Every prediction is kept once, with the rule that mapped its name; a level of the vocabulary
    is the subset of them whose rule counts there, and a level that adds none costs nothing.
    """

    def __init__(
        self,
        dataset_name: str,
        tasks: Sequence[str] = ("bbox", "segm"),
        *,
        distributed: bool = True,
        output_dir: str | None = None,
        max_dets_per_image: int = 100,
        rank_by_name: bool = True,
        levels: Sequence[str] = (),
        similarity: np.ndarray | None = None,
        num_samples: int = 0,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset of COCO instances.
            tasks: "bbox", "segm" or both.
            distributed: gather the predictions of all processes.
            output_dir: where predictions are written; None writes nothing.
            max_dets_per_image: predictions per image and class that count, best first.
            rank_by_name: False ranks by objectness alone.
            levels: levels of the vocabulary to report, where the predictions name their rule.
            similarity: (C, C) of the classes, for Open AP; None leaves it out.
            num_samples: TEST.NUM_SAMPLES.
        """
        # Not COCOEvaluator's own, which would give the file as it is to pycocotools.
        self._logger = logger
        self._metadata = MetadataCatalog.get(dataset_name)
        self._tasks, self._distributed, self._output_dir = tuple(tasks), distributed, output_dir
        self._max_dets_per_image = [1, 10, max_dets_per_image]
        self._rank_by_name = rank_by_name
        self._levels = tuple(levels)
        self._similarity = similarity
        self._class_ids = self._metadata.thing_dataset_id_to_contiguous_id
        records = self._load_records(dataset_name)
        records = fixed_subset(records, num_samples)
        self._set_ground_truth(records)
        self.reset()

    def _set_ground_truth(self, records: list[dict[str, Any]]) -> None:
        self._records = records
        self._do_evaluation = any(record["annotations"] for record in records)
        self._numbers = {record["image_id"]: n for n, record in enumerate(records, start=1)}
        self._coco_api = coco_ground_truth(records, len(self._class_ids))

    def leave_out(self, samples: Sequence[Mapping[str, Any]]) -> None:
        """Give up images; their objects are not missed.

        Args:
            samples: with "image_id".
        """
        unusable = {sample["image_id"] for sample in samples}
        self._set_ground_truth([r for r in self._records if r["image_id"] not in unusable])

    def _load_records(self, dataset_name: str) -> list[dict[str, Any]]:
        """What is annotated, whoever registered the dataset, by the one reader."""
        if dataset_name in registered_entries():
            return DatasetCatalog.get(dataset_name)
        image_root = self._metadata.get("image_root", "")
        return load_coco_instances(self._metadata.json_file, image_root, self._class_ids)

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id".
            outputs: see `found_instances`, at original size; their `name_scores`, where there are
                any, are probabilities; `mapped_classes` and `mapping_rules`, where there are any,
                are those of the most generous level.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            rows = self._rows(sample["image_id"], found_instances(output))
            self._predictions.append({"image_id": sample["image_id"], "instances": rows})

    def _rows(self, image_id: int, instances: Instances) -> list[dict[str, Any]]:
        """Mapped predictions in COCO's result format, with rule and whether the headline counts."""
        has_rules = instances.has("mapping_rules")
        classes = instances.mapped_classes if has_rules else instances.pred_classes
        has_class = (classes >= 0) | (instances.pred_classes >= 0)
        if not has_class.all():  # a copy of all masks
            instances = instances[has_class]
        scores = instances.scores
        if self._rank_by_name and instances.has("name_scores"):
            scores = scores * instances.name_scores
        boxes = BoxMode.convert(
            instances.pred_boxes.tensor.cpu().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
        )
        headline = instances.pred_classes >= 0
        classes = instances.mapped_classes if has_rules else instances.pred_classes
        rules = instances.mapping_rules.tolist() if has_rules else [None] * len(instances)
        objectness = instances.scores.tolist()
        columns = zip(
            torch.where(headline, instances.pred_classes, classes).tolist(),
            boxes.tolist(),
            scores.tolist(),
            encode_masks(instances.pred_masks),
            rules,
            headline.tolist(),
            objectness,
            strict=True,
        )
        keys = ("category_id", "bbox", "score", "segmentation", "rule", "headline", "objectness")
        return [{"image_id": image_id, **dict(zip(keys, row, strict=True))} for row in columns]

    def _eval_predictions(self, predictions: list[dict], img_ids: Any = None) -> None:
        """Fill the results: headline tables, levels, Open AP. `img_ids` is not supported."""
        predictions = sorted(predictions, key=lambda p: self._numbers[p["image_id"]])
        rows = [
            {
                **row,
                "image_id": self._numbers[row["image_id"]],
                "category_id": row["category_id"] + 1,
            }
            for prediction in predictions
            for row in prediction["instances"]
        ]
        headline = np.array([row["headline"] for row in rows], dtype=bool)
        self._write_headline(rows, headline)
        if not self._do_evaluation:
            logger.info("Annotations are not available for evaluation.")
            return
        logger.info("Evaluating predictions with %s.", installed_implementation())
        known: dict[tuple[str, bytes], float] = {}
        for task in self._tasks:
            coco_eval = self._evaluate(rows, headline, task, log_summary=True)
            names = self._metadata.get("thing_classes")
            self._results[task] = self._derive_coco_results(coco_eval, task, class_names=names)
            known[task, headline.tobytes()] = self._results[task]["AP"]
            if self._rank_by_name:
                by_objectness = [{**row, "score": row["objectness"]} for row in rows]
                self._results[task]["AP_objectness"] = self._average_precision(
                    self._evaluate(by_objectness, headline, task)
                )
        if self._levels and all(row["rule"] is not None for row in rows):
            for task in self._tasks:
                self._results[f"{task}_levels"] = self._level_results(rows, task, known)
        if self._similarity is not None and "segm" in self._tasks:
            self._results["open_segm"] = open_average_precision(
                self._coco_api,
                [row for row, chosen in zip(rows, headline, strict=True) if chosen],
                self._similarity,
                {class_id + 1: class_id for class_id in range(len(self._class_ids))},
                max_dets=self._max_dets_per_image[-1],
            )

    def _level_results(
        self, rows: list[dict], task: str, known: dict[tuple[str, bytes], float]
    ) -> dict[str, float]:
        """AP of each level; a selection of predictions that was evaluated before is looked up."""
        results = {}
        rules = np.array([row["rule"] for row in rows], dtype=np.int64)
        for level in self._levels:
            counted = [counts_at(rule, level) for rule in MAPPING_RULES]
            chosen = np.array(counted, dtype=bool)[rules]
            key = task, chosen.tobytes()
            if key not in known:
                known[key] = self._average_precision(self._evaluate(rows, chosen, task))
            results[level] = known[key]
        return results

    def _evaluate(
        self, rows: list[dict], chosen: np.ndarray, task: str, **options: bool
    ) -> Any | None:
        selected = [row for row, keep in zip(rows, chosen.tolist(), strict=True) if keep]
        if not selected:  # COCO's code does not take an empty list
            return None
        limit = self._max_dets_per_image[-1]
        return evaluate_coco(self._coco_api, selected, task, max_dets=limit, **options)

    def _average_precision(self, coco_eval: Any | None) -> float:
        if coco_eval is None:
            return 0.0 if self._coco_api.getAnnIds(iscrowd=False) else float("nan")
        return float(coco_eval.stats[0] * 100) if coco_eval.stats[0] >= 0 else float("nan")

    def _derive_coco_results(
        self, coco_eval: Any | None, iou_type: str, class_names: Sequence[str] | None = None
    ) -> dict[str, float]:
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and self._coco_api.getAnnIds(iscrowd=False):
            # detectron2 says NaN, but finding none of the objects is an AP of 0.
            return dict.fromkeys(results, 0.0)
        return results

    def _write_headline(self, rows: list[dict], headline: np.ndarray) -> None:
        """COCO's result file, which a server would take, with the ids of the annotation file."""
        if not self._output_dir:
            return
        image_ids = {number: image_id for image_id, number in self._numbers.items()}
        category_ids = {class_id + 1: own_id for own_id, class_id in self._class_ids.items()}
        results = [
            {
                "image_id": image_ids[row["image_id"]],
                "category_id": category_ids[row["category_id"]],
                **{key: row[key] for key in ("bbox", "score", "segmentation")},
            }
            for row, keep in zip(rows, headline.tolist(), strict=True)
            if keep
        ]
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        with PathManager.open(path, "w") as file:
            json.dump(results, file)


try:
    from faster_coco_eval import COCOeval_faster
except ImportError:
    COCOeval_faster = None


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


def coco_ground_truth(records: Sequence[Mapping[str, Any]], num_classes: int) -> COCO:
    """The annotations of dataset dicts for pycocotools, with ids that it can tell apart.

    COCOeval looks annotations up by their ids, takes a match with object 0 for no match and
    accepts no ids but small numbers, while files have any.

    Args:
        records: from `load_coco_instances`.
        num_classes: C.

    Returns:
        Images 1 to n in the order of the records, annotations counted from 1, categories 1 to C:
        the contiguous classes plus 1.
    """
    images, annotations = [], []
    for number, record in enumerate(records, start=1):
        images.append({"id": number, "height": record["height"], "width": record["width"]})
        for annotation in record["annotations"]:
            own = {"id": len(annotations) + 1, "image_id": number}
            own["category_id"] = annotation["category_id"] + 1
            annotations.append(
                own | {key: annotation[key] for key in ("bbox", "area", "iscrowd", "segmentation")}
            )
    ground_truth = COCO()
    categories = [{"id": class_id + 1} for class_id in range(num_classes)]
    ground_truth.dataset = {"images": images, "annotations": annotations, "categories": categories}
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth.createIndex()
    return ground_truth


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
