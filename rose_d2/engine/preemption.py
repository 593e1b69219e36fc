"""What lets a stopped run go on as if nothing had happened: random states, the position in the
data, and SIGTERM, as a cluster sends it before it takes the machine away: save, then stop.

The signal only leaves a note. After the optimizer step in which the first process got it, all
processes save together and exit with `PREEMPTED_STATUS`, by which a batch script can tell "start me
again with --resume" from a failure; docs/checkpoints.md has one.
"""

import logging
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm

from rose_d2.checkpoint.checkpointer import RoseCheckpointer

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: a temporary failure, the user is invited to try again.
PREEMPTED_STATUS = 75
# Set once this process got SIGTERM while it was training.
termination_requested = threading.Event()
# The same, before it was.
_requested_early = threading.Event()


class Preempted(SystemExit):
    """Ends a process whose training was saved because of SIGTERM; no failure."""

    def __init__(self) -> None:
        super().__init__(PREEMPTED_STATUS)


class PreemptionHook(HookBase):
    """Saves and raises `Preempted` after the step in which any process got SIGTERM.

    Belongs behind the hooks that change what is saved and the periodic checkpointer, and before
    evaluation. All ranks have to have it, for they agree on the step after every step.

    Attributes:
        agreed: whether the processes have agreed to stop.
    """

    def __init__(self, checkpointer: RoseCheckpointer, period: int) -> None:
        """
        Args:
            checkpointer: saves under the name a periodic checkpoint of the iteration would have.
            period: SOLVER.CHECKPOINT_PERIOD; what it has just saved is not saved again.
        """
        self._checkpointer = checkpointer
        self._period = period
        self._handler_before: Any = None
        self.agreed = False

    def before_train(self) -> None:
        termination_requested.clear()
        if any(comm.all_gather(_requested_early.is_set())):
            raise Preempted  # nothing has been done that could be lost
        # Python allows handlers in the main thread only; elsewhere SIGTERM ends the process.
        if threading.current_thread() is threading.main_thread():
            self._handler_before = signal.signal(signal.SIGTERM, _take_note)

    def after_step(self) -> None:
        if not any(comm.all_gather(termination_requested.is_set())):
            return
        self.agreed = True
        iteration = self.trainer.iter
        last = iteration + 1 == self.trainer.max_iter
        if not last and (iteration + 1) % self._period != 0:
            self._checkpointer.save(f"model_{iteration:07d}", iteration=iteration)
        if comm.is_main_process():
            logger.warning(
                "Stopped by SIGTERM: iteration %d is saved in %s. --resume continues; the exit "
                "status is %d.",
                iteration,
                self._checkpointer.save_dir,
                PREEMPTED_STATUS,
            )
        raise Preempted

    def after_train(self) -> None:
        # A process that was told to end may be told so twice, by its launcher and the cluster.
        if self._handler_before is not None and not termination_requested.is_set():
            signal.signal(signal.SIGTERM, self._handler_before)


def _take_note(signum: int, frame: FrameType | None) -> None:
    termination_requested.set()


def stop_before_training() -> None:
    """From now on SIGTERM ends this process with `PREEMPTED_STATUS`, as in training.

    Until `PreemptionHook` takes over there is nothing to save, so a job of one process ends at
    once. One of several takes a note, for the others may wait for it in a collective.
    """
    _requested_early.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _stop_early)


def _stop_early(signum: int, frame: FrameType | None) -> None:
    if comm.get_world_size() == 1:
        raise Preempted
    _requested_early.set()


@contextmanager
def termination_forwarded() -> Iterator[None]:
    """While the block runs, pass SIGTERM on to the processes this one has started.

    For a launcher: its processes save and exit, and it waits for them as ever. Outside the main
    thread nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    launcher = os.getpid()
    termination_requested.clear()

    def forward(signum: int, frame: FrameType | None) -> None:
        termination_requested.set()
        if os.getpid() != launcher:  # forked from it, and not ready to save yet
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGTERM)
        for process in multiprocessing.active_children():
            process.terminate()

    before = signal.signal(signal.SIGTERM, forward)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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


class DataPositionHook(HookBase):
    """Counts the images all processes have trained on, and says where a resumed run goes on.

    The stream of images does not depend on the number of processes. So as long as the images of
    an iteration stay as many, none comes twice and none is left out, on any number of processes
    and however they are divided into micro-batches. If their number changes, the run goes on at
    the iteration that starts nearest before the first image not seen.
    """

    def __init__(self, images_per_iteration: int) -> None:
        """
        Args:
            images_per_iteration: SOLVER.IMS_PER_BATCH times SOLVER.ACCUMULATION_STEPS.
        """
        self._per_iteration = images_per_iteration
        self._seen: int | None = None

    def start_of_data(self, start_iter: int) -> int:
        """Return the iteration, counted in images of this run, whose images come first.

        Args:
            start_iter: first iteration of the training that starts now.
        """
        if self._seen is None:  # a new run, or one saved without this number
            self._seen = start_iter * self._per_iteration
        data_iter, repeated = divmod(self._seen, self._per_iteration)
        if data_iter != start_iter:
            logger.warning(
                "The images of an iteration are not as many as before (now %d): after %d images "
                "the data go on as if %d iterations had been done; %d images come again.",
                self._per_iteration,
                self._seen,
                data_iter,
                repeated,
            )
            self._seen -= repeated
        return data_iter

    def after_step(self) -> None:
        assert self._seen is not None, "start_of_data has not been called"
        self._seen += self._per_iteration

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = state_dict["images"]
