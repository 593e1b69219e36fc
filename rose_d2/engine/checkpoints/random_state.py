"""Random number generators as part of the training state.

A resumed run repeats an uninterrupted one only if dropout, sampling and everything else that
draws numbers continues where it stopped, on every rank, and if an evaluation in between draws
none of the numbers training would have drawn.
"""

import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def capture_random_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and PyTorch's global generators in this process.

    Only lists, numbers, strings and tensors, so that `torch.load(weights_only=True)` reads it.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached_gauss = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [name, keys.tolist(), int(position), int(has_gauss), float(cached_gauss)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Set the generators of this process to a state from `capture_random_state`."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached_gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached_gauss))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def preserved_random_state() -> Iterator[None]:
    """Undo, on leaving, every change the block makes to the global generators."""
    state = capture_random_state()
    try:
        yield
    finally:
        restore_random_state(state)


class RandomStateHook(HookBase):
    """Saves the generators of all ranks with the trainer and restores them before training.

    `state_dict` gathers from every rank, so every rank has to call it. On more processes than
    before, each of the new ones branches off from one that was there.
    """

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"ranks": comm.all_gather(capture_random_state())}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["ranks"]

    def before_train(self) -> None:
        if not self._restored:
            return
        known, rank = len(self._restored), comm.get_rank()
        if known != comm.get_world_size():
            logger.warning(
                "The checkpoint was written by %d processes, this run has %d: they draw other "
                "random numbers, so the loss curve will not repeat exactly.",
                known,
                comm.get_world_size(),
            )
        restore_random_state(self._restored[rank % known])
        if rank >= known:
            _branch_off(rank)


def _branch_off(rank: int) -> None:
    """Seed all generators with numbers of their own, that follow from PyTorch's state."""
    seed = int(torch.randint(2**31, ())) + rank
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
