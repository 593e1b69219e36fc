"""What a training logs beside its losses: those of each task, images a second, FLOPs, memory."""

from __future__ import annotations

import functools
import logging
import math
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)

# Sum and number of images, by task and term.
TaskSums = dict[tuple[str, str], tuple[float, int]]
_GIB = 2**30
_TERA = 1e12
# Side of the square matrices whose product measures a device, and how often it is repeated.
_SIDE = {"cuda": 8192, "cpu": 1024}
_REPETITIONS = 3


class TaskLossHook(HookBase):
    """Writes `task/<task>/<term>`, `task/<task>/total` and `task/<task>/images`.

    The loss of a run mixes its tasks, so a task that gets worse hides behind the others. The model
    returns means only, so its supervisor is asked for the terms of each image; they are collected
    without waiting for the device, and averaged over `period` iterations. Terms are named without
    their `loss_`: detectron2's progress line shows every metric with "loss" in its name. NaN and
    infinity count nowhere.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        """
        Args:
            model: the unwrapped model; one without a `supervisor` has no such metrics.
            period: iterations.
        """
        self._model = model
        self._period = period
        self._handle: RemovableHandle | None = None
        self._batches: list[tuple[list[str], dict[str, torch.Tensor]]] = []

    def before_train(self) -> None:
        supervisor = getattr(self._model, "supervisor", None)
        if supervisor is not None:
            self._handle = supervisor.register_loss_hook(self._collect)

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

    def _collect(self, batched_inputs: list[dict], losses: dict[str, torch.Tensor]) -> None:
        self._batches.append(([item["task"] for item in batched_inputs], losses))


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


class ThroughputHook(HookBase):
    """Writes `images_per_second`, `mfu`, `peak_memory_gib` and `host_memory_gib`.

    Every step's time counts but the first one's, during which the operations are counted and the
    peak of the device is measured. Evaluation, saving and logging are not part of a step.
    `mfu` is the share of the peak that the model's operations reach; recomputation by gradient
    checkpointing is not among them. Memory is the most that any process has used so far.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        images_per_step: int,
        period: int,
        dtypes: Sequence[torch.dtype],
        peak_tflops: float,
    ) -> None:
        """
        Args:
            model: the unwrapped model.
            images_per_step: of all processes in one optimizer step.
            period: iterations between two readings of memory.
            dtypes: what matrix products are computed in; the fastest makes the peak.
            peak_tflops: the peak of a device in TFLOP/s; 0 measures it, below 0 leaves out `mfu`.
        """
        self._model = model
        self._images_per_step = images_per_step
        self._period = period
        self._dtypes = dtypes
        self._peak_tflops = peak_tflops
        self._counter: StepFlops | None = None
        self._counting = ExitStack()
        # Operations of one step on one process, and what its device could do per second.
        self._step_flops = 0.0
        self._peak = 0.0
        self._start = 0.0

    def before_step(self) -> None:
        if self._counter is None and self._peak_tflops >= 0:
            self._counter = self._counting.enter_context(StepFlops(self._model))
        self._start = time.perf_counter()

    def after_step(self) -> None:
        seconds = time.perf_counter() - self._start
        storage = self.trainer.storage
        if self.trainer.iter == self.trainer.start_iter:
            self._finish_counting()
        else:
            storage.put_scalar("images_per_second", self._images_per_step / seconds)
            if self._step_flops and self._peak:
                storage.put_scalar("mfu", self._step_flops / seconds / self._peak)
        done = self.trainer.iter + 1
        if done % self._period == 0 or done == self.trainer.max_iter:
            self._put_memory()

    def after_train(self) -> None:
        self._counting.close()  # after a failed first step

    def _finish_counting(self) -> None:
        self._counting.close()
        if self._counter is None:
            return
        counts = (self._counter.forward, self._counter.backward, self._counter.recomputed)
        ranks = comm.all_gather(counts)
        forward, backward, recomputed = (sum(part) / len(ranks) for part in zip(*ranks))
        self._step_flops = forward + backward
        device = next(self._model.parameters()).device
        self._peak = self._peak_tflops * _TERA or max(
            measured_peak(device, dtype) for dtype in self._dtypes
        )
        logger.info(
            "One step takes %.4g TFLOP per process: %.4g forward, %.4g backward; %.4g more are "
            "recomputed. The peak of its device is %.4g TFLOP/s (%s).",
            self._step_flops / _TERA,
            forward / _TERA,
            backward / _TERA,
            recomputed / _TERA,
            self._peak / _TERA,
            "SOLVER.DEVICE_PEAK_TFLOPS" if self._peak_tflops else "measured by a matrix product",
        )

    def _put_memory(self) -> None:
        device = next(self._model.parameters()).device
        own = {"host_memory_gib": _peak_host_bytes() / _GIB}
        if device.type == "cuda":
            own["peak_memory_gib"] = torch.cuda.max_memory_allocated(device) / _GIB
        ranks = comm.gather(own)
        for name in own if comm.is_main_process() else ():
            most = max(rank[name] for rank in ranks)
            self.trainer.storage.put_scalar(name, most, smoothing_hint=False)


