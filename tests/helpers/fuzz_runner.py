"""Runs damaged inputs in a forked process that may crash, hang or ask for all memory.

The process tells before each input which one it is, so that its end, or its silence, has a name. It
has a limit on memory, and an audit hook that sees every file written and every program started.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import random
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

SECONDS = 10
# Times the limit that a process may wait without computing.
_PATIENCE = 6
MEMORY = 2 << 30
"""Bytes beyond what the process has at its start."""

Use = Callable[[Path, random.Random], None]
_STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen", "pty.spawn")
_CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Findings:
    """What became of the inputs of one kind.

    Attributes:
        counts: "read" and "refused".
        faults: one sentence for each input that ended in another way.
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []


def run_inputs(
    use: Use, seeds: list[str], folder: Path, *, seconds: float = SECONDS, memory: int = MEMORY
) -> Findings:
    """Use one input after another.

    Args:
        use: takes a new folder, to write and read its input in, and the generator to draw it with.
            A result is no error; a refusal a ValueError or OSError with a sentence.
        seeds: one for each input.
        folder: for the folders of the inputs.
        seconds: an input that computes, or waits much, longer hangs.
        memory: bytes that the process may ask for beyond those of this one.
    """
    findings = Findings()
    context = multiprocessing.get_context("fork")
    left = list(seeds)
    while left:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(use, left, folder, memory, sender))
        process.start()
        sender.close()
        done, fault = _follow(receiver, process.pid, left, findings, seconds)
        process.kill() if fault == "hang" else process.join(seconds)
        process.join()
        if fault:
            how = f"hung for {seconds} s" if fault == "hang" else f"ended by {process.exitcode}"
            findings.faults.append(f"{left[done]}: {how}")
        left = left[done + 1 :]
    return findings


def _follow(
    receiver: Any, pid: int, seeds: list[str], findings: Findings, seconds: float
) -> tuple[int, str]:
    """Take what the process tells; the position of the input it stopped at, and the fault."""
    for position, seed in enumerate(seeds):
        try:
            if not _tells_in_time(receiver, psutil.Process(pid), seconds):
                return position, "hang"
            kind, text = receiver.recv()
        except EOFError:
            return position, "crash"
        if kind == "fault":
            findings.faults.append(f"{seed}: {text}")
        else:
            findings.counts[kind] += 1
    return len(seeds), ""


def _tells_in_time(receiver: Any, process: psutil.Process, seconds: float) -> bool:
    """Whether it says something within the limit; a machine busy with others counts for little."""
    with contextlib.suppress(psutil.NoSuchProcess):
        before = process.cpu_times()
        for _ in range(_PATIENCE):
            if receiver.poll(seconds):
                return True
            now = process.cpu_times()
            if now.user + now.system - before.user - before.system >= seconds / 2:
                return False
    return receiver.poll(0)


def _work(use: Use, seeds: list[str], folder: Path, memory: int, sender: Any) -> None:
    faulthandler.disable()  # of pytest: a crash is told by the exit status
    torch.set_num_threads(1)  # a pool of threads does not survive the fork
    warnings.simplefilter("ignore")
    _limit_memory(memory)
    watch = _Watch()
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
    for seed in seeds:
        own = Path(tempfile.mkdtemp(dir=folder))
        with watch.confined_to(own):
            answer = _outcome(use, own, seed)
        if watch.seen:
            answer = "fault", f"{watch.seen[0]} outside its folder"
        sender.send(answer)
    sender.close()
    os._exit(0)  # not through pytest's clean-up


def _outcome(use: Use, own: Path, seed: str) -> tuple[str, str]:
    try:
        use(own, random.Random(seed))
    except (ValueError, OSError) as error:
        text = str(error)
        if not text.strip() or "\0" in text:
            return "fault", f"refused without a sentence: {error!r}"
        return "refused", text
    except BaseException as error:  # noqa: BLE001  (whatever it is)
        return "fault", repr(error)[:500]
    return "read", ""


def _limit_memory(memory: int) -> None:
    if not sys.platform.startswith("linux"):  # other systems take the limit and pass it over
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + memory
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class _Watch:
    """Sees what is written and started; a hook stays until the process ends."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._allowed: str | None = None
        sys.addaudithook(self._hook)

    @contextlib.contextmanager
    def confined_to(self, folder: Path):
        self.seen.clear()
        self._allowed = os.path.realpath(folder)
        try:
            yield
        finally:
            self._allowed = None

    def _hook(self, event: str, arguments: tuple) -> None:
        if self._allowed is None:
            return
        if event in _STARTS:
            self.seen.append(f"{event} {arguments[0]!r}")
        elif event == "open" and arguments[2] & _WRITES or event in _CHANGES:
            self._check(event, arguments[0])

    def _check(self, event: str, path: Any) -> None:
        if isinstance(path, int) or path in (os.devnull, b"/dev/null"):
            return
        place = os.path.realpath(os.fsdecode(path))
        if os.path.commonpath([place, self._allowed or "/"]) != self._allowed:
            self.seen.append(f"{event} of {place}")
