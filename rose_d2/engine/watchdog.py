"""A training run that stands still says which process the others wait for, and where that is."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from types import FrameType
from typing import Any, TypeVar

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.hooks import RemovableHandle

logger = logging.getLogger(__name__)

T = TypeVar("T")
_KEY = "rose_d2/heartbeat"
# Heartbeats in the time until a stall; who misses `_MISSED` of them gives no sign of life.
_BEATS = 10
_MISSED = 3
# A stall that lasts is reported again when it is this many times as long.
_AGAIN = 4.0
# A process that stands in these files waits for others.
_EXCHANGE_FILES = (
    os.path.join("torch", "distributed", ""),
    os.path.join("deepspeed", "comm", ""),
    os.path.join("detectron2", "utils", "comm.py"),
)
_PACKAGE = os.path.join("rose_d2", "")


class WatchdogHook(HookBase):
    """Watches the progress of all processes of a run; a thread speaks up when there is none.

    When one process stalls all others stall with it, in their next exchange. So each publishes
    through the store of the job how far it is, and the first one alive names those that are
    behind, what they do and the line of code they stand at. Every process writes its whole stack
    into its own log. Nothing is ended: what hangs for good meets the time-out of the process group.
    """

    def __init__(
        self, *, engine: Any, model: nn.Module, seconds: float, store: dist.Store | None = None
    ) -> None:
        """
        Args:
            engine: its `data_iterator` is watched.
            model: the unwrapped model.
            seconds: without progress, until a stall is reported.
            store: a connection that nobody else uses, to a store all processes share; None in a
                run of one process.
        """
        self._engine = engine
        self._model = model
        self._seconds = seconds
        self._interval = seconds / _BEATS
        self._store = store
        self._handles: list[RemovableHandle] = []
        self._data_iterator: Iterator[Any] | None = None
        self._main_thread = 0
        self._in_step = False
        self._beat = Heartbeat(comm.get_rank(), socket.gethostname(), os.getpid())
        self._last = time.monotonic()
        # What every rank published last, and when this process first saw that.
        self._seen: dict[int, tuple[str, float]] = {}
        self._next_report = seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def before_train(self) -> None:
        self._main_thread = threading.get_ident()
        self._beat = replace(self._beat, iteration=self.trainer.start_iter)
        self._data_iterator = self._engine.data_iterator
        self._engine.data_iterator = _watched(self._data_iterator, self._progress)
        self._handles = [
            self._model.register_forward_pre_hook(lambda *_: self._progress("in a forward pass")),
            self._model.register_forward_hook(
                lambda *_: self._progress("in the backward pass or the update")
            ),
        ]
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def before_step(self) -> None:
        self._in_step = True
        self._beat = replace(self._beat, iteration=self.trainer.iter, position=0)
        self._progress("in a step")

    def after_step(self) -> None:
        self._progress("evaluating, saving or logging")
        self._in_step = False

    def after_train(self) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        self._engine.data_iterator = self._data_iterator
        for handle in self._handles:
            handle.remove()

    def _progress(self, activity: str) -> None:
        self._last = time.monotonic()
        if self._in_step:  # an evaluation has as many forward passes as this rank has images
            position = self._beat.position + 1
            self._beat = replace(self._beat, activity=activity, position=position)

    def _watch(self) -> None:
        try:
            self._publish()
            while not self._ended.wait(self._interval):
                own = self._publish()
                if own.idle_seconds < self._seconds - (_MISSED + 1) * self._interval:
                    self._recovered(own)
                else:
                    self._look_around(own)
        except RuntimeError as error:
            # The store ends with process 0; that is somebody else's to tell.
            logger.debug("The watchdog stops, because the store of the job is gone: %s", error)

    def _publish(self) -> Heartbeat:
        """Tell the other processes how far this one is."""
        frame = sys._current_frames().get(self._main_thread)
        where, is_waiting = locate(frame) if frame is not None else ("", False)
        idle = time.monotonic() - self._last
        own = replace(self._beat, idle_seconds=idle, where=where, is_waiting=is_waiting)
        if self._store is not None:
            self._store.set(f"{_KEY}/{own.rank}", json.dumps(asdict(own)))
        return own

    def _look_around(self, own: Heartbeat) -> None:
        """Read what the others published; report if it is time and nobody before this one can."""
        beats, lifeless = self._read_all(own)
        if own.idle_seconds < self._next_report:
            return
        self._next_report = _AGAIN * own.idle_seconds
        stack = traceback.format_stack(sys._current_frames().get(self._main_thread))
        logger.info("No progress: this process stands at\n%s", "".join(stack))
        num_ranks = comm.get_world_size()
        if own.rank == min(set(range(num_ranks)) - lifeless):
            logger.error(describe_stall(beats, lifeless, num_ranks, own.idle_seconds))

    def _read_all(self, own: Heartbeat) -> tuple[list[Heartbeat], set[int]]:
        """Return the last heartbeats of all ranks, and the ranks that send none any more."""
        if self._store is None:
            return [own], set()
        beats, lifeless = [own], set()
        now = time.monotonic()
        for rank in set(range(comm.get_world_size())) - {own.rank}:
            if not self._store.check([f"{_KEY}/{rank}"]):
                lifeless.add(rank)
                continue
            text = self._store.get(f"{_KEY}/{rank}").decode()
            if self._seen.get(rank, ("", 0.0))[0] != text:
                self._seen[rank] = (text, now)
            if now - self._seen[rank][1] >= _MISSED * self._interval:
                lifeless.add(rank)
            beats.append(Heartbeat(**json.loads(text)))
        return beats, lifeless

    def _recovered(self, own: Heartbeat) -> None:
        if self._next_report > self._seconds and own.rank == 0:
            logger.warning("The run goes on, in iteration %d.", own.iteration)
        self._next_report = self._seconds
        self._seen.clear()


def _watched(iterator: Iterator[T], progress: Callable[[str], None]) -> Iterator[T]:
    """Give the items of an iterator and tell when one is waited for."""
    while True:
        progress("waiting for data")
        try:
            item = next(iterator)
        except StopIteration:
            return
        progress("in a step")
        yield item


@dataclass(frozen=True)
class Heartbeat:
    """How far a process is.

    Attributes:
        rank: of the process.
        host: the machine it runs on.
        process: its id there.
        iteration: of training.
        position: counts what a step consists of; equal on all ranks that are equally far.
        activity: what it does since then.
        idle_seconds: how long.
        where: the line of code it stands at.
        is_waiting: whether that is an exchange with other processes.
    """

    rank: int
    host: str
    process: int
    iteration: int = 0
    position: int = 0
    activity: str = "starting"
    idle_seconds: float = 0.0
    where: str = ""
    is_waiting: bool = False


def ranks_behind(beats: Sequence[Heartbeat], lifeless: Collection[int]) -> list[int]:
    """Find the ranks that the others wait for.

    Args:
        beats: of all ranks that have ever sent one.
        lifeless: ranks that send none any more, or never did.

    Returns:
        The lifeless ranks; else those least far, and among these, if some wait in an exchange, the
        ones that do not.
    """
    if lifeless:
        return sorted(lifeless)
    least = min((beat.iteration, beat.position) for beat in beats)
    behind = [beat for beat in beats if (beat.iteration, beat.position) == least]
    busy = [beat.rank for beat in behind if not beat.is_waiting]
    return sorted(busy or [beat.rank for beat in behind])


def describe_stall(
    beats: Sequence[Heartbeat], lifeless: Collection[int], num_ranks: int, seconds: float
) -> str:
    """Say who stalls a run.

    Args:
        beats: of all ranks that have ever sent one.
        lifeless: ranks that send none any more, or never did.
        num_ranks: of the run.
        seconds: without progress.
    """
    by_rank = {beat.rank: beat for beat in beats}
    behind = ranks_behind(beats, lifeless)
    start = f"No progress for {seconds:.0f} s."
    if len(behind) == num_ranks > 1:
        first = _describe(by_rank[behind[0]]) if behind[0] in by_rank else "unknown"
        return (
            f"{start} No rank is behind the others, so it may be the connection between them; all "
            f"{num_ranks} are equally far, rank {behind[0]} {first}."
        )
    described = []
    for rank in behind:
        if rank not in by_rank:
            described.append(f"rank {rank} has not started training")
        elif rank in lifeless:
            described.append(f"rank {rank} gives no sign of life, last {_describe(by_rank[rank])}")
        else:
            described.append(f"rank {rank} {_describe(by_rank[rank])}")
    waiting = num_ranks - len(behind)
    others = f" Ranks that wait for it: {waiting}." if num_ranks > 1 else ""
    return f"{start} Stalled: {'; '.join(described)}.{others}"


def locate(frame: FrameType) -> tuple[str, bool]:
    """Describe where a thread stands.

    Args:
        frame: its innermost one.

    Returns:
        File, line and function, also of the innermost caller in this package; and whether the
        thread waits for other processes.
    """
    stack = traceback.extract_stack(frame)
    where = _place(stack[-1])
    callers = [entry for entry in stack if _PACKAGE in entry.filename]
    if callers and callers[-1] is not stack[-1]:
        where += f", called from {_place(callers[-1])}"
    is_waiting = any(part in entry.filename for entry in stack for part in _EXCHANGE_FILES)
    return where, is_waiting


def _describe(beat: Heartbeat) -> str:
    where = f", at {beat.where}" if beat.where else ""
    return (
        f"(process {beat.process} on {beat.host}) in iteration {beat.iteration}, {beat.activity} "
        f"for {beat.idle_seconds:.0f} s{where}"
    )


def _place(entry: traceback.FrameSummary) -> str:
    file = os.path.join(*entry.filename.split(os.sep)[-3:])
    return f"{file}:{entry.lineno} in {entry.name}"
