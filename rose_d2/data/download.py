"""Fetching a published file from the first mirror that delivers it."""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path

from rose_d2.data.remote_file import DownloadError, RemoteFile, format_size
from rose_d2.data.transfer import MirrorError, Part, Transfer

logger = logging.getLogger(__name__)


def fetch(
    source: RemoteFile,
    target: Path,
    *,
    attempts: int = 5,
    pause: float = 1.0,
    timeout: float = 60.0,
) -> bool:
    """Fetch a file, or go on where an earlier call stopped.

    After a failure or Ctrl-C the part that arrived stays for the next call; one with a wrong
    checksum is deleted.

    Args:
        source: the file.
        target: where it goes; it appears there complete and checked, or not at all.
        attempts: tries at a mirror that get no further than the one before; then it is the next
            mirror's turn.
        pause: seconds before the second of them; every further pause is twice as long.
        timeout: seconds without a byte after which a try has failed.

    Returns:
        False if the file was there already, and is right.

    Raises:
        DownloadError: no mirror delivered, the file there is not the published one, or the disk
            is too small.
    """
    if target.exists():
        problem = source.problem(target)
        if problem is not None:
            raise DownloadError(f"{target} {problem}; delete it to fetch it again.")
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    failures = []
    for url in source.urls:
        try:
            Transfer(url, source, target, timeout).run(attempts, pause)
        except MirrorError as error:
            failures.append(f"{url}: {error}")
            logger.warning("%s: %s", url, error)
            continue
        Part(target).finish(target)
        size = format_size(target.stat().st_size)
        logger.info("%s: %s, %s", target.name, size, source.evidence)
        return True
    arrived = Part(target).size
    kept = f" The next run goes on from {format_size(arrived)}." if arrived else ""
    raise DownloadError(f"{target.name} could not be fetched. {'; '.join(failures)}.{kept}")


@contextlib.contextmanager
def sole_owner(path: Path) -> Iterator[None]:
    """Keep other processes that ask likewise away from a file: two would mix their bytes.

    Args:
        path: the file, which need not exist; its folder is made.

    Raises:
        DownloadError: another process has it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_name(path.name + ".lock")
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(
                f"Another process is at work on {path}; wait for it, then give the command again."
            ) from error
        except OSError:
            logger.info("%s: the disk has no locks; run one download at a time", path.parent)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
