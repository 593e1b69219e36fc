"""Losses of each task, averaged over the images of all processes."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.hooks import RemovableHandle

# Sum and number of images, by task and term.
TaskSums = dict[tuple[str, str], tuple[float, int]]


class TaskLossHook(HookBase):
    """Writes `task/<task>/<term>`, `task/<task>/total` and `task/<task>/images`.

    The loss of a run mixes its tasks, so a task that gets worse hides behind the others. The model
    keeps the terms of each image of a batch as `image_losses`; here they are collected, without
    waiting for the device, and averaged over `period` iterations. Terms are named without their
    `loss_`: detectron2's progress line shows every metric with "loss" in its name. NaN and infinity
    count nowhere.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        """
        Args:
            model: the unwrapped model; one without `image_losses` has no such metrics.
            period: iterations.
        """
        self._model = model
        self._period = period
        self._handle: RemovableHandle | None = None
        self._batches: list[tuple[list[str], dict[str, torch.Tensor]]] = []

    def before_train(self) -> None:
        if hasattr(self._model, "image_losses"):
            self._handle = self._model.register_forward_hook(self._collect)

    def after_train(self) -> None:
        if self._handle is not None:
            self._handle.remove()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self._handle is None or (done % self._period and done != self.trainer.max_iter):
            return
        ranks = comm.gather(sum_by_task(self._batches))
        self._batches.clear()
        for name, value in task_metrics(ranks).items():
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)

    def _collect(self, model: Any, args: tuple[list[dict[str, Any]]], output: Any) -> None:
        if model.training:
            tasks = [item["task"] for item in args[0]]
            self._batches.append((tasks, dict(model.image_losses)))


def sum_by_task(
    batches: Sequence[tuple[Sequence[str], Mapping[str, torch.Tensor]]],
) -> TaskSums:
    """Add up the terms of every image under its task.

    Args:
        batches: the tasks of B images, and (B,) values by loss name.
    """
    sums: TaskSums = defaultdict(lambda: (0.0, 0))
    for tasks, losses in batches:
        table = torch.stack([values.float() for values in losses.values()]).tolist()
        for name, values in zip(losses, table, strict=True):
            for task, value in zip(tasks, values, strict=True):
                if math.isfinite(value):
                    total, count = sums[task, name]
                    sums[task, name] = (total + value, count + 1)
    return dict(sums)


def task_metrics(ranks: Sequence[TaskSums]) -> dict[str, float]:
    """Average what `sum_by_task` found on all processes.

    Args:
        ranks: one entry per process; none on processes that do not write.

    Returns:
        Values by metric name.
    """
    metrics: dict[str, float] = {}
    keys = dict.fromkeys(key for sums in ranks for key in sums)
    for task, name in sorted(keys):
        total = sum(sums[task, name][0] for sums in ranks if (task, name) in sums)
        count = sum(sums[task, name][1] for sums in ranks if (task, name) in sums)
        prefix = f"task/{task}"
        metrics[f"{prefix}/{name.removeprefix('loss_')}"] = total / count
        metrics[f"{prefix}/total"] = metrics.get(f"{prefix}/total", 0.0) + total / count
        metrics[f"{prefix}/images"] = max(metrics.get(f"{prefix}/images", 0), count)
    return metrics
