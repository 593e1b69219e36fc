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
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from typing import Any, TypeVar

import torch.distributed as dist
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn
from torch.utils.hooks import RemovableHandle

from rose_d2.engine.health.stall_report import Heartbeat, describe_stall, locate

logger = logging.getLogger(__name__)

T = TypeVar("T")

_KEY = "rose_d2/heartbeat"
# Heartbeats in the time until a stall; who misses `_MISSED` of them gives no sign of life.
_BEATS = 10
_MISSED = 3
# A stall that lasts is reported again when it is this many times as long.
_AGAIN = 4.0


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
