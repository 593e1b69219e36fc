"""Step engines: how one optimizer step is made. `SOLVER.ENGINE` picks one."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LRScheduler

from rose_d2.engine.optimizer import build_lr_scheduler, build_optimizer

logger = logging.getLogger(__name__)

_AMP_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class StepEngine(TrainerBase):
    """What `RoseTrainer` drives: each `run_step` is one optimizer step.

    An engine is built with `(cfg, model)`, wraps the model for its kind of parallelism and owns
    optimizer and schedule; `state_dict` and `load_state_dict` cover all it needs to resume.

    Attributes:
        model: returns a dict of scalar losses in training mode; may be wrapped.
        optimizer: what detectron2's hooks read learning rates from.
        scheduler: stepped by detectron2's `LRScheduler` hook; None if the engine steps its own.
        data_iterator: yields micro-batches; set by the trainer before the first step.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: LRScheduler | None
    data_iterator: Iterator[list[dict[str, Any]]]


class TorchStepEngine(StepEngine):
    """Plain PyTorch: DistributedDataParallel, gradient accumulation, clipping, autocast."""

    @configurable
    def __init__(
        self,
        *,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scheduler: LRScheduler | None = None,
        accumulation_steps: int = 1,
        max_grad_norm: float | None = None,
        amp_dtype: torch.dtype | None = None,
    ) -> None:
        """
        Args:
            model: the unwrapped model, on its device.
            optimizer: over the parameters of `model`.
            scheduler: see `StepEngine`.
            accumulation_steps: micro-batches averaged into one step.
            max_grad_norm: gradients are scaled down to this norm over all parameters; None: never.
            amp_dtype: autocast to this type; float16 also scales the loss. None: full precision.
        """
        super().__init__()
        self.device = next(model.parameters()).device
        self.model = _distribute(model.train(), self.device)
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.accumulation_steps = accumulation_steps
        self.max_grad_norm = math.inf if max_grad_norm is None else max_grad_norm
        self.amp_dtype = amp_dtype
        self.data_iterator = iter(())
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=amp_dtype is torch.float16)

    @classmethod
    def from_config(cls, cfg: CfgNode, model: nn.Module) -> dict[str, Any]:
        if cfg.SOLVER.ACCUMULATION_STEPS < 1:
            raise ValueError(
                f"SOLVER.ACCUMULATION_STEPS is {cfg.SOLVER.ACCUMULATION_STEPS}: use 1 or more."
            )
        optimizer = build_optimizer(cfg, model)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": build_lr_scheduler(cfg, optimizer),
            "accumulation_steps": cfg.SOLVER.ACCUMULATION_STEPS,
            "max_grad_norm": _max_grad_norm(cfg),
            "amp_dtype": _amp_dtype(cfg),
        }

    def run_step(self) -> None:
        assert self.model.training, "The model was left in evaluation mode."
        self.optimizer.zero_grad(set_to_none=True)
        micro_losses: list[dict[str, float]] = []
        file_names: list[str] = []
        data_time = 0.0
        for micro_step in range(self.accumulation_steps):
            start = time.perf_counter()
            batched_inputs = next(self.data_iterator)
            data_time += time.perf_counter() - start
            file_names += image_names(batched_inputs)
            with self._gradient_exchange(micro_step):
                micro_losses.append(self._accumulate(batched_inputs))
        grad_norm = self._update(file_names)
        losses = {k: sum(m[k] for m in micro_losses) / len(micro_losses) for k in micro_losses[0]}
        write_metrics(losses, {"grad_norm": grad_norm}, data_time)

    def _gradient_exchange(self, micro_step: int) -> AbstractContextManager:
        """Let ranks exchange gradients only in the last micro-batch of a step."""
        is_last = micro_step == self.accumulation_steps - 1
        if is_last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _accumulate(self, batched_inputs: list[dict[str, Any]]) -> dict[str, float]:
        """Add one micro-batch's share to the gradients and return its losses."""
        with torch.autocast(
            self.device.type, dtype=self.amp_dtype, enabled=self.amp_dtype is not None
        ):
            losses = self.model(batched_inputs)
        values = torch.stack([loss.detach().float() for loss in losses.values()]).tolist()
        values = dict(zip(losses, values, strict=True))
        check_finite_losses(values, image_names(batched_inputs), self.iter)
        total = sum(losses.values()) / self.accumulation_steps
        self._scaler.scale(total).backward()
        return values

    def _update(self, file_names: list[str]) -> float:
        """Clip, step the optimizer and return the gradient norm before clipping."""
        self._scaler.unscale_(self.optimizer)
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, self.max_grad_norm).item()
        # With float16 an overflow is ordinary: the scaler skips the step and lowers its scale.
        if not math.isfinite(norm) and not self._scaler.is_enabled():
            raise FloatingPointError(
                f"The gradient became NaN or infinite at iteration {self.iter} although every "
                f"loss is finite, in {self._non_finite_gradients()}. Images of this step: "
                f"{', '.join(file_names)}."
            )
        self._scaler.step(self.optimizer)
        self._scaler.update()
        return norm

    def _non_finite_gradients(self) -> list[str]:
        names = [
            name
            for name, parameter in self.model.named_parameters()
            if parameter.grad is not None and not parameter.grad.isfinite().all()
        ]
        return names[:5]

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "scaler": self._scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state_dict["optimizer"])
        self._scaler.load_state_dict(state_dict["scaler"])


