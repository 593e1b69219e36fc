"""detectron2's evaluators, fed with what a free-vocabulary model produces.

The metrics are detectron2's. What is added: predictions whose name fits no class of the dataset
are taken out where the evaluators have no place for them, and "no object" counts as an error.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import COCOEvaluator, COCOPanopticEvaluator, SemSegEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager
from PIL import Image
from pycocotools import mask as coco_mask


class RoseCOCOEvaluator(COCOEvaluator):
    """COCO AP of boxes and masks; predictions of class -1 (no class fits) are left out.

    AP ranks predictions by how likely both are right: objectness times the probability of the
    name (geometric mean over its tokens). Objectness alone ranks a certain object with a doubtful
    name before a fair one with a certain name.
    """

    def __init__(self, *args: Any, rank_by_name: bool = True, **kwargs: Any) -> None:
        """
        Args:
            *args: as for detectron2's COCOEvaluator.
            rank_by_name: False ranks by objectness alone.
            **kwargs: as for detectron2's COCOEvaluator.
        """
        super().__init__(*args, **kwargs)
        self._rank_by_name = rank_by_name

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id".
            outputs: with "instances" at original size; their `name_scores`, where there are any,
                are mean log-probabilities.
        """
        mapped = [_without_unmapped(output) for output in outputs]
        for instances in (output["instances"] for output in mapped):
            if self._rank_by_name and instances.has("name_scores"):
                instances.scores = instances.scores * instances.name_scores.exp()
        super().process(inputs, mapped)

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        results = super()._derive_coco_results(coco_eval, iou_type, class_names)
        if coco_eval is None and self._coco_api.getAnnIds(iscrowd=False):
            # detectron2 says NaN, but finding none of the objects is an AP of 0.
            return dict.fromkeys(results, 0.0)
        return results


