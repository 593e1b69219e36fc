"""What a NaN or infinite loss or gradient does: its update is skipped; too many in a row stop."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from safetensors import SafetensorError
from torch import nn

from rose_d2.checkpoint.weights import save_weights
from rose_d2.engine.preemption import capture_random_state
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames

logger = logging.getLogger(__name__)

# A message names this many images and parameters.
_MOST_NAMES = 20
_MOST_PARAMETERS = 5
CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"
# Beside tensors and numbers, only these are read back; nothing else in a file is executed.
_STRUCTURES = (BitMasks, Boxes, CategoryNames, Conversation, Instances)


class NonFiniteGuard:
    """Keeps NaN and infinity out of the weights, on all ranks alike.

    One broken sample must not end a run of days, so single updates may be skipped. Weights that
    diverged make every further step non-finite, so more than `max_skips` skipped updates in a row
    stop the run, with a dump from which `tools/replay_step.py` computes the step again.

    An engine calls `begin_step` before it fetches the data of a step, and `inspect` after the
    backward pass of its last micro-batch, before gradients are clipped (clipping by a NaN norm
    would spread it to all of them) and before the update.
    """

    def __init__(
        self,
        max_skips: int,
        dump_dir: str,
        *,
        model: nn.Module,
        config: str = "",
        gathered_parameters: Callable[[], AbstractContextManager] = nullcontext,
    ) -> None:
        """
        Args:
            max_skips: updates skipped in a row before the run stops; 0 stops at the first.
            dump_dir: the dump of iteration 12 goes into its folder `iter_0000012`.
            model: the unwrapped model.
            config: the YAML text of the run's config, for the dump.
            gathered_parameters: makes a context, entered by all ranks, in which rank 0's
                `model.state_dict()` is whole.
        """
        self.max_skips = max_skips
        self.dump_dir = dump_dir
        self._model = model
        self._config = config
        self._gathered_parameters = gathered_parameters
        self._in_a_row = 0
        self._total = 0
        self._random_state: dict[str, Any] | None = None

    @classmethod
    def from_config(
        cls,
        cfg: CfgNode,
        model: nn.Module,
        gathered_parameters: Callable[[], AbstractContextManager] = nullcontext,
    ) -> NonFiniteGuard:
        """Build the guard of a run: SOLVER.MAX_SKIPPED_STEPS, and dumps in its OUTPUT_DIR.

        Args:
            cfg: the full config.
            model: the unwrapped model.
            gathered_parameters: see the constructor.

        Raises:
            ValueError: SOLVER.MAX_SKIPPED_STEPS is negative.
        """
        if cfg.SOLVER.MAX_SKIPPED_STEPS < 0:
            raise ValueError(
                f"SOLVER.MAX_SKIPPED_STEPS is {cfg.SOLVER.MAX_SKIPPED_STEPS}: use 0 to stop at the "
                "first NaN, or a positive number of updates that may be skipped in a row."
            )
        return cls(
            cfg.SOLVER.MAX_SKIPPED_STEPS,
            os.path.join(cfg.OUTPUT_DIR, "non_finite"),
            model=model,
            config=cfg.dump(),
            gathered_parameters=gathered_parameters,
        )

    def begin_step(self) -> None:
        """Remember the random states with which the step starts, for the dump."""
        self._random_state = capture_random_state()

    def inspect(
        self,
        iteration: int,
        micro_losses: Sequence[dict[str, float]],
        grad_norm: float | None,
        micro_batches: Sequence[list[dict[str, Any]]],
    ) -> bool:
        """Decide, on all ranks together, whether this step's update is skipped.

        Every rank has to call it once per optimizer step; it exchanges one number. After True the
        engine clears the gradients, makes no update and does not log the step's losses and norm;
        the schedule advances.

        Args:
            iteration: of the step.
            micro_losses: loss terms of each micro-batch of this rank.
            grad_norm: before clipping; None where an overflow is ordinary (float16, whose loss
                scaling skips such steps itself), so that only losses count.
            micro_batches: the inputs of each micro-batch of this rank.

        Returns:
            Whether some rank's loss or gradient is not finite.

        Raises:
            FloatingPointError: on every rank, after `max_skips` skipped updates in a row; names
                loss terms, ranks, images and the dump.
        """
        losses = [value for terms in micro_losses for value in terms.values()]
        values = losses if grad_norm is None else [*losses, grad_norm]
        if not self._on_any_rank(not all(map(math.isfinite, values))):
            self._in_a_row = 0
            return False
        findings = comm.all_gather(find_non_finite(self._model, micro_losses, micro_batches))
        description = describe(findings, iteration)
        self._in_a_row += 1
        self._total += 1
        if self._in_a_row > self.max_skips:
            step = {
                "iteration": iteration,
                "micro_batches": [list(batch) for batch in micro_batches],
                "micro_losses": [dict(losses) for losses in micro_losses],
                "random_state": self._random_state,
            }
            # Which rank a broken gradient comes from is not known after the exchange.
            broken_ranks = {finding.rank for finding in findings if finding.terms}
            is_suspect = comm.get_rank() in broken_ranks or not broken_ranks
            self._stop(iteration, description, step if is_suspect else None)
        logger.warning(
            "%s The update is skipped (%d in a row of at most %d, %d since the start).",
            description,
            self._in_a_row,
            self.max_skips,
            self._total,
        )
        if has_event_storage():
            get_event_storage().put_scalar("skipped_steps", self._total, smoothing_hint=False)
        return True

    def _on_any_rank(self, flag: bool) -> bool:
        if comm.get_world_size() == 1:
            return flag
        # Not the weights' device: DeepSpeed may keep them in the host's memory.
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        shared = torch.tensor(float(flag), device=device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return bool(shared.item())

    def _stop(self, iteration: int, description: str, step: dict[str, Any] | None) -> None:
        folder = os.path.join(self.dump_dir, f"iter_{iteration:07d}")
        model = self._model if comm.is_main_process() else None
        with self._gathered_parameters():
            is_written = write_step_dump(folder, model=model, config=self._config, step=step)
        is_written = all(comm.all_gather(is_written))
        skipped = f" {self.max_skips} updates in a row were skipped." if self.max_skips else ""
        replay = (
            f"`python tools/replay_step.py {folder}` computes this step again."
            if is_written
            else f"The dump in {folder} could not be written, see the log."
        )
        raise FloatingPointError(
            f"{description}{skipped} {replay} Look at the annotations of these images, or lower "
            "SOLVER.BASE_LR; checkpoints hold only weights from before this step."
        )


@dataclass(frozen=True)
class Finding:
    """One rank's part; picklable, because ranks exchange it.

    Attributes:
        rank: whose.
        terms: per broken micro-batch its loss terms that are not finite and its images.
        images: all images of this rank's step.
        parameters: some parameters whose gradient is not finite.
    """

    rank: int
    terms: tuple[tuple[dict[str, float], list[str]], ...]
    images: list[str]
    parameters: list[str]


def find_non_finite(
    model: nn.Module,
    micro_losses: Sequence[dict[str, float]],
    micro_batches: Sequence[list[dict[str, Any]]],
) -> Finding:
    """Look for what is not finite on this rank.

    Args:
        model: after the backward pass and before clipping.
        micro_losses: loss terms of each micro-batch.
        micro_batches: inputs of each micro-batch.
    """
    names = [image_names(batch) for batch in micro_batches]
    broken = []
    for losses, images in zip(micro_losses, names, strict=True):
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad:
            broken.append((bad, images))
    parameters = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return Finding(
        rank=comm.get_rank(),
        terms=tuple(broken),
        images=[name for images in names for name in images],
        parameters=parameters[:_MOST_PARAMETERS],
    )


def image_names(batched_inputs: Sequence[dict[str, Any]]) -> list[str]:
    """Name the images of a batch for an error message: file name, else image id."""
    return [str(item.get("file_name", item.get("image_id", "?"))) for item in batched_inputs]


def describe(findings: Sequence[Finding], iteration: int) -> str:
    """Say in one sentence what is not finite, on which ranks and with which images."""
    broken = [finding for finding in findings if finding.terms]
    if broken:
        ranks = "; ".join(_describe_losses(finding) for finding in broken)
        return f"The loss became NaN or infinite at iteration {iteration}: {ranks}."
    parameters = next((f.parameters for f in findings if f.parameters), [])
    where = f", in {', '.join(parameters)}" if parameters else ""
    images = [name for finding in findings for name in finding.images]
    return (
        f"The gradient became NaN or infinite at iteration {iteration} although every loss is "
        f"finite{where}. Images of this step: {_join(images)}."
    )


def _describe_losses(finding: Finding) -> str:
    terms = {name: value for bad, _ in finding.terms for name, value in bad.items()}
    images = [name for _, names in finding.terms for name in names]
    values = ", ".join(f"{name} = {value}" for name, value in terms.items())
    return f"{values} on rank {finding.rank}, images {_join(images)}"


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


@dataclass
class StepDump:
    """One rank's part of a step.

    Attributes:
        rank: whose.
        iteration: of the step.
        micro_batches: the model's inputs, one list per micro-batch.
        micro_losses: the loss terms it had, one dict per micro-batch.
        random_state: of `capture_random_state` before the step, or None if it was not recorded.
    """

    rank: int
    iteration: int
    micro_batches: list[list[dict[str, Any]]]
    micro_losses: list[dict[str, float]]
    random_state: dict[str, Any] | None


def write_step_dump(
    folder: str, *, model: nn.Module | None, config: str, step: dict[str, Any] | None
) -> bool:
    """Write this rank's part of a dump; a disk that is full only costs a warning.

    Args:
        folder: made if it does not exist.
        model: whose weights are written, with `base_revisions()`; None on all ranks but one.
        config: YAML text, written with the weights.
        step: the fields of a `StepDump` but for its rank; None writes none.

    Returns:
        Whether all of it was written.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        if step is not None:
            torch.save(step, _rank_file(folder, comm.get_rank()))
        if model is not None:
            Path(folder, CONFIG_NAME).write_text(config, encoding="utf-8")
            save_weights(model, os.path.join(folder, WEIGHTS_NAME))
    except (OSError, RuntimeError, SafetensorError) as error:
        logger.warning("Could not write the dump of this step to %s: %s", folder, error)
        return False
    return True


def read_step_dump(folder: str, rank: int | None = None) -> StepDump:
    """Read one rank's part of a dump, without executing anything of it.

    Args:
        folder: of `write_step_dump`.
        rank: whose part; None takes the lowest there is.

    Raises:
        FileNotFoundError: the folder has no such part.
    """
    ranks = dumped_ranks(folder)
    chosen = min(ranks, default=-1) if rank is None else rank
    if chosen not in ranks:
        raise FileNotFoundError(
            f"{folder} has no part of rank {rank}: it has those of ranks {ranks}."
            if ranks
            else f"{folder} is not the dump of a step: it has no file rank_*.pth."
        )
    with torch.serialization.safe_globals(list(_STRUCTURES)):
        step = torch.load(_rank_file(folder, chosen), map_location="cpu", weights_only=True)
    return StepDump(rank=chosen, **step)


def dumped_ranks(folder: str) -> Sequence[int]:
    """List the ranks whose part is in a dump."""
    return sorted(int(path.stem.removeprefix("rank_")) for path in Path(folder).glob("rank_*.pth"))


def _rank_file(folder: str, rank: int) -> str:
    return os.path.join(folder, f"rank_{rank}.pth")
