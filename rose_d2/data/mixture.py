"""One endless training stream out of several datasets, reproducible at any position."""

from __future__ import annotations

import itertools
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.image_io import ImageReadError
from rose_d2.prompts.tasks import TASKS
from rose_d2.structures.mask_codec import UnusableMaskError

logger = logging.getLogger(__name__)

# Damaged images in a row after which something else must be wrong.
_MAX_TRIES = 20
UNUSABLE = (ImageReadError, FileNotFoundError, UnusableMaskError)
"""Of one sample, which a run does without unless DATASETS.STRICT says otherwise."""
# Fewest samples over which the shares of the datasets come out exactly.
_MIN_BLOCK = 64


class MixtureItem(NamedTuple):
    """One position of the stream: its number, and which item of which dataset it is."""

    sample: int
    dataset: int
    index: int


class MixtureStream:
    """Maps a position to a dataset item, as a pure function of the seed and the position.

    The stream is cut into blocks. After every block each dataset has been drawn its weight's
    share of times, to within one; inside a block the order is random. A dataset is walked through
    in a new random order each time it is exhausted, so no item repeats before all were seen.
    """

    def __init__(self, *, names: list[str], sizes: list[int], weights: list[float], seed: int):
        """
        Args:
            names: of the datasets; a dataset's order depends on its name, not on its position.
            sizes: number of items per dataset, at least 1.
            weights: sampling weight per dataset, above 0; normalised here.
            seed: not negative.
        """
        # Exact fractions, so that the counts of a block do not depend on rounding.
        exact = [Fraction(weight) for weight in weights]
        self._sizes = sizes
        self._seed = seed
        self._keys = [zlib.crc32(name.encode()) for name in names]
        self._ends = [sum(exact[: k + 1]) / sum(exact) for k in range(len(exact))]
        # Twice in every block at least, or rounding could make a block's count negative.
        self._block_size = max(_MIN_BLOCK, math.ceil(2 * sum(exact) / min(exact)))
        self._block: tuple[int, np.ndarray] = (-1, np.empty(0))
        self._orders: dict[int, tuple[int, np.ndarray]] = {}

    def __getitem__(self, sample: int) -> MixtureItem:
        block, offset = divmod(sample, self._block_size)
        choices = self._choices(block)
        dataset = int(choices[offset])
        draw = self._drawn_before(block)[dataset] + int((choices[:offset] == dataset).sum())
        epoch, position = divmod(draw, self._sizes[dataset])
        return MixtureItem(sample, dataset, int(self._order(dataset, epoch)[position]))

    def _drawn_before(self, block: int) -> list[int]:
        """How often each dataset was drawn in all blocks before this one."""
        samples = block * self._block_size
        ends = [0] + [math.floor(end * samples + Fraction(1, 2)) for end in self._ends]
        return [end - start for start, end in itertools.pairwise(ends)]

    def _choices(self, block: int) -> np.ndarray:
        """The dataset of each position of a block."""
        if self._block[0] != block:
            before, after = self._drawn_before(block), self._drawn_before(block + 1)
            counts = [b - a for a, b in zip(before, after, strict=True)]
            rng = np.random.default_rng([self._seed, block])
            self._block = block, rng.permutation(np.repeat(np.arange(len(counts)), counts))
        return self._block[1]

    def _order(self, dataset: int, epoch: int) -> np.ndarray:
        """The order of a dataset's items in its `epoch`-th pass."""
        if self._orders.get(dataset, (-1,))[0] != epoch:
            rng = np.random.default_rng([self._seed, self._keys[dataset], epoch])
            self._orders[dataset] = epoch, rng.permutation(self._sizes[dataset])
        return self._orders[dataset][1]