STEP_ENGINES: dict[str, Callable[[CfgNode, nn.Module], StepEngine]] = {"torch": TorchStepEngine}


def build_step_engine(cfg: CfgNode, model: nn.Module) -> StepEngine:
    """Build the engine named by `SOLVER.ENGINE` around a model.

    Raises:
        ValueError: the name is unknown.
    """
    if cfg.SOLVER.ENGINE not in STEP_ENGINES:
        raise ValueError(
            f"SOLVER.ENGINE is {cfg.SOLVER.ENGINE!r}, but the engines are {sorted(STEP_ENGINES)}."
        )
    return STEP_ENGINES[cfg.SOLVER.ENGINE](cfg, model)


def image_names(batched_inputs: list[dict[str, Any]]) -> list[str]:
    """Name the images of a batch for an error message: file name, else image id."""
    return [str(item.get("file_name", item.get("image_id", "?"))) for item in batched_inputs]


def check_finite_losses(losses: Mapping[str, float], file_names: list[str], iteration: int) -> None:
    """Stop before a NaN reaches the weights.

    Raises:
        FloatingPointError: a loss is NaN or infinite; names the terms and the images.
    """
    bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
    if bad:
        terms = ", ".join(f"{name} = {value}" for name, value in bad.items())
        raise FloatingPointError(
            f"The loss became NaN or infinite at iteration {iteration}: {terms}. Images of this "
            f"batch: {', '.join(file_names)}. Look at their annotations, or lower "
            "SOLVER.BASE_LR; checkpoints hold only weights from before this step."
        )


def write_metrics(
    losses: Mapping[str, float], others: Mapping[str, float], data_time: float
) -> None:
    """Put one step's numbers, averaged over ranks, into the event storage of the main process.

    Args:
        losses: averages over the micro-batches of this rank; their sum becomes `total_loss`.
        others: numbers logged beside the losses.
        data_time: seconds this rank waited for data; the slowest rank's is logged.
    """
    gathered = comm.gather({**losses, **others})
    data_times = comm.gather(data_time)
    if not comm.is_main_process():
        return
    mean = {name: sum(rank[name] for rank in gathered) / len(gathered) for name in gathered[0]}
    storage = get_event_storage()
    storage.put_scalars(**mean)
    storage.put_scalar("total_loss", sum(mean[name] for name in losses))
    storage.put_scalar("data_time", max(data_times))


def _distribute(model: nn.Module, device: torch.device) -> nn.Module:
    if comm.get_world_size() == 1:
        return model
    device_ids = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=device_ids)


def _max_grad_norm(cfg: CfgNode) -> float | None:
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if not clip.ENABLED:
        return None
    if clip.CLIP_TYPE != "full_model" or clip.NORM_TYPE != 2.0:
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS has CLIP_TYPE {clip.CLIP_TYPE!r} and NORM_TYPE "
            f"{clip.NORM_TYPE}, but only the 2-norm over the full model is clipped: set "
            "CLIP_TYPE 'full_model' and NORM_TYPE 2.0."
        )
    return clip.CLIP_VALUE


def _amp_dtype(cfg: CfgNode) -> torch.dtype | None:
    amp = cfg.SOLVER.AMP
    if not amp.ENABLED:
        return None
    if amp.DTYPE not in _AMP_DTYPES:
        raise ValueError(f"SOLVER.AMP.DTYPE is {amp.DTYPE!r}: use one of {sorted(_AMP_DTYPES)}.")
    if amp.DTYPE == "float16" and cfg.MODEL.DEVICE == "cpu":
        raise ValueError("SOLVER.AMP.DTYPE float16 needs a GPU: use bfloat16 on the CPU.")
    if cfg.MODEL.DEVICE == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        logger.info("This CPU has no bfloat16 instructions: training in full precision.")
        return None
    return _AMP_DTYPES[amp.DTYPE]
