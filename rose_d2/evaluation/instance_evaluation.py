"""AP of boxes and masks at every level of the vocabulary, from one stored set of predictions."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import BoxMode, Instances
from detectron2.utils.file_io import PathManager

from rose_d2.evaluation.coco_average_precision import (
    evaluate_coco,
    installed_implementation,
    repair_annotations,
)
from rose_d2.evaluation.mask_encoding import encode_masks
from rose_d2.evaluation.open_average_precision import open_average_precision
from rose_d2.modeling.vocabulary import MAPPING_RULES, counts_at

logger = logging.getLogger(__name__)


class RoseCOCOEvaluator(COCOEvaluator):
    """COCO AP of boxes and masks; predictions of class -1 (no class fits) are left out.

    AP ranks predictions by how likely both are right: objectness times the probability of the
    name (geometric mean over its tokens). Objectness alone ranks a certain object with a doubtful
    name before a fair one with a certain name.

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
    ) -> None:
        """
        Args:
            dataset_name: registered dataset with a COCO `json_file`.
            tasks: "bbox", "segm" or both.
            distributed: gather the predictions of all processes.
            output_dir: where predictions are written; None writes nothing.
            max_dets_per_image: predictions per image and class that count, best first.
            rank_by_name: False ranks by objectness alone.
            levels: levels of the vocabulary to report, where the predictions name their rule.
            similarity: (C, C) of the classes, for Open AP; None leaves it out.
        """
        super().__init__(
            dataset_name,
            tuple(tasks),
            distributed,
            output_dir,
            max_dets_per_image=max_dets_per_image,
            use_fast_impl=False,
        )
        self._rank_by_name = rank_by_name
        self._levels = tuple(levels)
        self._similarity = similarity
        if self._do_evaluation and (left_out := repair_annotations(self._coco_api)):
            logger.warning("%s: left out %d broken annotations.", dataset_name, left_out)
        self.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id".
            outputs: with "instances" at original size; their `name_scores`, where there are any,
                are mean log-probabilities; `mapped_classes` and `mapping_rules`, where there are
                any, are those of the most generous level.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            rows = self._rows(sample["image_id"], output["instances"])
            self._predictions.append({"image_id": sample["image_id"], "instances": rows})

    def _rows(self, image_id: int, instances: Instances) -> list[dict[str, Any]]:
        """Mapped predictions in COCO's result format, with rule and whether the headline counts."""
        has_rules = instances.has("mapping_rules")
        classes = instances.mapped_classes if has_rules else instances.pred_classes
        instances = instances[(classes >= 0) | (instances.pred_classes >= 0)]
        scores = instances.scores
        if self._rank_by_name and instances.has("name_scores"):
            scores = scores * instances.name_scores.exp()
        boxes = BoxMode.convert(
            instances.pred_boxes.tensor.cpu().numpy(), BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
        )
        headline = instances.pred_classes >= 0
        classes = instances.mapped_classes if has_rules else instances.pred_classes
        rules = instances.mapping_rules.tolist() if has_rules else [None] * len(instances)
        columns = zip(
            torch.where(headline, instances.pred_classes, classes).tolist(),
            boxes.tolist(),
            scores.tolist(),
            encode_masks(instances.pred_masks),
            rules,
            headline.tolist(),
            strict=True,
        )
        keys = ("category_id", "bbox", "score", "segmentation", "rule", "headline")
        return [{"image_id": image_id, **dict(zip(keys, row, strict=True))} for row in columns]

    def _eval_predictions(self, predictions: list[dict], img_ids: Any = None) -> None:
        """Fill the results: headline tables, levels, Open AP. `img_ids` is not supported."""
        predictions = sorted(predictions, key=lambda prediction: prediction["image_id"])
        ids = {v: k for k, v in self._metadata.thing_dataset_id_to_contiguous_id.items()}
        rows = [
            {**row, "category_id": ids[row["category_id"]]}
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
        if self._levels and all(row["rule"] is not None for row in rows):
            for task in self._tasks:
                self._results[f"{task}_levels"] = self._level_results(rows, task, known)
        if self._similarity is not None and "segm" in self._tasks:
            self._results["open_segm"] = open_average_precision(
                self._coco_api,
                [row for row, chosen in zip(rows, headline, strict=True) if chosen],
                self._similarity,
                self._metadata.thing_dataset_id_to_contiguous_id,
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
        """COCO's result file, which a server would take."""
        if not self._output_dir:
            return
        keys = ("image_id", "category_id", "bbox", "score", "segmentation")
        chosen = (row for row, keep in zip(rows, headline.tolist(), strict=True) if keep)
        path = os.path.join(self._output_dir, "coco_instances_results.json")
        with PathManager.open(path, "w") as file:
            json.dump([{key: row[key] for key in keys} for row in chosen], file)
