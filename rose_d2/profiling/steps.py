"""Speed and memory of training steps and of inference, with random weights and made-up inputs."""

from __future__ import annotations

import itertools
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.hooks import RemovableHandle

from rose_d2.engine.metrics import StepFlops, measured_peak
from rose_d2.engine.step_engine import StepEngine, amp_dtype
from rose_d2.engine.trainer import build_step_engine
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.profiling.inputs import COCO_SIZE, FEW_OBJECTS, synthetic_inputs, without_downloads

BACKBONE_PARTS = ("SigLIP and projector", "LLM prefill", "SAM encoder")


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


def measure_training(cfg: CfgNode, num_steps: int, num_objects: int = FEW_OBJECTS) -> StepCost:
    """Measure optimizer steps of SOLVER.ENGINE in this process.

    Args:
        cfg: the full config; its checkpoints are not read.
        num_steps: measured ones, after one to warm up, one for the memory and one that counts
            operations.
        num_objects: in each image.

    Raises:
        ValueError: SOLVER.ENGINE is not torch on the CPU.
    """
    model, engine = _start_training(cfg, num_objects)
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


def measure_training_peak(cfg: CfgNode, num_objects: int = FEW_OBJECTS) -> int:
    """Measure the memory of tensors in the second optimizer step at its fullest moment, in bytes.

    Args:
        cfg: the full config; its checkpoints are not read.
        num_objects: in each image.
    """
    model, engine = _start_training(cfg, num_objects)
    with EventStorage() as engine.storage:
        return _training_peak(model, engine)


@torch.no_grad()
def measure_inference(
    cfg: CfgNode, batch_size: int, num_steps: int, image_size: tuple[int, int] = COCO_SIZE
) -> StepCost:
    """Measure batches of inference in which all of the top K candidates are kept and named.

    With random weights nothing can be said of how many would be left, so this is the most.

    Args:
        cfg: the full config; its checkpoints are not read.
        batch_size: images at once.
        num_steps: measured batches.
        image_size: (height, width) of the pictures, to which the masks are drawn.
    """
    model, batch = _start_inference(cfg, batch_size, image_size)
    return measure_answers(model, [batch] * num_steps)


@torch.no_grad()
def measure_answers(model: ROSE, batches: Sequence[list[dict]]) -> StepCost:
    """Measure a trained model's inference, memory and operations of the first batch.

    Args:
        model: in evaluation mode, with its weights.
        batches: inputs of the model, at least one batch.
    """
    peak = _inference_peak(model, batches[0])
    with StepFlops(model) as counted:
        model(batches[0])
    remaining = iter(batches)
    with PartTimes(model) as times:
        seconds, parts = _time(lambda: model(next(remaining)), times, len(batches))
    return StepCost(seconds, len(batches[0]), parts, peak, counted.forward)


def _start_training(cfg: CfgNode, num_objects: int) -> tuple[ROSE, StepEngine]:
    if cfg.MODEL.DEVICE == "cpu" and cfg.SOLVER.ENGINE != "torch":
        raise ValueError(
            f"SOLVER.ENGINE is {cfg.SOLVER.ENGINE!r}, whose memory cannot be measured on the CPU: "
            "set SOLVER.ENGINE torch there, or measure on a GPU."
        )
    cfg = without_downloads(cfg)
    model = _build(cfg)
    engine = build_step_engine(cfg, model)
    batch = synthetic_inputs(cfg, cfg.SOLVER.IMS_PER_BATCH, training=True, num_objects=num_objects)
    engine.data_iterator = itertools.repeat(batch)
    return model, engine


def _start_inference(
    cfg: CfgNode, batch_size: int, image_size: tuple[int, int]
) -> tuple[ROSE, list[dict]]:
    cfg = without_downloads(cfg)
    cfg.TEST.SCORE_THRESH = 0.0
    cfg.TEST.NMS.THRESH = 1.0
    inputs = synthetic_inputs(cfg, batch_size, training=False, image_size=image_size)
    return _build(cfg).eval(), inputs


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


