"""How a job starts, and how it ends when something fails: on all machines, with the first error.

detectron2's `launch` ends the processes of one machine when one of them fails. Those of other
machines would wait in a collective for half an hour. Here every process watches for the error of
any other one, and what a user can mend is told in one sentence instead of a traceback.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlparse

import torch
import torch.distributed as dist
from detectron2.engine import launch
from detectron2.engine.launch import DEFAULT_TIMEOUT
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from rose_d2.engine.preemption import (
    PREEMPTED_STATUS,
    Preempted,
    termination_forwarded,
    termination_requested,
)

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
# torchrun's name and DeepSpeed's.
_LOCAL_SIZE_NAMES = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")
_TIMEOUT = timedelta(seconds=30)
_DISK_ERRORS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.EFBIG,
    errno.EIO,
)


_PACKAGE = Path(__file__).parents[1]


def run_job(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    check: Callable[[argparse.Namespace], None] | None = None,
) -> None:
    """Run `main(args)` in all processes of this machine, as detectron2's `launch` does.

    Started by torchrun or DeepSpeed's launcher, which run one such process per GPU, it runs
    `main(args)` in this one.

    Args:
        main: a function of a module.
        args: from detectron2's `default_argument_parser`; passed on to `main`.
        check: called with `args` first, by one process on each machine, or, under a launcher, by
            process 0 while the others wait; raises what ends the job.

    Raises:
        SystemExit: the job failed or was preempted; the exit status is not 0 and stderr says why.
    """
    place = started_by_launcher()
    if place is not None:
        if args.num_machines * args.num_gpus > 1:
            raise SystemExit(
                f"{program()}: --num-gpus {args.num_gpus} and --num-machines {args.num_machines} "
                f"were given, but a launcher has started {place.world_size} processes already "
                "(RANK and WORLD_SIZE are set): leave both out, or leave out the launcher."
            )
        if place.world_size > 1:
            join_process_group(place)
            run_process(_check_and_run, main, args, check)
            return
    if check is not None:
        run_alone(check, args)
    _launch(main, args)


def _check_and_run(
    main: Callable[[argparse.Namespace], Any],
    args: argparse.Namespace,
    check: Callable[[argparse.Namespace], None] | None,
) -> None:
    if check is not None and comm.is_main_process():
        check(args)
    comm.synchronize()
    main(args)


def _launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    several = args.num_machines * args.num_gpus > 1
    try:
        with termination_forwarded() if several else nullcontext():
            launch(
                run_process if several else run_alone,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(main, args),
            )
    except ProcessRaisedException as error:
        raise SystemExit(str(error)) from None
    except ProcessExitedException as error:
        if error.signal_name is None:
            raise SystemExit(error.exit_code) from None  # it has said why
        if error.signal_name == "SIGTERM" and termination_requested.is_set():
            # It was told to end before it could save, and had nothing to save.
            raise SystemExit(PREEMPTED_STATUS) from None
        reason = f"{program()}: process {error.error_index} was ended by {error.signal_name}"
        _tell_other_machines(args, reason)
        hint = "; the machine may have run out of memory" if "KILL" in error.signal_name else ""
        raise SystemExit(f"{reason}{hint}.") from None


def run_alone(main: Callable[..., Any], *args: Any) -> None:
    """Call `main` in a job of one process; the user's mistakes end it with one sentence."""
    try:
        main(*args)
    except Exception as error:
        if is_users_mistake(error):
            raise SystemExit(_sentence(error)) from None
        raise


def run_process(main: Callable[..., Any], *args: Any) -> None:
    """Call `main` in one process of several; the process group has to be there."""
    preempted: Preempted | None = None
    with FailureWatch(shared_store()):
        try:
            main(*args)
        except Preempted as error:
            preempted = error  # as in every other process, so nobody has failed
        except Exception as error:
            if is_users_mistake(error):
                raise SystemExit(_sentence(error)) from error
            raise
        # Whoever is still busy may fail yet, and needs the store of process 0.
        comm.synchronize()
    if preempted is not None:
        raise preempted


def is_users_mistake(error: BaseException) -> bool:
    """Whether this package itself refused something; its messages then say what to do.

    Args:
        error: with its traceback.
    """
    if is_of_the_disk(error):
        return True
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError | FileNotFoundError | ImportError):
        return False
    return _PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a file could not be written because of the disk or its permissions."""
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def _tell_other_machines(args: argparse.Namespace, message: str) -> None:
    """Publish the end of a process that could not do it, from the launcher of its machine."""
    address = urlparse(args.dist_url or "")
    if args.num_machines == 1 or address.scheme != "tcp" or args.machine_rank == 0:
        return  # the store ends with machine 0, which the others see
    publish_failure(
        address.hostname or "",
        address.port or 0,
        rank=args.machine_rank * args.num_gpus,
        machine=args.machine_rank,
        message=message,
    )


def _sentence(error: BaseException) -> str:
    hint = "; mend that, and --resume goes on from the last checkpoint"
    return f"{program()}: {error}{hint if is_of_the_disk(error) else ''}"


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


@dataclass(frozen=True)
class Place:
    """Which process of a job this is.

    Attributes:
        rank: among all processes.
        world_size: how many there are.
        local_rank: among those of this machine.
        local_size: how many run on this machine, as on every other.
    """

    rank: int
    world_size: int
    local_rank: int
    local_size: int


def started_by_launcher(environment: Mapping[str, str] = os.environ) -> Place | None:
    """Read what a launcher has told this process; None if none has started it.

    Args:
        environment: RANK, WORLD_SIZE, LOCAL_RANK, and LOCAL_WORLD_SIZE (torchrun) or LOCAL_SIZE
            (DeepSpeed).
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    local_size = next((n for n in _LOCAL_SIZE_NAMES if n in environment), None)
    if local_size is None or any(name not in environment for name in names):
        return None
    rank, world_size, local_rank = (int(environment[name]) for name in names)
    return Place(rank, world_size, local_rank, int(environment[local_size]))


def join_process_group(place: Place) -> None:
    """Do what detectron2's `launch` does in each process it starts.

    The launcher has set MASTER_ADDR and MASTER_PORT, where the processes find each other.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        init_method="env://",
        rank=place.rank,
        world_size=place.world_size,
        timeout=DEFAULT_TIMEOUT,
    )
    comm.create_local_process_group(place.local_size)
    comm.synchronize()


def shared_store() -> dist.Store:
    """Connect anew to the store `init_process_group` made, without its prefix.

    A connection serves one thread: another thread's request on it would wait for the first one's.
    """
    # PyTorch has no public way to it.
    store = dist.distributed_c10d._get_default_store()
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    own = store.clone()
    own.set_timeout(_TIMEOUT)
    return own
