"""Refinement at evaluation, switched on by TEST.REFINEMENT.ENABLED."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from torch import nn

from rose_d2.refinement.refinement_evaluation import RefinementEvaluator
from rose_d2.refinement.rose_with_refinement import ROSEWithRefinement

logger = logging.getLogger(__name__)

# Evaluator types of the tasks that are refined.
_REFINED_TYPES = ("coco", "sem_seg", "refcoco")


def build_evaluation_model(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model that `--eval-only` runs: the given one, with refinement if that is on.

    Args:
        cfg: configuration with ROSE's keys.
        model: a ROSE with its weights.
    """
    if not cfg.TEST.REFINEMENT.ENABLED:
        return model
    return ROSEWithRefinement.from_config(cfg, model)


def build_refinement_evaluator(
    cfg: CfgNode, dataset_name: str, build: Callable[..., DatasetEvaluator]
) -> DatasetEvaluator:
    """Evaluators of a dataset, before and after refinement if that is on.

    Args:
        cfg: configuration with ROSE's keys.
        dataset_name: registered dataset.
        build: makes the dataset's ordinary evaluator from (cfg, dataset_name, output_dir), see
            `build_evaluator`; output_dir None is its own choice. Called twice for refinement, the
            files of "before" go to <OUTPUT_DIR>/inference/<dataset>/before.
    """
    if not cfg.TEST.REFINEMENT.ENABLED:
        return build(cfg, dataset_name, None)
    if MetadataCatalog.get(dataset_name).get("evaluator_type", None) not in _REFINED_TYPES:
        logger.info("%s is evaluated without refinement: its task has none.", dataset_name)
        return build(cfg, dataset_name, None)
    folder = os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name, "before")
    return RefinementEvaluator(build(cfg, dataset_name, folder), build(cfg, dataset_name, None))
