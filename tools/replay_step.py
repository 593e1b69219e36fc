"""Compute a training step again that a run stopped at because of NaN or infinity.

    python tools/replay_step.py output/rose_7b/non_finite/iter_0000123

The run wrote its config, the weights, the images and targets of that step and the states of the
random number generators into the folder. Prints each loss term as the run had it and as it is now,
the first submodule whose output is not finite, and parameters with such gradients.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

import rose_d2  # noqa: F401  (registers the model and the datasets)
from rose_d2.checkpoint.weights import load_weights
from rose_d2.command_line import make_parser, run_main
from rose_d2.config.read import read_config
from rose_d2.engine.non_finite import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    StepDump,
    find_non_finite,
    image_names,
    read_step_dump,
)
from rose_d2.engine.preemption import restore_random_state
from rose_d2.engine.step_engine import amp_dtype, detached_losses


@dataclass
class StepReplay:
    """What came out of a step.

    Attributes:
        micro_losses: loss terms of each micro-batch.
        modules: the first submodule of each micro-batch whose output is not finite, or None.
        parameters: some whose gradient is not finite.
    """

    micro_losses: list[dict[str, float]]
    modules: list[str | None]
    parameters: list[str]


def replay_step(
    folder: str, *, rank: int | None = None, device: str | None = None
) -> tuple[StepDump, StepReplay]:
    """Compute one rank's part of a dumped step again, forward and backward, on one device.

    Args:
        folder: of a dump, as the message of a stopped run names it.
        rank: whose part; None takes the lowest there is.
        device: takes the place of MODEL.DEVICE; None keeps it, but the CPU where there is no GPU.

    Returns:
        The dump and what came out now.

    Raises:
        FileNotFoundError: the folder has no such part.
        ValueError: config or weights do not fit this version of the package.
    """
    dump = read_step_dump(folder, rank)
    cfg = read_config(os.path.join(folder, CONFIG_NAME))
    if device is not None:
        cfg.MODEL.DEVICE = device
    elif not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).train()
    load_weights(
        model,
        os.path.join(folder, WEIGHTS_NAME),
        allow_missing_keys=cfg.MODEL.ALLOW_MISSING_KEYS,
    )
    if dump.random_state is not None:
        restore_random_state(dump.random_state)
    return dump, _compute(model, dump, amp_dtype(cfg))


def _compute(model: nn.Module, dump: StepDump, dtype: torch.dtype | None) -> StepReplay:
    device_type = next(model.parameters()).device.type
    micro_losses, modules = [], []
    with EventStorage(dump.iteration):
        for batch in dump.micro_batches:
            with (
                _first_non_finite(model) as found,
                torch.autocast(device_type, dtype=dtype, enabled=dtype is not None),
            ):
                losses = model(batch)
            torch.stack(list(losses.values())).sum().backward()
            micro_losses.append(detached_losses(losses))
            modules.append(next(iter(found), None))
    finding = find_non_finite(model, micro_losses, dump.micro_batches)
    return StepReplay(micro_losses, modules, finding.parameters)


@contextmanager
def _first_non_finite(model: nn.Module) -> Iterator[list[str]]:
    """Collect names of submodules whose output is not finite, in the order they finish."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def look(module: nn.Module, args: Any, output: Any) -> None:
            if not all(tensor.isfinite().all() for tensor in _float_tensors(output)):
                found.append(name)

        return look

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules()]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _float_tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor) and output.is_floating_point():
        yield output
    elif isinstance(output, dict):
        for value in output.values():
            yield from _float_tensors(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _float_tensors(value)


def report_replay(dump: StepDump, replay: StepReplay) -> str:
    """Set side by side, one line per loss term, what the run had and what came out now.

    Args:
        dump: of the run.
        replay: of the same step.
    """
    lines = [f"Iteration {dump.iteration}, rank {dump.rank}"]
    for index, batch in enumerate(dump.micro_batches):
        lines.append(f"micro-batch {index}: {', '.join(image_names(batch))}")
        now = replay.micro_losses[index]
        lines += [
            f"  {name:<20} {value:>12.6g} in the run {now.get(name, math.nan):>12.6g} now"
            for name, value in dump.micro_losses[index].items()
        ]
        if replay.modules[index] is not None:
            name = replay.modules[index] or "the model itself"
            lines.append(f"  the first output that is not finite is that of {name}")
    if replay.parameters:
        lines.append(f"gradients that are not finite: {', '.join(replay.parameters)}")
    return "\n".join(lines)


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument("folder", help="the dump, named by the message of the stopped run")
    parser.add_argument("--rank", type=int, help="whose part of the step; default: the first")
    parser.add_argument("--device", help="cpu or cuda; default: that of the run, if it is there")
    return parser.parse_args(arguments)


def replay(args: argparse.Namespace) -> None:
    """Print the report."""
    print(report_replay(*replay_step(args.folder, rank=args.rank, device=args.device)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(replay, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
