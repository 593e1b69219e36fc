"""Images per second, model FLOPs utilisation and memory, as metrics of a training run."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from rose_d2.engine.health.metrics_flops import StepFlops, measured_peak

logger = logging.getLogger(__name__)

_GIB = 2**30
_TERA = 1e12


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
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
