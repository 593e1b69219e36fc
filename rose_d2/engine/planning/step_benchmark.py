"""Speed and memory of training steps and of inference, with random weights and made-up inputs."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils.hooks import RemovableHandle

from rose_d2.engine.health.metrics_flops import StepFlops
from rose_d2.engine.planning.step_benchmark_inputs import synthetic_inputs, without_downloads
from rose_d2.engine.planning.step_benchmark_parts import PartTimes
from rose_d2.engine.planning.step_benchmark_peak import held_bytes, measure_peak_memory
from rose_d2.engine.steps.step_engine import StepEngine, build_step_engine
from rose_d2.modeling.meta_arch.rose import ROSE


@dataclass(frozen=True)
class StepCost:
    """What one optimizer step, or one batch at inference, costs.

    Attributes:
        seconds: median time.
        num_images: images of the step, all micro-batches together.
        parts: seconds by part, means over the measured steps; "everything else" makes up the rest.
        peak_memory: bytes of tensors at the fullest moment.
        flops: floating-point operations that the step needs.
        recomputed_flops: further ones, of gradient checkpointing.
    """

    seconds: float
    num_images: int
    parts: dict[str, float]
    peak_memory: int
    flops: int
    recomputed_flops: int = 0

    @property
    def images_per_second(self) -> float:
        """Throughput."""
        return self.num_images / self.seconds

    @property
    def flops_per_second(self) -> float:
        """What the device achieves, recomputation included."""
        return (self.flops + self.recomputed_flops) / self.seconds


def measure_training(cfg: CfgNode, num_steps: int) -> StepCost:
    """Measure optimizer steps of SOLVER.ENGINE in this process.

    Args:
        cfg: the full config; its checkpoints are not read.
        num_steps: measured ones, after one to warm up, one for the memory and one that counts
            operations.

    Raises:
        ValueError: SOLVER.ENGINE is not torch on the CPU.
    """
    model, engine = _start_training(cfg)
    with EventStorage() as engine.storage:
        peak = _training_peak(model, engine)
        with StepFlops(model) as counted:
            engine.run_step()
        seconds, parts = _time_steps(model, engine, num_steps)
    return StepCost(
        seconds=seconds,
        num_images=cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS,
        parts=parts,
        peak_memory=peak,
        flops=counted.forward + counted.backward,
        recomputed_flops=counted.recomputed,
    )


def measure_training_peak(cfg: CfgNode) -> int:
    """Measure the memory of tensors in the second optimizer step at its fullest moment, in bytes.

    Args:
        cfg: the full config; its checkpoints are not read.
    """
    model, engine = _start_training(cfg)
    with EventStorage() as engine.storage:
        return _training_peak(model, engine)


@torch.no_grad()
def measure_inference(cfg: CfgNode, batch_size: int, num_steps: int) -> StepCost:
    """Measure batches of inference in which all of the top K candidates are kept and named.

    With random weights nothing can be said of how many would be left, so this is the most.

    Args:
        cfg: the full config; its checkpoints are not read.
        batch_size: images at once.
        num_steps: measured batches.
    """
    model, batch = _start_inference(cfg, batch_size)
    peak = _inference_peak(model, batch)
    with StepFlops(model) as counted:
        model(batch)
    with PartTimes(model) as times:
        seconds, parts = _time(lambda: model(batch), times, num_steps)
    return StepCost(seconds, batch_size, parts, peak, counted.forward)


def _start_training(cfg: CfgNode) -> tuple[ROSE, StepEngine]:
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.ENGINE != "torch":
        raise ValueError(
            f"SOLVER.ENGINE is {cfg.SOLVER.ENGINE!r}, whose memory cannot be measured on the CPU: "
            "set SOLVER.ENGINE torch there, or measure on a GPU."
        )
    cfg = without_downloads(cfg)
    model = _build(cfg)
    engine = build_step_engine(cfg, model)
    batch = synthetic_inputs(cfg, cfg.SOLVER.IMS_PER_BATCH, training=True)
    engine.data_iterator = itertools.repeat(batch)
    return model, engine


def _start_inference(cfg: CfgNode, batch_size: int) -> tuple[ROSE, list[dict]]:
    cfg = without_downloads(cfg)
    cfg.TEST.SCORE_THRESH = 0.0
    cfg.TEST.NMS.THRESH = 1.0
    return _build(cfg).eval(), synthetic_inputs(cfg, batch_size, training=False)


def _build(cfg: CfgNode) -> ROSE:
    """With random weights, made where they are used: a large model is slow to make elsewhere."""
    torch.manual_seed(0)
    with torch.device(cfg.MODEL.DEVICE):
        return build_model(cfg)


def _training_peak(model: ROSE, engine: StepEngine) -> int:
    """Of the step after a first one, in which the optimizer gets its moments."""
    engine.run_step()
    return measure_peak_memory(model.device, engine.run_step, _held_in_training(model, engine))


def _inference_peak(model: ROSE, batch: list[dict]) -> int:
    model(batch)
    held = held_bytes(*model.parameters(), *model.buffers())
    return measure_peak_memory(model.device, lambda: model(batch), held)


def _time_steps(model: ROSE, engine: StepEngine, num_steps: int) -> tuple[float, dict[str, float]]:
    """Time training steps; what follows a forward pass, up to the next or the update, is backward.

    An engine whose optimizer is not PyTorch's does not say when it updates: that counts as
    backward, too.
    """
    with PartTimes(model) as times, ExitStack() as hooks:
        since: list[Any] = []  # the end of the forward pass, or the start of the update

        def start(*_: Any) -> None:
            since[:] = [times.clock.mark()]

        def end(part: str, *_: Any) -> None:
            if since:
                times.add(part, since.pop(), times.clock.mark())

        def start_update(*_: Any) -> None:
            end("backward")
            start()

        handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(partial(end, "backward")),
            model.register_forward_hook(start),
        ]
        optimizer = getattr(engine, "optimizer", None)
        if isinstance(optimizer, torch.optim.Optimizer):
            handles.append(optimizer.register_step_pre_hook(start_update))
            handles.append(optimizer.register_step_post_hook(partial(end, "optimizer")))
        for handle in handles:
            hooks.callback(handle.remove)

        def step() -> None:
            engine.run_step()
            end("backward")

        return _time(step, times, num_steps)


def _time(
    function: Callable[[], object], times: PartTimes, num_steps: int
) -> tuple[float, dict[str, float]]:
    """Median seconds of a call, and mean seconds of the parts."""
    clock = times.clock
    moments = [clock.mark()]
    for _ in range(num_steps):
        function()
        moments.append(clock.mark())
    seconds = [clock.seconds(start, end) for start, end in itertools.pairwise(moments)]
    parts = {name: total / num_steps for name, total in times.seconds().items()}
    parts["everything else"] = statistics.mean(seconds) - sum(parts.values())
    return statistics.median(seconds), parts


def _held_in_training(model: ROSE, engine: StepEngine) -> int:
    """Weights and, after a first step, the moments of the optimizer."""
    optimizer = getattr(engine, "optimizer", None)
    states = optimizer.state.values() if isinstance(optimizer, torch.optim.Optimizer) else ()
    moments = [
        value for state in states for value in state.values() if isinstance(value, torch.Tensor)
    ]
    return held_bytes(*model.parameters(), *model.buffers(), *moments)
