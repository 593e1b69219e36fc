"""Time of a model's parts, on the CPU and on a GPU."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import Any

import torch
from torch import nn

from rose_d2.modeling.meta_arch.rose import ROSE

BACKBONE_PARTS = ("SigLIP and projector", "LLM prefill", "SAM encoder")
CANDIDATE_PARTS = ("heads", "SAM decoder", "name decoding")


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
                enter = module.register_forward_pre_hook(functools.partial(self._enter, name))
                leave = module.register_forward_hook(self._leave)
                self._exit.callback(enter.remove)
                self._exit.callback(leave.remove)
        decoder = self._model.inference.category_decoder
        for method in ("loss", "generate"):
            setattr(decoder, method, self._timed("name decoding", getattr(decoder, method)))
            self._exit.callback(delattr, decoder, method)
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
