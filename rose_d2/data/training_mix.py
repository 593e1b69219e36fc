"""Which datasets a run trains on, for which task, and with which share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.data.target_builders import TARGET_BUILDERS

# Tasks that the annotations of another task also serve; a view of a dataset may ask for them.
_FROM_ANY_MASKS = ("refinement", "region")
_FROM_PANOPTIC = ("semantic", "panoptic")


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
            known = sorted(name for name in DatasetCatalog.list() if _own_task(name))
            raise ValueError(
                f"DATASETS names {dataset_name!r}, which is not registered; registered for ROSE "
                f"are {', '.join(known)}."
            )
        own = _own_task(dataset_name)
        task = task or own
        if task not in TARGET_BUILDERS:
            raise ValueError(
                f"{spec!r} asks for the task {task!r}; known tasks are "
                f"{', '.join(TARGET_BUILDERS)}. Write name@task, or set `task` in the dataset's "
                "metadata."
            )
        if task != own and task not in _FROM_ANY_MASKS and not {task, own} <= set(_FROM_PANOPTIC):
            raise ValueError(
                f"{spec!r}: samples of the task {task!r} cannot be made from a dataset of the "
                f"task {own!r}; from any dataset come {' and '.join(_FROM_ANY_MASKS)}."
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


def _own_task(dataset_name: str) -> str | None:
    return MetadataCatalog.get(dataset_name).get("task", None)