class RoseSemSegEvaluator(SemSegEvaluator):
    """Semantic metrics for score maps with one more channel, "no object", which is always wrong.

    detectron2's evaluator leaves pixels of its spare row out of the ground truth's area, which
    would treat "no object" as if the pixel were unlabelled. Here that channel is a class of its
    own without any ground truth, so its pixels are missed pixels of their true class.

    Two shares are reported with the metrics, both in percent: `no_object` of the labelled pixels
    and `unmapped`, the part of all predicted mask pixels whose name fits no class.
    """

    def __init__(
        self, dataset_name: str, distributed: bool = True, output_dir: str | None = None
    ) -> None:
        """
        Args:
            dataset_name: registered dataset with sem_seg_file_name; `stuff_classes` of its
                metadata are all classes in label order.
            distributed: gather the counts of all processes.
            output_dir: where detectron2 writes the predictions; None writes nothing.
        """
        super().__init__(dataset_name, distributed, output_dir)
        self._num_dataset_classes = self._num_classes
        self._class_names = [*self._class_names, "no object"]
        self._num_classes += 1
        # detectron2 multiplies label differences as uint8, which overflows from 16 classes on:
        # a prediction equal to the ground truth can get a boundary IoU of 0.
        self._compute_boundary_iou = False

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._mask_pixels = np.zeros(2, dtype=np.int64)  # all, unmapped

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with the "file_name" of the dataset.
            outputs: with "sem_seg" (C + 1, H, W), non-negative scores at original size;
                "instances" are optional.
        """
        size = self._num_classes + 1  # and the unlabelled pixels
        for sample, output in zip(inputs, outputs, strict=True):
            predicted = _best_channel(output["sem_seg"]).cpu().numpy()
            truth = self._load_labels(self.input_file_to_gt_file[sample["file_name"]])
            truth[truth == self._ignore_label] = self._num_classes
            pairs = np.bincount((size * predicted + truth).ravel(), minlength=size * size)
            self._conf_matrix += pairs.reshape(size, size)
            self._predictions.extend(self.encode_json_sem_seg(predicted, sample["file_name"]))
            if "instances" in output:
                instances = output["instances"]
                areas = instances.pred_masks.flatten(1).sum(dim=1)
                unmapped = areas[instances.pred_classes < 0].sum()
                self._mask_pixels += np.array([int(areas.sum()), int(unmapped)])

    def evaluate(self) -> OrderedDict | None:
        """detectron2's results and the two shares; None on all but the main process."""
        if self._distributed:
            self._mask_pixels = sum(comm.all_gather(self._mask_pixels))
        results = super().evaluate()
        if results is None:
            return None
        metrics = results["sem_seg"]
        for name in [key for key in metrics if key.endswith("-no object")]:
            del metrics[name]
        labelled = self._conf_matrix[:, : self._num_dataset_classes]
        missed = labelled[self._num_dataset_classes]
        metrics["no_object"] = _percent(missed.sum(), labelled.sum())
        metrics["unmapped"] = _percent(self._mask_pixels[1], self._mask_pixels[0])
        return results

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """COCO stuff format without the pixels of "no object"."""
        json_list = []
        for label in np.unique(sem_seg[sem_seg < self._num_dataset_classes]).tolist():
            rle = coco_mask.encode(np.asfortranarray(sem_seg == label, dtype=np.uint8))
            segmentation = {"size": rle["size"], "counts": rle["counts"].decode("ascii")}
            json_list.append(
                {
                    "file_name": input_file_name,
                    "category_id": (self._contiguous_id_to_dataset_id or {}).get(label, label),
                    "segmentation": segmentation,
                }
            )
        return json_list

    def _load_labels(self, path: str) -> np.ndarray:
        with PathManager.open(path, "rb") as file:
            labels = np.array(Image.open(file), dtype=np.int64)
        known = (labels >= 0) & (labels < self._num_dataset_classes)
        strange = np.unique(labels[~known & (labels != self._ignore_label)])
        if len(strange):
            raise ValueError(
                f"The label image {path!r} has the labels {strange.tolist()}; allowed are 0 to "
                f"{self._num_dataset_classes - 1} and the ignore label {self._ignore_label}. "
                "Prepare the dataset again or correct its metadata."
            )
        return labels


class RosePanopticEvaluator(COCOPanopticEvaluator):
    """Panoptic quality; segments whose name fits no class become void."""

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "file_name" and "image_id".
            outputs: with "panoptic_seg", an id map and its segments_info.
        """
        cleaned = [{"panoptic_seg": _official_segments(*out["panoptic_seg"])} for out in outputs]
        super().process(inputs, cleaned)


def _best_channel(sem_seg: torch.Tensor) -> torch.Tensor:
    """Channel of the highest score per pixel, long (H, W).

    Channels without any score, nearly all of them in a large vocabulary, are not looked at again.
    """
    channels = (sem_seg.flatten(1).amax(dim=1) > 0).nonzero().flatten()
    if len(channels) == 0:
        return sem_seg.argmax(dim=0)
    return channels[sem_seg[channels].argmax(dim=0)]


def _without_unmapped(output: dict) -> dict:
    instances = output["instances"]
    return {"instances": instances[instances.pred_classes >= 0]}


def _official_segments(
    panoptic_seg: torch.Tensor, segments_info: list[dict]
) -> tuple[torch.Tensor, list[dict]]:
    """Only mapped segments with pixels, and only the keys the official format knows."""
    present = set(panoptic_seg.unique().tolist())
    official = [
        {key: segment[key] for key in ("id", "category_id", "isthing")}
        for segment in segments_info
        if segment["category_id"] >= 0 and segment["id"] in present
    ]
    ids = torch.tensor([segment["id"] for segment in official], device=panoptic_seg.device)
    return torch.where(torch.isin(panoptic_seg, ids), panoptic_seg, 0), official


def _percent(part: int, whole: int) -> float:
    return 100.0 * float(part) / float(whole) if whole else 0.0
