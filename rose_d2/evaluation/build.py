"""From a dataset's evaluator type to its evaluators."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from rose_d2.evaluation.category_evaluation import CategoryNameEvaluator
from rose_d2.evaluation.dense_evaluation import (
    RoseCOCOEvaluator,
    RosePanopticEvaluator,
    RoseSemSegEvaluator,
)
from rose_d2.evaluation.referring_evaluation import RefCOCOEvaluator
from rose_d2.structures.patch_grid import PatchGrid


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str | None = None
) -> DatasetEvaluator:
    """Evaluators of a registered dataset.

    Args:
        cfg: configuration with ROSE's keys.
        dataset_name: registered dataset; its metadata's `evaluator_type` decides.
        output_dir: where predictions are written; None takes <OUTPUT_DIR>/inference/<dataset>.

    Returns:
        One evaluator. Its result has, by evaluator type, the tasks coco: bbox, segm, names |
        sem_seg: sem_seg, names | coco_panoptic_seg: panoptic_seg, names | refcoco: referring.

    Raises:
        ValueError: if the evaluator type is unknown.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if evaluator_type == "refcoco":
        grid = PatchGrid.from_image_size(cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.LMM.PATCH_SIZE)
        return RefCOCOEvaluator(
            dataset_name,
            patch_grid=grid,
            window=cfg.MODEL.SUPER_PATCH.WINDOW,
            output_dir=output_dir,
        )
    if evaluator_type == "coco":
        benchmark: DatasetEvaluator = RoseCOCOEvaluator(
            dataset_name,
            ("bbox", "segm"),
            output_dir=output_dir,
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            use_fast_impl=False,
            rank_by_name=cfg.TEST.RANK_BY_NAME,
        )
    elif evaluator_type == "sem_seg":
        benchmark = RoseSemSegEvaluator(dataset_name, output_dir=output_dir)
    elif evaluator_type == "coco_panoptic_seg":
        benchmark = RosePanopticEvaluator(dataset_name, output_dir)
    else:
        raise ValueError(
            f"Dataset {dataset_name!r} has the evaluator type {evaluator_type!r}; known are coco, "
            "sem_seg, coco_panoptic_seg and refcoco. Set evaluator_type in its metadata."
        )
    names = CategoryNameEvaluator(
        dataset_name,
        view_size=cfg.MODEL.LMM.IMAGE_SIZE,
        scale_bounds=cfg.MODEL.SUPER_PATCH.SCALE_BOUNDS,
    )
    return DatasetEvaluators([benchmark, names])