class Clock:
    """Moments of a device: a GPU is asked for its own time, without being waited for."""

    def __init__(self, device: torch.device) -> None:
        """
        Args:
            device: whose time.
        """
        self.device = device

    def mark(self) -> Any:
        """The moment at which the device has done all it was given so far."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def seconds(self, start: Any, end: Any) -> float:
        """Time between two moments."""
        if self.device.type != "cuda":
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


class PartTimes:
    """Records when the parts of a ROSE model run in their forward pass.

    A part that runs within another (the language model while it decodes names) counts for that
    one. What is recomputed in a backward pass belongs to it and is not recorded.
    """

    def __init__(self, model: ROSE) -> None:
        """
        Args:
            model: on its device.
        """
        self.clock = Clock(model.device)
        self._model = model
        self._spans: list[tuple[str, Any, Any]] = []
        self._running: list[tuple[str, Any]] = []
        self._exit = ExitStack()

    def __enter__(self) -> PartTimes:
        for name, modules in _modules(self._model).items():
            for module in modules:
                enter = module.register_forward_pre_hook(partial(self._enter, name))
                leave = module.register_forward_hook(self._leave)
                self._exit.callback(enter.remove)
                self._exit.callback(leave.remove)
        inference = self._model.inference
        for owner, method, name in (
            (inference.category_decoder, "loss", "name decoding"),
            (inference.category_decoder, "generate", "name decoding"),
            (inference, "suppress", "mask NMS"),
            (inference, "answer", "merging and drawing"),
        ):
            setattr(owner, method, self._timed(name, getattr(owner, method)))
            self._exit.callback(delattr, owner, method)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._exit.close()

    def add(self, name: str, start: Any, end: Any) -> None:
        """Record a span between two moments of `clock`."""
        self._spans.append((name, start, end))

    def seconds(self) -> dict[str, float]:
        """Time of each part since the last call, all its runs together."""
        times: dict[str, float] = {}
        for name, start, end in self._spans:
            times[name] = times.get(name, 0.0) + self.clock.seconds(start, end)
        self._spans.clear()
        return times

    def _timed(self, name: str, function: Callable) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            self._enter(name)
            result = function(*args, **kwargs)
            self._leave()
            return result

        return run

    def _enter(self, name: str, *_: Any) -> None:
        self._running.append((name, self.clock.mark()))

    def _leave(self, *_: Any) -> None:
        name, start = self._running.pop()
        if not self._running:
            self.add(name, start, self.clock.mark())


def _modules(model: ROSE) -> dict[str, list[nn.Module]]:
    """The modules whose calls make up each part."""
    lmm: Any = model.backbone
    head: Any = model.mask_head
    analyzer: Any = model.patch_analyzer
    core = lmm.model.model
    return {
        "SigLIP and projector": [core.vision_tower, core.multi_modal_projector],
        "LLM prefill": [core.language_model, lmm.model.lm_head],
        "heads": [analyzer.objectness, analyzer.mask, analyzer.category, analyzer.siglip],
        "SAM encoder": [head.image_encoder],
        "SAM decoder": [head.prompt_encoder, head.mask_decoder],
    }


def measure_peak_memory(device: torch.device, function: Callable[[], object], held: int) -> int:
    """Run a function and measure the memory of tensors at the fullest moment, in bytes.

    On a GPU it is `torch.cuda.max_memory_allocated`. On the CPU, where PyTorch keeps no such
    count, the profiler records every allocation and release, those inside kernels too; it knows
    only what is made while it watches, so what was there before has to be said. What PyTorch
    and its libraries take outside the tensor allocator is in neither.

    Args:
        device: where the function computes.
        function: what to run, once.
        held: bytes of tensors on that device that exist before and stay: weights, moments of
            the optimizer. Not used on a GPU.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recording:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        recording.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    return held + _peak([event for event in events if event.get("name") == "[memory]"])


def _peak(events: list[dict]) -> int:
    """Most bytes alive at once; the profiler's own total goes on from one recording to the next."""
    alive: dict[int, int] = {}
    current = peak = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            alive[address] = size
            current += size
        else:
            current -= alive.pop(address, 0)
        peak = max(peak, current)
    return peak


def held_bytes(*tensors: torch.Tensor) -> int:
    """Bytes of tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def report_step(title: str, cfg: CfgNode, cost: StepCost) -> str:
    """Write a table: time by part, throughput, memory and FLOP/s.

    The peak of the device is measured at the moment, with a large matrix product in the type
    that most of the work is done in.

    Args:
        title: what was measured.
        cfg: the config it was measured with.
        cost: the measurement.
    """
    device = torch.device(cfg.MODEL.DEVICE)
    dtype = amp_dtype(cfg) or torch.float32
    if cfg.MODEL.LMM.DTYPE == "bfloat16":
        dtype = torch.bfloat16
    peak = measured_peak(device, dtype)
    lines = [f"{title}, on {device_name(device)}"]
    for name, seconds in sorted(cost.parts.items(), key=lambda part: -part[1]):
        share = 100 * seconds / sum(cost.parts.values())
        lines.append(f"    {1000 * seconds:10.1f} ms {share:5.1f} %  {name}")
    backbones = sum(cost.parts.get(part, 0.0) for part in BACKBONE_PARTS)
    others = sum(cost.parts.values()) - backbones
    if "backward" not in cost.parts:
        lines.append(f"    {others / backbones:10.2f} times the backbones is all the rest")
    lines += [
        f"    {1000 * cost.seconds:10.1f} ms a step (median), "
        f"{cost.images_per_second:.3g} images a second",
        f"    {cost.peak_memory / 1e9:10.3f} GB at the fullest moment",
        f"    {cost.flops / 1e12:10.3f} TFLOP a step, and {cost.recomputed_flops / 1e12:.3f} "
        "computed again for the backward pass",
        f"    {cost.flops_per_second / 1e12:10.3f} TFLOP/s, "
        f"{100 * cost.flops_per_second / peak:.1f} % of the {peak / 1e12:.3f} TFLOP/s measured "
        f"for a matrix product in {str(dtype).removeprefix('torch.')}; "
        f"{100 * cost.flops / cost.seconds / peak:.1f} % without what is computed again",
    ]
    return "\n".join(lines)


def device_name(device: torch.device) -> str:
    """The name of the GPU, or the CPU's kind and the threads that PyTorch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"
