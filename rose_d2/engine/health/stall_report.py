"""Which processes of a run that stands still are behind the others, in a sentence."""

from __future__ import annotations

import os
import traceback
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import FrameType

# A process that stands in these files waits for others.
_EXCHANGE_FILES = (
    os.path.join("torch", "distributed", ""),
    os.path.join("deepspeed", "comm", ""),
    os.path.join("detectron2", "utils", "comm.py"),
)
_PACKAGE = os.path.join("rose_d2", "")


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
