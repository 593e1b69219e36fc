"""Which step engine `SOLVER.ENGINE` names."""

from __future__ import annotations

from collections.abc import Callable

from detectron2.config import CfgNode
from torch import nn

from rose_d2.engine.step_engine import StepEngine


def _torch_engine(cfg: CfgNode, model: nn.Module) -> StepEngine:
    from rose_d2.engine.torch_engine import TorchStepEngine

    return TorchStepEngine(cfg, model)


def _deepspeed_engine(cfg: CfgNode, model: nn.Module) -> StepEngine:
    from rose_d2.engine.deepspeed_engine import DeepSpeedStepEngine

    return DeepSpeedStepEngine(cfg, model)


# Imported when used: DeepSpeed is slow to import and only dependable on Linux.
STEP_ENGINES: dict[str, Callable[[CfgNode, nn.Module], StepEngine]] = {
    "torch": _torch_engine,
    "deepspeed": _deepspeed_engine,
}


def build_step_engine(cfg: CfgNode, model: nn.Module) -> StepEngine:
    """Build the engine named by `SOLVER.ENGINE` around a model on its device.

    Raises:
        ValueError: the name is unknown, or the engine refuses a setting.
    """
    if cfg.SOLVER.ENGINE not in STEP_ENGINES:
        raise ValueError(
            f"SOLVER.ENGINE is {cfg.SOLVER.ENGINE!r}, but the engines are {sorted(STEP_ENGINES)}."
        )
    return STEP_ENGINES[cfg.SOLVER.ENGINE](cfg, model)
