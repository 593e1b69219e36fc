"""One training step on disk: enough to compute its losses and gradients again elsewhere."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils import comm
from safetensors import SafetensorError
from torch import nn

from rose_d2.engine.checkpoints.weights import save_weights
from rose_d2.prompts.conversation import Conversation
from rose_d2.structures.category_names import CategoryNames

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.yaml"
WEIGHTS_NAME = "model.safetensors"
# Beside tensors and numbers, only these are read back; nothing else in a file is executed.
_STRUCTURES = (BitMasks, Boxes, CategoryNames, Conversation, Instances)


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
