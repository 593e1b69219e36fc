"""Data loaders for training and testing."""

from __future__ import annotations

import logging
import math
import os
import pickle
import signal
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import cv2
import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.build import build_detection_test_loader, trivial_batch_collator
from detectron2.data.samplers import InferenceSampler
from detectron2.utils import comm

from rose_d2.data.annotations import check_label_images
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.refer_files import referring_samples
from rose_d2.data.datasets.registration import strict_annotations
from rose_d2.data.leakage import benchmarks_split_by, exclude_evaluation_images
from rose_d2.data.mixture import (
    UNUSABLE,
    MixtureBatchSampler,
    MixtureDataset,
    MixtureStream,
    own_task,
    training_weights,
)
from rose_d2.prompts.tasks import TASKS

logger = logging.getLogger(__name__)

# What dicts share is worth storing once; a text or a number is as short as a reference to it.
_SHAREABLE = (list, dict)
_NAMING = ("file_name", "image_id", "ref_id", "sent_id", "task", "dataset_name")
_Sample = TypeVar("_Sample")


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
    weights = training_weights(cfg)
    # Views of one dataset share its dicts.
    names = dict.fromkeys(view.dataset_name for view in weights)
    loaded = {name: load_training_dicts(cfg, name) for name in names}
    datasets = [TaskDicts(loaded[view.dataset_name], view.task) for view in weights]
    for (view, weight), dataset in zip(weights.items(), datasets, strict=True):
        share = 100 * weight / sum(weights.values())
        logger.info(
            "Training on %s: %d items, %.1f %% of the samples", view.spec, len(dataset), share
        )
    seed = _seed(cfg)
    sampler = MixtureBatchSampler(
        MixtureStream(
            names=[view.spec for view in weights],
            sizes=[len(dataset) for dataset in datasets],
            weights=list(weights.values()),
            seed=seed,
        ),
        total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        start=start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
    )
    return torchdata.DataLoader(
        MixtureDataset(
            datasets, RoseDatasetMapper(cfg, is_train=True), seed, strict=cfg.DATASETS.STRICT
        ),
        batch_sampler=sampler,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_init_worker,
    )


