"""SIGTERM as a cluster sends it before it takes the machine away: save, then stop.

The signal only leaves a note. After the optimizer step in which the first process got it, all
processes save together and exit with `PREEMPTED_STATUS`, by which a batch script can tell "start me
again with --resume" from a failure; docs/checkpoints.md has one.
"""

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from rose_d2.engine.checkpoints.checkpointer import RoseCheckpointer

logger = logging.getLogger(__name__)

# EX_TEMPFAIL of sysexits.h: a temporary failure, the user is invited to try again.
PREEMPTED_STATUS = 75

# Set once this process got SIGTERM while it was training.
termination_requested = threading.Event()


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

    def forward(signum: int, frame: FrameType | None) -> None:
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
