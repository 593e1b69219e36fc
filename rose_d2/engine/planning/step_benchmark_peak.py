"""The most memory that tensors take while a function runs, as the allocator itself counts it."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


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
