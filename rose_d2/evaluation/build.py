"""From a dataset's evaluator type to its evaluators."""

from __future__ import annotations

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from rose_d2.evaluation.instance import RoseCOCOEvaluator
from rose_d2.evaluation.names import CategoryNameEvaluator
from rose_d2.evaluation.panoptic import RosePanopticEvaluator
from rose_d2.evaluation.referring import RefCOCOEvaluator
from rose_d2.evaluation.semantic import RoseSemSegEvaluator
from rose_d2.prompts.tasks import TASKS
from rose_d2.structures.patches import PatchGrid
from rose_d2.vocabulary.text_embeddings import TextEmbeddingBank
from rose_d2.vocabulary.vocabulary import (
    CategoryVocabulary,
    VocabularySettings,
    build_vocabulary,
)
from rose_d2.vocabulary.wordnet import class_similarity_matrix

EVALUATOR_TYPES = tuple(
    dict.fromkeys(task.evaluator_type for task in TASKS.values() if task.evaluator_type)
)


def check_evaluator_type(dataset_name: str) -> str:
    """The `evaluator_type` of a registered dataset.

    Raises:
        ValueError: it has none, or an unknown one.
    """
    evaluator_type = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if evaluator_type not in EVALUATOR_TYPES:
        raise ValueError(
            f"Dataset {dataset_name!r} has the evaluator type {evaluator_type!r}; known are "
            f"{', '.join(EVALUATOR_TYPES)}. Set evaluator_type in its metadata."
        )
    return evaluator_type


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
        sem_seg: sem_seg, names | coco_panoptic_seg: panoptic_seg, names | refcoco: referring (or
        referring_per_ref, by TEST.REFERRING.PROTOCOL).
        Where predictions name the rule that mapped them also <task>_levels, and with
        TEST.OPEN_METRICS also open_segm, open_sem_seg or open_panoptic_seg.

    Raises:
        ValueError: if the evaluator type is unknown, or TEST.VOCABULARY or TEST.OPEN_METRICS asks
            for what is not there.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    evaluator_type = check_evaluator_type(dataset_name)
    if cfg.TEST.NUM_SAMPLES and evaluator_type == "coco_panoptic_seg":
        raise ValueError(
            f"TEST.NUM_SAMPLES is {cfg.TEST.NUM_SAMPLES}, but PQ of {dataset_name} counts all its "
            "images; set it to 0, or leave the dataset out of DATASETS.TEST."
        )
    if evaluator_type == "refcoco":
        grid = PatchGrid.from_image_size(cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.LMM.PATCH_SIZE)
        return RefCOCOEvaluator(
            dataset_name,
            patch_grid=grid,
            window=cfg.MODEL.SUPER_PATCH.WINDOW,
            protocol=cfg.TEST.REFERRING.PROTOCOL,
            output_dir=output_dir,
            num_samples=cfg.TEST.NUM_SAMPLES,
        )
    bank = TextEmbeddingBank.from_config(cfg)
    settings = VocabularySettings.from_config(cfg)
    vocabulary = build_vocabulary(settings, MetadataCatalog.get(dataset_name), bank)
    names = CategoryNameEvaluator(
        dataset_name,
        view_size=cfg.MODEL.LMM.IMAGE_SIZE,
        scale_bounds=cfg.MODEL.SUPER_PATCH.SCALE_BOUNDS,
        levels=vocabulary.levels,
        # Without a cache on disk: what a model happens to say is no vocabulary to come back to.
        embed_names=TextEmbeddingBank(bank.source, bank.dim),
    )
    benchmark = _build_benchmark(cfg, dataset_name, evaluator_type, output_dir, vocabulary)
    return DatasetEvaluators([benchmark, names])


def _build_benchmark(
    cfg: CfgNode,
    dataset_name: str,
    evaluator_type: str,
    output_dir: str,
    vocabulary: CategoryVocabulary,
) -> DatasetEvaluator:
    """The evaluator of the benchmark's own metric."""
    similarity = None
    if cfg.TEST.OPEN_METRICS:
        similarity = class_similarity_matrix(
            vocabulary.class_names, cfg.TEST.OPEN_METRICS, wordnet=cfg.TEST.VOCABULARY.WORDNET
        )
    if evaluator_type == "coco":
        return RoseCOCOEvaluator(
            dataset_name,
            output_dir=output_dir,
            max_dets_per_image=cfg.TEST.DETECTIONS_PER_IMAGE,
            rank_by_name=cfg.TEST.RANK_BY_NAME,
            levels=vocabulary.levels,
            similarity=similarity,
            num_samples=cfg.TEST.NUM_SAMPLES,
        )
    evaluator = RoseSemSegEvaluator if evaluator_type == "sem_seg" else RosePanopticEvaluator
    return evaluator(
        dataset_name,
        output_dir=output_dir,
        headline_level=cfg.TEST.VOCABULARY.LEVEL,
        similarity=similarity,
    )