def _peak_host_bytes() -> int:
    """The most memory this process has held, without its data workers."""
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class StepFlops(TorchDispatchMode):
    """Counts the operations of a real training step while it runs; its numbers stay the same.

    `FlopCounterMode` changes the order in which gradients are added up, and with it their last
    bits, so only its formulas are used here: matrix products, convolutions and attention count, a
    multiply-add is two. Model FLOPs utilisation (PaLM, appendix B) leaves out what gradient
    checkpointing computes a second time, so that is counted apart.

    Attributes:
        forward: operations of all forward passes.
        backward: of all backward passes, without recomputation.
        recomputed: of forward passes repeated in the backward pass.
    """

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: the unwrapped model.
        """
        super().__init__()
        self.forward = self.recomputed = self.backward = 0
        self._model = model
        self._submodules = {id(module) for module in model.modules() if module is not model}
        self._formulas = FlopCounterMode(display=False).flop_registry
        self._handles: list[RemovableHandle] = []
        self._in_forward = False
        # How many submodules are being called outside the model's own forward pass.
        self._depth = 0

    @property
    def model_flops(self) -> int:
        """What the step needs: forward and backward without recomputation."""
        return self.forward + self.backward

    def __enter__(self) -> StepFlops:
        self._handles = [
            self._model.register_forward_pre_hook(lambda *_: self._set_in_forward(True)),
            self._model.register_forward_hook(lambda *_: self._set_in_forward(False)),
            register_module_forward_pre_hook(lambda module, *_: self._call(module, 1)),
            # Recomputation is broken off by an exception once it has all it needs.
            register_module_forward_hook(
                lambda module, *_: self._call(module, -1), always_call=True
            ),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        formula = self._formulas.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self._add(formula(*args, **kwargs, out_val=output))
        return output

    def _add(self, flops: int) -> None:
        if self._in_forward:
            self.forward += flops
        # A backward pass calls no module and needs no gradient; custom functions switch it off.
        elif self._depth or torch.is_grad_enabled():
            self.recomputed += flops
        else:
            self.backward += flops

    def _set_in_forward(self, value: bool) -> None:
        self._in_forward = value

    def _call(self, module: nn.Module, change: int) -> None:
        if not self._in_forward and id(module) in self._submodules:
            self._depth += change


@functools.cache
def measured_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Measure how many operations per second the device makes in a large matrix product.

    Args:
        device: where; on the CPU with the threads this process has.
        dtype: of the matrices.

    Returns:
        Operations per second, the best of some repetitions.
    """
    side = _SIDE["cuda" if device.type == "cuda" else "cpu"]
    # A generator of its own, so that training draws the numbers it would draw anyway.
    generator = torch.Generator(device).manual_seed(0)
    matrix = torch.rand(side, side, generator=generator, device=device).to(dtype)
    seconds = [_seconds_of_product(matrix) for _ in range(1 + _REPETITIONS)]
    return 2 * side**3 / min(seconds[1:])


def _seconds_of_product(matrix: torch.Tensor) -> float:
    _wait_for(matrix.device)
    start = time.perf_counter()
    matrix @ matrix
    _wait_for(matrix.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
