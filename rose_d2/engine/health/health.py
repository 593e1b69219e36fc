"""The hooks that tell how a training run is doing: metrics by task, throughput and the watchdog."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from rose_d2.engine.health.metrics_tasks import TaskLossHook
from rose_d2.engine.health.metrics_throughput import ThroughputHook
from rose_d2.engine.health.watchdog import WatchdogHook
from rose_d2.engine.job_store import shared_store
from rose_d2.engine.steps.step_engine import StepEngine, amp_dtype


def build_health_hooks(cfg: CfgNode, engine: StepEngine, model: nn.Module) -> list[HookBase]:
    """Build the hooks, which all ranks have to run and which come before the writers.

    Args:
        cfg: the full config: SOLVER.DEVICE_PEAK_TFLOPS, SOLVER.WATCHDOG_SECONDS, LOG_PERIOD.
        engine: makes the steps.
        model: the unwrapped model.

    Raises:
        ValueError: SOLVER.WATCHDOG_SECONDS is negative.
    """
    period = cfg.SOLVER.LOG_PERIOD
    compute_dtype = getattr(torch, cfg.MODEL.LMM.DTYPE)
    dtypes = {torch.float32, compute_dtype, amp_dtype(cfg) or compute_dtype}
    health: list[HookBase] = [
        ThroughputHook(
            model,
            images_per_step=cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS,
            period=period,
            dtypes=sorted(dtypes, key=str),
            peak_tflops=cfg.SOLVER.DEVICE_PEAK_TFLOPS,
        ),
        TaskLossHook(model, period),
    ]
    if cfg.SOLVER.WATCHDOG_SECONDS < 0:
        raise ValueError(
            f"SOLVER.WATCHDOG_SECONDS is {cfg.SOLVER.WATCHDOG_SECONDS}: use 0 for no watchdog, or "
            "the seconds without progress until it reports a stall."
        )
    if cfg.SOLVER.WATCHDOG_SECONDS:
        store = shared_store() if comm.get_world_size() > 1 else None
        seconds = cfg.SOLVER.WATCHDOG_SECONDS
        health.append(WatchdogHook(engine=engine, model=model, seconds=seconds, store=store))
    return health
