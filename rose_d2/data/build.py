"""Data loaders for training and testing."""

from __future__ import annotations

import logging
from typing import Any

import cv2
import numpy as np
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import build_detection_test_loader, trivial_batch_collator
from detectron2.utils import comm

from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.mixture import MixtureBatchSampler, MixtureDataset, MixtureStream

logger = logging.getLogger(__name__)


def build_rose_train_loader(cfg: CfgNode, start_iter: int = 0) -> torchdata.DataLoader:
    """Build the endless loader that mixes all of DATASETS.TRAIN.

    Each item of it is one micro-batch of this process: SOLVER.IMS_PER_BATCH divided by the number
    of processes. An iteration takes SOLVER.ACCUMULATION_STEPS of them.

    Args:
        cfg: the full config.
        start_iter: iteration to resume at; the stream continues as if it had not stopped.

    Returns:
        A loader of `list[dict]`, see `RoseDatasetMapper`.

    Raises:
        ValueError: DATASETS.TRAIN and TRAIN_WEIGHTS, or batch size and processes, do not fit.
    """
    weights = train_weights(cfg)
    names = list(weights)
    datasets = [
        DatasetFromList(
            load_dataset_dicts(name, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS),
            copy=False,
        )
        for name in names
    ]
    sizes = [len(dataset) for dataset in datasets]
    for name, size in zip(names, sizes, strict=True):
        share = weights[name] / sum(weights.values())
        logger.info("Training on %s: %d items, %.1f %% of the samples", name, size, 100 * share)
    seed = _seed(cfg)
    sampler = MixtureBatchSampler(
        MixtureStream(names=names, sizes=sizes, weights=list(weights.values()), seed=seed),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        start=start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
    )
    return torchdata.DataLoader(
        MixtureDataset(datasets, RoseDatasetMapper(cfg, is_train=True), seed),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_init_worker,
    )


def build_rose_test_loader(cfg: CfgNode, dataset_name: str) -> torchdata.DataLoader:
    """Build the loader that gives every item of a dataset once, in order, over all processes.

    Args:
        cfg: the full config.
        dataset_name: a registered dataset.

    Returns:
        A loader of `list[dict]` without targets, see `RoseDatasetMapper`.
    """
    return build_detection_test_loader(
        load_dataset_dicts(dataset_name, filter_empty=False),
        mapper=RoseDatasetMapper(cfg, is_train=False),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def build_rose_target_loader(cfg: CfgNode, dataset_name: str) -> torchdata.DataLoader:
    """Build the test loader with targets, as in training but without augmentation.

    For measuring against the targets themselves; evaluators read the annotations on their own.

    Args:
        cfg: the full config.
        dataset_name: a registered dataset.
    """
    plain = cfg.clone()
    plain.defrost()
    plain.INPUT.FLIP_PROB = plain.INPUT.CANDIDATE_PROB = 0.0
    return build_detection_test_loader(
        load_dataset_dicts(dataset_name, filter_empty=False),
        mapper=_SeededMapper(RoseDatasetMapper(plain, is_train=True)),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


class _SeededMapper:
    """Draws the same wording for every sample, so that two runs measure the same."""

    def __init__(self, mapper: RoseDatasetMapper) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        return self.mapper(dataset_dict, np.random.default_rng(0))


def train_weights(cfg: CfgNode) -> dict[str, float]:
    """The sampling weight of every training dataset that is used at all.

    Args:
        cfg: the full config.

    Returns:
        Weight by name, in the order of DATASETS.TRAIN, without those of weight 0.

    Raises:
        ValueError: no dataset, a name twice, or weights that do not fit the names.
    """
    names, weights = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TRAIN_WEIGHTS)
    if len(set(names)) != len(names):
        raise ValueError(
            f"DATASETS.TRAIN names a dataset twice: {names}; raise its weight instead."
        )
    weights = weights or [1.0] * len(names)
    if len(weights) != len(names):
        raise ValueError(
            f"DATASETS.TRAIN has {len(names)} names but TRAIN_WEIGHTS {len(weights)} numbers; "
            "give one weight per name, or () to weigh all equally."
        )
    if any(weight < 0 for weight in weights):
        raise ValueError(f"DATASETS.TRAIN_WEIGHTS must not be negative, got {weights}.")
    used = {name: float(weight) for name, weight in zip(names, weights, strict=True) if weight > 0}
    if not used:
        raise ValueError(
            f"Nothing to train on: DATASETS.TRAIN is {names} with weights {weights}; "
            "name at least one dataset and give it a weight above 0."
        )
    return used


def load_dataset_dicts(dataset_name: str, *, filter_empty: bool) -> list[dict[str, Any]]:
    """Load a registered dataset; each dict knows its dataset and task.

    Args:
        dataset_name: a registered dataset.
        filter_empty: drop images whose annotations are all crowds or missing.
    """
    dicts = get_detection_dataset_dicts(
        dataset_name, filter_empty=filter_empty, check_consistency=False
    )
    metadata = MetadataCatalog.get(dataset_name)
    for record in dicts:
        # Datasets registered with detectron2's own functions carry neither.
        record.setdefault("dataset_name", dataset_name)
        if "task" not in record:
            record["task"] = metadata.task
    return dicts


def _seed(cfg: CfgNode) -> int:
    if cfg.SEED >= 0:
        return cfg.SEED
    logger.warning("SEED is negative: the training data come in another order at each start.")
    return comm.shared_random_seed()


def _init_worker(worker_id: int) -> None:
    # Workers are the parallelism; threads of their own would only fight over the cores.
    cv2.setNumThreads(0)