class MixtureBatchSampler(torchdata.Sampler):
    """Cuts the stream into batches and gives every process its part of each.

    Batch b of process r holds consecutive positions, and all processes together hold the same
    positions whatever their number, so a run can be resumed on another number of processes.
    """

    def __init__(
        self,
        stream: MixtureStream,
        *,
        total_batch_size: int,
        rank: int,
        world_size: int,
        start: int,
    ) -> None:
        """
        Args:
            stream: the mixed stream.
            total_batch_size: samples of a batch over all processes.
            rank: of this process.
            world_size: number of processes.
            start: first batch to give.

        Raises:
            ValueError: the batch does not divide by the number of processes.
        """
        if total_batch_size < 1 or total_batch_size % world_size:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {total_batch_size}, which {world_size} processes cannot "
                "share equally; make it a positive multiple of the number of processes."
            )
        self._stream = stream
        self._total = total_batch_size
        self._own = range(
            rank * (total_batch_size // world_size), (rank + 1) * (total_batch_size // world_size)
        )
        self._start = start

    def __iter__(self) -> Iterator[list[MixtureItem]]:
        batch = self._start
        while True:
            yield [self._stream[batch * self._total + own] for own in self._own]
            batch += 1


class MixtureDataset(torchdata.Dataset):
    """Several datasets as one, each sample mapped with randomness of its own."""

    def __init__(
        self,
        datasets: list[Sequence[dict[str, Any]]],
        mapper: RoseDatasetMapper,
        seed: int,
        *,
        strict: bool = False,
    ) -> None:
        """
        Args:
            datasets: dataset dicts, in the order of the stream's datasets.
            mapper: called with a dataset dict and a generator.
            seed: not negative.
            strict: an image that is missing or damaged is fatal, instead of being replaced by
                the next one of its dataset.
        """
        self._datasets = datasets
        self._mapper = mapper
        self._seed = seed
        self._tries = 1 if strict else _MAX_TRIES
        self._reported: set[str] = set()

    def __getitem__(self, item: MixtureItem) -> dict[str, Any]:
        dataset = self._datasets[item.dataset]
        for attempt in range(self._tries):
            record = dataset[(item.index + attempt) % len(dataset)]
            # The position is part of the seed: an item looks different each time it comes round.
            rng = np.random.default_rng([self._seed, item.sample])
            try:
                return self._mapper(record, rng)
            except UNUSABLE as error:
                if attempt == self._tries - 1:
                    raise
                self._report(record["file_name"], error)
        raise AssertionError("a sample is tried at least once")

    def _report(self, file_name: str, error: Exception) -> None:
        """Warn once per file and worker."""
        if file_name not in self._reported:
            self._reported.add(file_name)
            logger.warning("Left out, the next image is taken instead: %s", error)


@dataclass(frozen=True)
class DatasetView:
    """A dataset and the task it is trained for.

    Attributes:
        spec: as the config spells it, "coco_2017_train" or "coco_2017_train@refinement".
        dataset_name: registered name.
        task: what the instruction asks for; by default the dataset's own task.
    """

    spec: str
    dataset_name: str
    task: str

    @classmethod
    def parse(cls, spec: str) -> DatasetView:
        """Read one entry of DATASETS.TRAIN; nothing is opened.

        Args:
            spec: a registered name, or "name@task" to make samples of another task from it.

        Raises:
            ValueError: the dataset or the task is unknown, or the task cannot be made from it.
        """
        dataset_name, _, task = spec.partition("@")
        if dataset_name not in DatasetCatalog.list():
            known = sorted(name for name in DatasetCatalog.list() if own_task(name))
            raise ValueError(
                f"DATASETS names {dataset_name!r}, which is not registered; registered for ROSE "
                f"are {', '.join(known)}."
            )
        own = own_task(dataset_name)
        task = task or own
        if task not in TASKS:
            raise ValueError(
                f"{spec!r} asks for the task {task!r}; known tasks are "
                f"{', '.join(TASKS)}. Write name@task, or set `task` in the dataset's "
                "metadata."
            )
        if task != own and own not in TASKS[task].made_from:
            possible = [name for name, other in TASKS.items() if own in other.made_from]
            raise ValueError(
                f"{spec!r}: samples of the task {task!r} cannot be made from a dataset of the "
                f"task {own!r}; from it come {', '.join(possible)}."
            )
        return cls(spec, dataset_name, task)


def training_weights(cfg: CfgNode) -> dict[DatasetView, float]:
    """The sampling weight of every dataset that is trained on at all.

    Args:
        cfg: the full config. DATASETS.TRAIN_WEIGHTS weighs the datasets. Where one of
            DATASETS.TASK_WEIGHTS is above 0, those give the share of each task instead, and the
            weights of the datasets only divide the share among the datasets of that task.

    Returns:
        Weight by view, in the order of DATASETS.TRAIN, without those of weight 0.

    Raises:
        ValueError: no dataset, one twice, unknown ones, or weights that do not fit.
    """
    weights = _dataset_weights(cfg)
    task_weights = {task.lower(): float(w) for task, w in cfg.DATASETS.TASK_WEIGHTS.items()}
    if any(weight < 0 for weight in task_weights.values()):
        raise ValueError(f"DATASETS.TASK_WEIGHTS must not be negative, got {task_weights}.")
    if any(task_weights.values()):
        weights = _shared_by_task(weights, task_weights)
    used = {view: weight for view, weight in weights.items() if weight > 0}
    if not used:
        raise ValueError(
            f"Nothing to train on: DATASETS.TRAIN is {list(cfg.DATASETS.TRAIN)} with weights "
            f"{list(weights.values())}; name at least one dataset and give it a weight above 0."
        )
    return used


def train_only_on(cfg: CfgNode, specs: Sequence[str]) -> None:
    """Replace the mix of a config by these datasets, all of one weight.

    Args:
        cfg: not frozen.
        specs: entries of DATASETS.TRAIN.
    """
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = tuple(specs), ()
    for task in cfg.DATASETS.TASK_WEIGHTS:
        cfg.DATASETS.TASK_WEIGHTS[task] = 0.0


def _dataset_weights(cfg: CfgNode) -> dict[DatasetView, float]:
    specs, weights = list(cfg.DATASETS.TRAIN), list(cfg.DATASETS.TRAIN_WEIGHTS)
    if len(set(specs)) != len(specs):
        raise ValueError(
            f"DATASETS.TRAIN names a dataset twice: {specs}; raise its weight instead."
        )
    weights = weights or [1.0] * len(specs)
    if len(weights) != len(specs):
        raise ValueError(
            f"DATASETS.TRAIN has {len(specs)} names but TRAIN_WEIGHTS {len(weights)} numbers; "
            "give one weight per name, or () to weigh all equally."
        )
    if any(weight < 0 for weight in weights):
        raise ValueError(f"DATASETS.TRAIN_WEIGHTS must not be negative, got {weights}.")
    return {
        DatasetView.parse(spec): float(weight) for spec, weight in zip(specs, weights, strict=True)
    }


def _shared_by_task(
    weights: dict[DatasetView, float], task_weights: dict[str, float]
) -> dict[DatasetView, float]:
    """Divide each task's weight among its datasets in the proportion of their own weights."""
    totals = dict.fromkeys(task_weights, 0.0)
    for view, weight in weights.items():
        totals[view.task] += weight
    idle = [task for task, weight in task_weights.items() if weight > 0 and totals[task] == 0]
    if idle:
        raise ValueError(
            f"DATASETS.TASK_WEIGHTS gives {', '.join(idle)} a share, but no dataset of "
            "DATASETS.TRAIN with a weight above 0 has that task; add one, for example as "
            "name@refinement, or set the task's weight to 0."
        )
    return {
        view: task_weights[view.task] * weight / totals[view.task] if weight > 0 else 0.0
        for view, weight in weights.items()
    }


def own_task(dataset_name: str) -> str | None:
    """The task of a registered dataset, None where its metadata tell none.

    One that detectron2's own functions registered, such as `register_coco_instances`, has only an
    evaluator type, which tells it as well.
    """
    metadata = MetadataCatalog.get(dataset_name)
    kind = metadata.get("evaluator_type", None)
    told = [task.name for task in TASKS.values() if kind and task.evaluator_type == kind]
    return metadata.get("task", told[0] if told else None)
