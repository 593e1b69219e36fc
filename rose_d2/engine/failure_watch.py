"""How every process of a job hears that another one has failed."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist
from detectron2.utils import comm

from rose_d2.engine.checkpoints.preemption import termination_requested

logger = logging.getLogger(__name__)

_FAILURE_KEY = "rose_d2/failure"
_POLL_SECONDS = 1.0
# The launcher ends the processes of its own machine; they wait this long for it.
_LAUNCHER_SECONDS = 15.0
# A failed process lives this long for other machines to read why.
_READING_SECONDS = 10.0
# A process that lost a connection waits this long for the reason.
_CAUSE_SECONDS = 5.0
_STORE_TIMEOUT = timedelta(seconds=30)


class FailureWatch:
    """Tells all processes of a job that one has failed, and ends this one when another has.

    The first error is published in the store through which the processes found each other. A
    thread looks there every second; it also works while the process waits in a collective.
    """

    def __init__(self, store: dist.Store) -> None:
        """
        Args:
            store: a connection that nobody else uses, to a store all processes share.
        """
        self._store = store
        self._rank = comm.get_rank()
        self._machine = self._rank // comm.get_local_size()
        self._num_machines = comm.get_world_size() // comm.get_local_size()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failure watch", daemon=True)

    def __enter__(self) -> FailureWatch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and _is_consequence(error):
            # Whoever broke the connection may say why; then the watching thread ends this process.
            time.sleep(_CAUSE_SECONDS)
        self._ended.set()
        self._thread.join()
        if error is None:
            return
        first = self._publish(error)
        if first["rank"] == self._rank:
            self._wait_for_readers()
        else:
            self._obey(first)

    def _publish(self, error: BaseException) -> dict[str, Any]:
        """Publish this process's error, unless there is one; returns the one that is first."""
        kind = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        own = _description(self._rank, self._machine, f"{kind}{error}")
        try:
            return json.loads(self._store.compare_set(_FAILURE_KEY, "", json.dumps(own)))
        except RuntimeError:
            logger.warning("Could not tell the other processes: the store of the job is gone.")
            return own

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_SECONDS):
            try:
                failed = self._store.check([_FAILURE_KEY])
                first = json.loads(self._store.get(_FAILURE_KEY)) if failed else None
            except RuntimeError:
                if self._ended.wait(_POLL_SECONDS):
                    return  # process 0 had only finished before this one
                message = "it ended without a message, see the log there"
                first = {"rank": 0, "machine": 0, "host": "machine 0", "message": message}
            if first is not None:
                self._obey(first)

    def _obey(self, first: dict[str, Any]) -> None:
        """End this process because of another one's error."""
        if first["machine"] == self._machine or comm.get_local_rank() > 0:
            # In which the launcher ends this process, or tells it to.
            termination_requested.wait(_LAUNCHER_SECONDS)
        else:
            sys.stderr.write(
                f"{program()}: stopped, because process {first['rank']} on {first['host']} "
                f"failed: {first['message']}\n"
            )
            sys.stderr.flush()
            self._acknowledge()
        logging.shutdown()
        # Not sys.exit: the main thread may be in a collective that never returns.
        os._exit(1)

    def _acknowledge(self) -> None:
        try:
            self._store.set(_read_key(self._machine), "read")
        except RuntimeError:
            logger.debug("The store of the job is gone already.")

    def _wait_for_readers(self) -> None:
        """Keep the store alive, which may be this process's or its neighbour's."""
        others = [_read_key(m) for m in range(self._num_machines) if m != self._machine]
        deadline = time.monotonic() + _READING_SECONDS
        try:
            while others and not self._store.check(others) and time.monotonic() < deadline:
                time.sleep(0.1)
        except RuntimeError:
            logger.debug("The store of the job is gone already.")


def publish_failure(address: str, port: int, *, rank: int, machine: int, message: str) -> None:
    """Tell a job that one of its processes has failed, from outside the job.

    Args:
        address: host name of the job's store.
        port: its port.
        rank: the process that failed.
        machine: where.
        message: why.
    """
    own = _description(rank, machine, message)
    try:
        store = dist.TCPStore(address, port, timeout=_STORE_TIMEOUT, wait_for_workers=False)
        store.compare_set(_FAILURE_KEY, "", json.dumps(own))
    except RuntimeError:
        logger.warning("Could not tell the other machines at %s:%d.", address, port)


def program() -> str:
    """Name the program, for messages."""
    return Path(sys.argv[0]).name


def _description(rank: int, machine: int, message: str) -> dict[str, Any]:
    return {"rank": rank, "machine": machine, "host": socket.gethostname(), "message": message}


def _is_consequence(error: BaseException) -> bool:
    """Whether a collective failed, as it does when another process has ended."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and ("connection" in text or "nccl" in text)


def _read_key(machine: int) -> str:
    return f"{_FAILURE_KEY}/read by machine {machine}"
