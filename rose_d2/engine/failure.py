"""How a job starts, and how it ends when something fails: on all machines, with the first error.

detectron2's `launch` ends the processes of one machine when one of them fails. Those of other
machines would wait in a collective for half an hour. Here every process watches for the error of
any other one, and what a user can mend is told in one sentence instead of a traceback.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from rose_d2.engine.checkpoints.preemption import Preempted, termination_forwarded
from rose_d2.engine.failure_watch import FailureWatch, program, publish_failure
from rose_d2.engine.job_store import shared_store
from rose_d2.engine.outer_launcher import join_process_group, started_by_launcher

_PACKAGE = Path(__file__).parents[1]


def run_job(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    """Run `main(args)` in all processes of this machine, as detectron2's `launch` does.

    Started by torchrun or DeepSpeed's launcher, which run one such process per GPU, it runs
    `main(args)` in this one.

    Args:
        main: a function of a module.
        args: from detectron2's `default_argument_parser`; passed on to `main`.

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
            run_process(main, args)
            return
    _launch(main, args)


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
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or not isinstance(error, ValueError | FileNotFoundError | ImportError):
        return False
    return _PACKAGE in Path(trace.tb_frame.f_code.co_filename).parents


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
    return f"{program()}: {error}"