def build_rose_test_loader(
    cfg: CfgNode,
    dataset_name: str,
    dicts: list[dict[str, Any]] | None = None,
    *,
    strict: bool = True,
) -> torchdata.DataLoader:
    """Build the loader that gives every item of a dataset once, in order, over all processes.

    Args:
        cfg: the full config.
        dataset_name: a registered dataset.
        dicts: some of its `load_test_dicts`; None is all.
        strict: False gives a `left_out` in place of an item whose image or label image cannot be
            used, which would otherwise be fatal.

    Returns:
        A loader of `list[dict]` without targets, see `RoseDatasetMapper`.
    """
    dicts = load_test_dicts(cfg, dataset_name) if dicts is None else dicts
    mapper: Callable[[dict[str, Any]], dict[str, Any]] = RoseDatasetMapper(cfg, is_train=False)
    loader = build_detection_test_loader(
        dicts,
        mapper=mapper if strict else _LenientMapper(mapper),
        sampler=WholeBatchSampler(len(dicts), cfg.TEST.IMS_PER_BATCH),
        batch_size=cfg.TEST.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    loader.worker_init_fn = _init_worker  # which detectron2's function does not take
    return loader


LEFT_OUT = "left_out"
"""Key of the reason, in what stands for an item that cannot be used."""


def left_out(record: Mapping[str, Any], reason: object) -> dict[str, Any]:
    """What stands for an item that cannot be used: all that names it, and the reason.

    Args:
        record: its dataset dict.
        reason: a sentence, or an error with one.
    """
    return {key: record[key] for key in _NAMING if key in record} | {LEFT_OUT: str(reason)}


def usable_for_scoring(record: dict[str, Any]) -> dict[str, Any]:
    """A dataset dict, or a `left_out` where the label image it is scored against is unusable."""
    try:
        check_label_images(record, MetadataCatalog.get(record["dataset_name"]))
    except UNUSABLE as error:
        return left_out(record, error)
    return record


class _LenientMapper:
    """Gives a `left_out` for an item whose image or label image cannot be used."""

    def __init__(self, mapper: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.mapper = mapper

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        usable = usable_for_scoring(dataset_dict)
        try:
            return usable if LEFT_OUT in usable else self.mapper(usable)
        except UNUSABLE as error:
            return left_out(dataset_dict, error)


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


def load_training_dicts(cfg: CfgNode, dataset_name: str) -> PackedDicts:
    """Load what a dataset contributes to training.

    Args:
        cfg: the full config.
        dataset_name: a registered dataset.

    Returns:
        Its dicts without those of referring val and test images.

    Raises:
        ValueError: nothing is left; or an annotation is broken and DATASETS.STRICT is set.
    """
    with strict_annotations(cfg.DATASETS.STRICT):
        dicts = load_dataset_dicts(
            dataset_name, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    if cfg.DATASETS.EXCLUDE_EVAL_SPLITS:
        benchmarks = benchmarks_split_by(cfg.DATASETS.EXCLUDE_EVAL_SPLITS)
        metadata = MetadataCatalog.get(dataset_name)
        dicts = exclude_evaluation_images(dicts, metadata, benchmarks=benchmarks).kept
    if not dicts:
        raise ValueError(
            f"No training item is left of {dataset_name!r}; check its files with "
            "`python tools/check_data.py`, or remove it from DATASETS.TRAIN."
        )
    return PackedDicts(dicts)


class TaskDicts(Sequence):
    """Dataset dicts, trained for one task."""

    def __init__(self, dicts: Sequence[dict[str, Any]], task: str) -> None:
        """
        Args:
            dicts: of a dataset.
            task: takes the place of the dataset's own.
        """
        self.dicts = dicts
        self.task = task

    def __len__(self) -> int:
        return len(self.dicts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.dicts[index] | {"task": self.task}


def sample_key(sample: Mapping[str, Any]) -> str:
    """What tells an item of a dataset from all others.

    Args:
        sample: a dataset dict or a model input.

    Returns:
        "<ref_id>-<sent_id>" of a referring sentence ("<ref_id>" of a whole reference), else the
        image id.
    """
    if "ref_id" in sample:
        parts = (sample[name] for name in ("ref_id", "sent_id") if name in sample)
        return "-".join(map(str, parts))
    return str(sample["image_id"])


def load_test_dicts(cfg: CfgNode, dataset_name: str) -> list[dict[str, Any]]:
    """Load the samples that a dataset is evaluated on, in the order of the test loader.

    Args:
        cfg: the full config; TEST.REFERRING.PROTOCOL says what a referring sample is, and
            TEST.NUM_SAMPLES how many there are.
        dataset_name: a registered dataset.

    Raises:
        ValueError: the protocol is unknown, see `referring_samples`.
    """
    dicts = load_dataset_dicts(dataset_name, filter_empty=False)
    if dicts and TASKS[dicts[0]["task"]].takes_expression:
        dicts = referring_samples(dicts, cfg.TEST.REFERRING.PROTOCOL)
    return fixed_subset(dicts, cfg.TEST.NUM_SAMPLES)


def fixed_subset(samples: Sequence[_Sample], count: int) -> list[_Sample]:
    """Samples at even distances, the same ones at every call.

    Args:
        samples: in a fixed order.
        count: how many; 0, or more than there are, keeps all.
    """
    if not 0 < count < len(samples):
        return list(samples)
    return [samples[number * len(samples) // count] for number in range(count)]


def load_dataset_dicts(dataset_name: str, *, filter_empty: bool) -> list[dict[str, Any]]:
    """Load a registered dataset; each dict knows its dataset and task.

    Args:
        dataset_name: a registered dataset.
        filter_empty: drop images whose annotations are all crowds or missing.
    """
    dicts = get_detection_dataset_dicts(
        dataset_name, filter_empty=filter_empty, check_consistency=False
    )
    for record in dicts:
        # Datasets registered with detectron2's own functions carry neither.
        record.setdefault("dataset_name", dataset_name)
        if "task" not in record:
            record["task"] = own_task(dataset_name)
    return dicts


def _seed(cfg: CfgNode) -> int:
    if cfg.SEED >= 0:
        return cfg.SEED
    logger.warning("SEED is negative: the training data come in another order at each start.")
    return comm.shared_random_seed()


def _init_worker(worker_id: int) -> None:
    obey_only_the_parent()
    # Workers are the parallelism; threads of their own would only fight over the cores.
    cv2.setNumThreads(0)


class WholeBatchSampler(torchdata.Sampler[int]):
    """Every item once, like detectron2's `InferenceSampler`, but cut only between batches.

    Whatever the number of processes, the model then sees the same batches. Numbers do not change
    even by the rounding that another batch would bring.
    """

    def __init__(self, size: int, batch_size: int) -> None:
        """
        Args:
            size: items of the dataset, at least 1.
            batch_size: of the loader.
        """
        batches = InferenceSampler._get_local_indices(
            math.ceil(size / batch_size), comm.get_world_size(), comm.get_rank()
        )
        self._indices = range(
            min(size, batches.start * batch_size), min(size, batches.stop * batch_size)
        )

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


def obey_only_the_parent() -> None:
    """Ignore SIGTERM from any process but the parent, from now on in this process.

    Has to be called in the main thread before others are started.
    """
    if not hasattr(signal, "sigwaitinfo"):  # macOS
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_wait_for_the_parent, name="SIGTERM", daemon=True).start()


def _wait_for_the_parent() -> None:
    # A handler would not learn who sent the signal.
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class _Layout(NamedTuple):
    """What many dicts have in common: their keys, and which of the values are shared objects."""

    keys: tuple[str, ...]
    shared: tuple[int, ...]


class PackedDicts(Sequence):
    """Dataset dicts, serialised once; every access makes a new dict.

    A list of many small Python objects is copied page by page into every worker process, since
    reading an object changes its reference count. The bytes of a few tensors stay shared, whether
    workers are forked or spawned. A list or dict that several dataset dicts hold as the same
    object (`annotations`, `segments_info`) is stored once, and so are their keys.
    """

    def __init__(self, dicts: Sequence[dict[str, Any]]) -> None:
        """
        Args:
            dicts: dataset dicts of plain containers; they are not modified. Nested values must
                not be changed while this runs.
        """
        holders = Counter(
            id(value) for d in dicts for value in d.values() if isinstance(value, _SHAREABLE)
        )
        shared = {
            id(value): value
            for d in dicts
            for value in d.values()
            if isinstance(value, _SHAREABLE) and holders[id(value)] > 1
        }
        numbers = {key: number for number, key in enumerate(shared)}
        layouts: dict[_Layout, int] = {}
        self._shared = _PackedBytes(map(_dump, shared.values()))
        self._items = _PackedBytes(_dump(_split(d, numbers, layouts)) for d in dicts)
        self._layouts = list(layouts)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """A new dict, equal to the original; changing it changes nothing else.

        Args:
            index: counted from the end if negative.
        """
        layout_number, *values = self._items[range(len(self))[index]]
        layout = self._layouts[layout_number]
        for position in layout.shared:
            values[position] = self._shared[values[position]]
        return dict(zip(layout.keys, values, strict=True))

    @property
    def num_bytes(self) -> int:
        """Size of the buffers."""
        return self._shared.num_bytes + self._items.num_bytes


def _split(
    record: dict[str, Any], numbers: dict[int, int], layouts: dict[_Layout, int]
) -> tuple[Any, ...]:
    """The number of a dict's layout, then its values, shared ones as their numbers."""
    values = list(record.values())
    shared = tuple(position for position, value in enumerate(values) if id(value) in numbers)
    for position in shared:
        values[position] = numbers[id(values[position])]
    layout = _Layout(tuple(record), shared)
    return layouts.setdefault(layout, len(layouts)), *values


def _dump(content: Any) -> bytes:
    return pickle.dumps(content, protocol=pickle.HIGHEST_PROTOCOL)


class _PackedBytes:
    """Pickles end to end in one tensor, and where each one ends in another."""

    def __init__(self, pickles: Iterable[bytes]) -> None:
        content, ends = bytearray(), array("q", [0])
        for part in pickles:
            content += part
            ends.append(len(content))
        # An empty buffer cannot become a tensor.
        self._content = torch.frombuffer(content or bytearray(1), dtype=torch.uint8)
        self._ends = torch.frombuffer(ends, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> Any:
        start, end = self._ends[index : index + 2].tolist()
        return pickle.loads(memoryview(self._content[start:end].numpy()))

    @property
    def num_bytes(self) -> int:
        return self._content.nbytes + self._ends.nbytes
