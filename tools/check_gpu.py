r"""Check a GPU in about ten minutes, with nothing to download.

    python tools/check_gpu.py                                            # 7B, one GPU of 80 GB
    python tools/check_gpu.py --config-file configs/rose_0p5b.yaml       # one of 24 GB
    python tools/check_gpu.py --config-file configs/rose_tiny.yaml       # the CPU will do

Builds the model of the config in its true size with random weights and runs a training step with 2
images and inference with 1 and 4 on made-up images: time by part, and peak memory beside what
`tools/plan_memory.py` plans. A tiny model has to compute on the device what it computes on the CPU,
and one process has to exchange a number with itself (NCCL). One table at the end; the exit status
is 1 where a row failed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import rose_d2  # noqa: F401  (registers the model)
from rose_d2.command_line import add_config_arguments, make_parser, run_main
from rose_d2.config.read import read_config
from rose_d2.profiling.inputs import FEW_OBJECTS, synthetic_inputs, without_downloads
from rose_d2.profiling.memory_plan import plan_inference, plan_training
from rose_d2.profiling.steps import (
    StepCost,
    device_name,
    measure_inference,
    measure_training,
    report_step,
)

TINY = "configs/rose_tiny.yaml"
TRAINING_IMAGES, INFERENCE_IMAGES = 2, (1, 4)
# Largest deviation of float32 outputs of a tiny model, as a share of their largest value: a GPU
# adds up in another order, and may multiply in TF32.
TOLERANCE = 1e-2
GIGABYTE = 1e9


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: that was run.
        result: in a few words.
        is_fine: whether it did what it should.
    """

    what: str
    result: str
    is_fine: bool = True


def check(args: argparse.Namespace) -> int:
    """Run everything, print the table; the status is 1 where a row failed."""
    cfg = read_config(args.config_file, args.opts)
    cfg.SEED = max(cfg.SEED, 0)
    if not torch.cuda.is_available():
        cfg.MODEL.DEVICE, cfg.SOLVER.ENGINE = "cpu", "torch"
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATION_STEPS = TRAINING_IMAGES, 1
    device = torch.device(cfg.MODEL.DEVICE)
    rows = [
        _row("tiny model against the CPU", lambda: compare_with_cpu(device)),
        _row("one process of NCCL", lambda: exchange(device)),
        _row(f"training step, {TRAINING_IMAGES} images", lambda: train(cfg, args.num)),
    ]
    for count in INFERENCE_IMAGES:
        rows.append(_row(f"inference, {count} images", lambda n=count: infer(cfg, n, args.num)))
    print(f"\n{args.config_file} on {device_name(device)}, PyTorch {torch.__version__}")
    for row in rows:
        print(f"    {'ok' if row.is_fine else 'FAILED':8}{row.what:30}{row.result}")
    return 0 if all(row.is_fine for row in rows) else 1


def _row(what: str, work: Callable[[], tuple[str, bool]]) -> Row:
    """Run one thing; an error is a result, so that the other rows are still run."""
    try:
        return Row(what, *work())
    except (RuntimeError, ValueError, ImportError, OSError) as error:
        return Row(what, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", False)
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.no_grad()
def compare_with_cpu(device: torch.device) -> tuple[str, bool]:
    """Run the tiny model with the same random weights on the CPU and on the device."""
    cfg = without_downloads(read_config(TINY))
    cfg.MODEL.DEVICE = "cpu"
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    inputs = synthetic_inputs(cfg, 2, training=False)

    def outputs() -> list[torch.Tensor]:
        lmm, proposals, sam_features = model.perceive(inputs)
        tensors = (lmm.patch_features, proposals.objectness_logits, sam_features)
        return [tensor.float().cpu() for tensor in tensors]

    expected = outputs()
    model.to(device)
    worst = max(
        float((found - value).abs().max() / value.abs().max())
        for found, value in zip(outputs(), expected, strict=True)
    )
    return f"largest deviation {worst:.1e} of the range (allowed {TOLERANCE:g})", worst <= TOLERANCE


def exchange(device: torch.device) -> tuple[str, bool]:
    """Sum a number over the one process there is."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    with _process_group(backend):
        number = torch.full((1,), 3.0, device=device)
        dist.all_reduce(number)
        return f"all_reduce with {backend}", number.item() == 3.0


@contextmanager
def _process_group(backend: str) -> Iterator[None]:
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def train(cfg: CfgNode, num: int) -> tuple[str, bool]:
    """Measure a training step; more memory than planned fails."""
    cost = measure_training(cfg, num)
    print(report_step(f"training step, engine {cfg.SOLVER.ENGINE}", cfg, cost))
    return _beside_plan(cost, plan_training(cfg, 1, FEW_OBJECTS).peak)


def infer(cfg: CfgNode, batch_size: int, num: int) -> tuple[str, bool]:
    """Measure inference; more memory than planned fails."""
    cost = measure_inference(cfg, batch_size, num)
    print(report_step(f"inference, {batch_size} images", cfg, cost))
    planned, *_ = plan_inference(cfg, batch_size)
    return _beside_plan(cost, planned.peak, compare=cfg.MODEL.LMM.DTYPE == "bfloat16")


def _beside_plan(cost: StepCost, planned: int, *, compare: bool = True) -> tuple[str, bool]:
    result = f"{cost.seconds:.2f} s, {cost.peak_memory / GIGABYTE:.2f} GB"
    if not compare:  # the plan is for bfloat16
        return result, True
    # Ten percent are what the planner leaves free for PyTorch itself.
    fits = cost.peak_memory <= 1.1 * planned
    return f"{result} ({planned / GIGABYTE:.2f} GB planned)", fits


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    add_config_arguments(parser, default="configs/rose_7b.yaml")
    parser.add_argument(
        "--num", type=int, default=3, help="steps and batches to measure (default: %(default)s)"
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(check, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
