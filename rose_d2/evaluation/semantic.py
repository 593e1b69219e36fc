"""Semantic metrics at every level of the vocabulary, and those that count similar names in part."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm

from rose_d2.data.annotations import read_labels
from rose_d2.evaluation.predictions import best_labels
from rose_d2.layers.logit_masks import stripes
from rose_d2.layers.masks import mask_areas
from rose_d2.structures.mask_codec import encode_mask
from rose_d2.structures.segments import found_instances


class RoseSemSegEvaluator(SemSegEvaluator):
    """Semantic metrics for answers with one more label, "no object", which is always wrong.

    detectron2's evaluator leaves pixels of its spare row out of the ground truth's area, which
    would treat "no object" as if the pixel were unlabelled. Here it is a class of its own without
    any ground truth, so its pixels are missed pixels of their true class.

    Two shares are reported with the metrics, both in percent: `no_object` of the labelled pixels
    and `unmapped`, the part of all predicted mask pixels whose name fits no class.
    """

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: str | None = None,
        *,
        headline_level: str | None = None,
        similarity: np.ndarray | None = None,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset with sem_seg_file_name; `stuff_classes` of its
                metadata are all classes in label order.
            distributed: gather the counts of all processes.
            output_dir: where detectron2 writes the predictions; None writes and keeps nothing.
            headline_level: entry of "levels" that is the headline; without "levels", or where it
                is not among them, the headline is the output's own.
            similarity: (C, C) of the classes, for Open mIoU; None leaves it out.
        """
        # The counts are gathered here, so detectron2's code must not do it again.
        super().__init__(dataset_name, False, output_dir)
        self._is_gathered = distributed
        self._headline_level = headline_level
        self._similarity = similarity
        self._num_dataset_classes = self._num_classes
        self._class_names = [*self._class_names, "no object"]
        self._num_classes += 1
        # detectron2 multiplies label differences as uint8, which overflows from 16 classes on:
        # a prediction equal to the ground truth can get a boundary IoU of 0.
        self._compute_boundary_iou = False
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._mask_pixels = np.zeros(2, dtype=np.int64)  # all, unmapped
        self._level_matrices: dict[str, np.ndarray] = {}

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "file_name", "height" and "width" of the dataset.
            outputs: at original size, with "sem_seg_labels" int (H, W), where C is no object, or
                "sem_seg", non-negative scores (C, H, W) or (C + 1, H, W), the last no object;
                "levels", with "sem_seg_labels" of every level, and instances (see
                `found_instances`) are optional.
        """
        for sample, output in zip(inputs, outputs, strict=True):
            truth = self._load_labels(sample)
            levels = output.get("levels", {})
            counted: dict[int, np.ndarray] = {}  # by id of the labels
            for level, answer in levels.items():
                labels = answer["sem_seg_labels"]
                if id(labels) not in counted:
                    counted[id(labels)] = self._count(labels, truth)
                total = self._level_matrices.setdefault(level, np.zeros_like(self._conf_matrix))
                total += counted[id(labels)]
            labels = levels.get(self._headline_level, output).get("sem_seg_labels")
            if labels is None:
                labels = best_labels(output["sem_seg"])
            known = counted.get(id(labels))
            self._conf_matrix += self._count(labels, truth) if known is None else known
            if self._output_dir:
                drawn = labels.cpu().numpy()
                self._predictions.extend(self.encode_json_sem_seg(drawn, sample["file_name"]))
            if "instances" in output or "open_instances" in output:
                instances = found_instances(output)
                areas = mask_areas(instances.pred_masks)
                unmapped = areas[instances.pred_classes < 0].sum()
                self._mask_pixels += np.array([int(areas.sum()), int(unmapped)])

    def evaluate(self) -> OrderedDict | None:
        """detectron2's results, the two shares, mIoU per level, Open mIoU.

        Returns:
            None on all but the main process.
        """
        if self._is_gathered and not self._gather():
            return None
        with np.errstate(invalid="ignore"):  # nothing annotated: NaN, without a warning
            results = super().evaluate()
        metrics = results["sem_seg"]
        for name in [key for key in metrics if key.endswith("-no object")]:
            del metrics[name]
        labelled = self._conf_matrix[:-1, : self._num_dataset_classes]  # (C + 1, C)
        metrics["no_object"] = _percent(labelled[-1].sum(), labelled.sum())
        metrics["unmapped"] = _percent(self._mask_pixels[1], self._mask_pixels[0])
        if self._level_matrices:
            results["sem_seg_levels"] = {
                level: mean_iou(matrix[:-1, : self._num_dataset_classes])
                for level, matrix in self._level_matrices.items()
            }
        if self._similarity is not None:
            results["open_sem_seg"] = {"Open mIoU": open_mean_iou(labelled, self._similarity)}
        return results

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """COCO stuff format without the pixels of "no object"."""
        labels = np.flatnonzero(np.bincount(sem_seg.ravel())[: self._num_dataset_classes])
        ids = self._contiguous_id_to_dataset_id or {}
        return [
            {
                "file_name": input_file_name,
                "category_id": ids.get(label, label),
                "segmentation": encode_mask(sem_seg == label),
            }
            for label in labels.tolist()
        ]

    def _count(self, labels: torch.Tensor, truth: np.ndarray) -> np.ndarray:
        """Pixels by predicted and true class; the last row is empty, the last column unlabelled."""
        size = self._num_classes + 1
        counts = np.zeros(size * size, dtype=np.int64)
        whole = slice(0, truth.shape[0]), slice(0, truth.shape[1])
        for part in stripes(whole):
            pairs = size * labels[part].cpu().numpy().astype(np.int64) + truth[part]
            counts += np.bincount(pairs.ravel(), minlength=size * size)
        return counts.reshape(size, size)

    def _gather(self) -> bool:
        """Add up all processes' counts on the main process; whether this is the main process."""
        state = self._conf_matrix, self._level_matrices, self._mask_pixels, self._predictions
        gathered = comm.gather(state, dst=0)
        if not comm.is_main_process():
            return False
        matrices, levels, pixels, predictions = zip(*gathered, strict=True)
        self._conf_matrix, self._mask_pixels = sum(matrices), sum(pixels)
        names = max(levels, key=len)  # a process without images has none
        self._level_matrices = {
            name: sum(part[name] for part in levels if name in part) for name in names
        }
        self._predictions = sorted(
            (entry for part in predictions for entry in part), key=_prediction_order
        )
        return True

    def _load_labels(self, sample: dict) -> np.ndarray:
        """Label of every pixel, int64 (H, W), where C + 1 is unlabelled."""
        path = self.input_file_to_gt_file[sample["file_name"]]
        labels = read_labels(
            path,
            (sample["height"], sample["width"]),
            ignore_label=self._ignore_label,
            num_classes=self._num_dataset_classes,
            colours=MetadataCatalog.get(self._dataset_name).get("label_colors", None),
        )
        labels[labels == self._ignore_label] = self._num_classes
        return labels


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the annotated classes, as detectron2 computes it.

    Args:
        confusion: (C + 1, C) pixel counts, predicted class (the last row is "no object") by
            annotated class.

    Returns:
        Percentage; NaN without annotated pixels.
    """
    hits = confusion.diagonal().astype(float)
    annotated = confusion.sum(axis=0).astype(float)
    union = annotated + confusion[:-1].sum(axis=1).astype(float) - hits
    present = annotated > 0
    if not present.any():
        return float("nan")
    return float(100 * (np.sum(hits[present] / union[present]) / np.sum(present)))


def _prediction_order(entry: dict[str, Any]) -> tuple[str, int]:
    return entry["file_name"], entry["category_id"]


def _percent(part: int, whole: int) -> float:
    return 100.0 * float(part) / float(whole) if whole else 0.0


def open_mean_iou(confusion: np.ndarray, similarity: np.ndarray) -> float:
    """Open mIoU, see the module.

    Args:
        confusion: (C + 1, C) pixel counts, predicted class (the last row is "no object") by
            annotated class.
        similarity: (C, C) in [0, 1], predicted by annotated class, ones on the diagonal.

    Returns:
        Percentage; NaN without annotated pixels.

    Raises:
        ValueError: the two do not fit together.
    """
    check_similarity(similarity, confusion.shape[1])
    credit = similarity * confusion[:-1]
    hits = credit.sum(axis=0)
    false = (confusion[:-1] - credit).sum(axis=1)
    annotated = confusion.sum(axis=0)
    present = annotated > 0
    if not present.any():
        return float("nan")
    return float(100 * (hits[present] / (annotated + false)[present]).mean())


def check_similarity(similarity: np.ndarray, num_classes: int) -> None:
    """Refuse a matrix that is not (C, C) with ones on the diagonal and values in [0, 1].

    Raises:
        ValueError: it is not.
    """
    if similarity.shape != (num_classes, num_classes):
        raise ValueError(
            f"Got a class similarity matrix of shape {similarity.shape} for {num_classes} classes; "
            "it needs one row and one column per class."
        )
    if not (np.all(similarity >= 0) and np.all(similarity <= 1)):
        raise ValueError("A class similarity matrix has values from 0 to 1 only.")
    if not np.all(similarity.diagonal() == 1):
        raise ValueError("A class similarity matrix has ones on its diagonal.")
