"""The measured cost of a step as text."""

from __future__ import annotations

import platform

import torch
from detectron2.config import CfgNode

from rose_d2.engine.health.metrics_flops import measured_peak
from rose_d2.engine.planning.step_benchmark import StepCost
from rose_d2.engine.planning.step_benchmark_parts import BACKBONE_PARTS, CANDIDATE_PARTS
from rose_d2.engine.steps.step_engine import amp_dtype


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
    candidates = sum(cost.parts.get(part, 0.0) for part in CANDIDATE_PARTS)
    lines += [
        f"    {1000 * cost.seconds:10.1f} ms a step (median), "
        f"{cost.images_per_second:.3g} images a second",
        f"    heads, masks and names together take {100 * candidates / backbones:.0f} % of the "
        "time of the backbones",
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
