"""Fetching a published file from the first mirror that delivers it.

No library does what this has to do: pooch does not resume, `curl -C -` appends a web page or a file
that has changed to what has arrived, and its own retries begin from the start.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

logger = logging.getLogger(__name__)

_CHUNK = 1 << 18
# Bytes a second, below which a mirror counts as stuck.
_SLOWEST = 1000
_LONGEST_PAUSE = 60.0
# Whatever else a server refuses, it will refuse again.
_PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_HASHED_BLOCK = 1 << 20


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
            failures.append(f"{url}: {_in_one_line(str(error))}")
            logger.warning("%s", failures[-1])
            continue
        Part(target).finish(target)
        size = format_size(target.stat().st_size)
        logger.info("%s: %s, %s", target.name, size, source.evidence)
        return True
    arrived = Part(target).size
    kept = f" The next run goes on from {format_size(arrived)}." if arrived else ""
    raise DownloadError(f"{target.name} could not be fetched. {'; '.join(failures)}.{kept}")


def _in_one_line(text: str) -> str:
    """What a server has said, without line ends and what nobody can read."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


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
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DownloadError(
                f"Another process is at work on {path}; wait for it, then give the command again."
            ) from error
        except (OSError, ImportError):  # Windows has no fcntl
            logger.info("%s: the disk has no locks; run one download at a time", path.parent)
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


class MirrorError(Exception):
    """This mirror does not have the file; another may."""


class _PassingError(Exception):
    """Worth another try at the same mirror."""


class Part:
    """What has arrived of a file, and the note that says of which version.

    Args:
        target: the path of the finished file.
    """

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self.note = target.with_name(target.name + ".part.json")

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.path.stat().st_size if self.path.exists() else 0

    def origin(self, url: str) -> dict[str, Any]:
        """The note (keys `url`, `validator`, `total`) if the part is of this address, else {}."""
        try:
            origin = dict(json.loads(self.note.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}
        return origin if origin.get("url") == url else {}

    def remember(self, url: str, validator: str | None, total: int | None) -> None:
        """Write the note."""
        origin = {"url": url, "validator": validator, "total": total}
        self.note.write_text(json.dumps(origin), encoding="utf-8")

    def discard(self) -> None:
        """Delete it."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)

    def finish(self, target: Path) -> None:
        """Give the complete part its real name."""
        self.path.replace(target)
        self.note.unlink(missing_ok=True)


class Transfer:
    """The tries to get one file from one mirror.

    Args:
        url: the mirror.
        source: what is published about the file.
        target: the path of the finished file; only its part is written here.
        timeout: seconds without a byte after which a try has failed.
    """

    def __init__(self, url: str, source: RemoteFile, target: Path, timeout: float) -> None:
        self.url, self.source, self.timeout = url, source, timeout
        self.name = target.name
        self.part = Part(target)
        self._is_pieced_together = False  # the part comes from more than one response
        self._may_start_over = True

    def run(self, attempts: int, pause: float) -> None:
        """Try until the part is complete and right.

        Args:
            attempts: tries in a row that get no further, after which this gives up.
            pause: seconds before the second of them; every further pause is twice as long.

        Raises:
            MirrorError: it cannot be had here.
            DownloadError: the disk is too small.
        """
        failures, most = 0, self.part.size
        while True:
            try:
                return self._try_once()
            except _PassingError as error:
                failures = 1 if self.part.size > most else failures + 1
                most = max(most, self.part.size)
                if failures >= attempts:
                    raise MirrorError(f"{error} (tried {failures} times)") from error
                seconds = min(pause * 2 ** (failures - 1), _LONGEST_PAUSE)
                logger.info("%s: %s; next try in %.0f s", self.name, error, seconds)
                time.sleep(seconds)

    def _try_once(self) -> None:
        total = self.part.origin(self.url).get("total") or self.source.size
        if self.part.size and self.part.size == total:
            self._is_pieced_together = True
        else:
            with self._open() as response:
                self._receive(response)
        problem = self.source.problem(self.part.path)
        if problem is None:
            return
        self.part.discard()
        if self._is_pieced_together and self._may_start_over:
            # The pieces may be of different versions; one transfer in one go settles it.
            self._may_start_over = False
            raise _PassingError(f"what arrived {problem}, starting over")
        raise MirrorError(f"what it sent {problem}; deleted")

    def _open(self) -> HTTPResponse:
        headers = {"User-Agent": "rose_d2 dataset download", "Accept-Encoding": "identity"}
        origin = self.part.origin(self.url)
        validator = origin.get("validator")
        # With none of the three nobody would notice that the file has changed since.
        if self.part.size and (validator or origin.get("total") or self.source.checksum):
            headers["Range"] = f"bytes={self.part.size}-"
            if validator:
                headers["If-Range"] = validator
        try:
            return urlopen(Request(self.url, headers=headers), timeout=self.timeout)
        except HTTPError as error:
            error.close()
            if error.code == 416:
                raise self._nothing_left(error.headers, validator) from error
            kind = _PassingError if error.code in _PASSING_STATUS else MirrorError
            raise kind(f"HTTP {error.code} {error.reason}") from error
        except (OSError, HTTPException) as error:
            raise _network_error(error) from error

    def _nothing_left(self, headers: Message, validator: str | None) -> _PassingError:
        """After 416 the part is either complete or too long for the file there is now."""
        total = re.fullmatch(r"bytes \*/(\d+)", headers.get("Content-Range", ""))
        if total is not None and int(total[1]) == self.part.size:
            self.part.remember(self.url, validator, self.part.size)
            return _PassingError("all of it has arrived")
        self.part.discard()
        return _PassingError("the file has changed, starting over")

    def _receive(self, response: HTTPResponse) -> None:
        start = self._start_of(response)
        total = start + response.length if response.length is not None else None
        self._refuse_other_file(response.headers, total)
        total = total or self.source.size
        if total is not None:
            require_free_space(self.part.path.parent, total - start, self.name)
        if start == 0:
            self.part.discard()  # before the note of the new version is written
        self.part.remember(self.url, _validator(response.headers), total)
        self._is_pieced_together = start > 0
        with self.part.path.open("ab") as file, byte_progress(self.name, total, start) as bar:
            arrived, begun = start, time.monotonic()
            for chunk in _chunks(response):
                arrived += len(chunk)
                if total is not None and arrived > total:
                    raise MirrorError(f"sends more than the {total} bytes of the file")
                file.write(chunk)
                bar.update(len(chunk))
                seconds = time.monotonic() - begun
                if seconds > self.timeout and arrived - start < _SLOWEST * seconds:
                    raise _PassingError(f"sent less than {_SLOWEST} bytes a second")
        if total is not None and self.part.size < total:
            arrived = f"{format_size(self.part.size)} of {format_size(total)}"
            raise _PassingError(f"the connection closed after {arrived}")

    def _start_of(self, response: HTTPResponse) -> int:
        """The place in the file of the response's first byte."""
        if response.status != 206:
            if self.part.size:
                logger.info("%s: the server sends all of it again", self.name)
            return 0
        span = re.match(r"bytes (\d+)-\d+/(\d+)?", response.headers.get("Content-Range", ""))
        start, total = (int(number or 0) for number in span.groups()) if span else (0, 0)
        origin = self.part.origin(self.url)
        has_changed = origin.get("validator") not in (None, _validator(response.headers))
        has_changed |= bool(total) and origin.get("total") not in (None, total)
        if start != self.part.size or has_changed:
            self.part.discard()
            raise _PassingError("the server sent a piece of another file, starting over")
        return self.part.size

    def _refuse_other_file(self, headers: Message, total: int | None) -> None:
        if headers.get_content_type() == "text/html":
            raise MirrorError("sends a web page instead of the file")
        if total is not None and self.source.size not in (None, total):
            raise MirrorError(f"has a file of {total} bytes instead of {self.source.size}")


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(_CHUNK)  # what there is, however slowly it comes
        except (OSError, HTTPException) as error:
            raise _network_error(error) from error
        if not chunk:
            return
        yield chunk


def _validator(headers: Message) -> str | None:
    """The header by which a server recognizes a version of a file."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _network_error(error: Exception) -> MirrorError | _PassingError:
    reason = error.reason if isinstance(error, URLError) else error
    is_unknown_host = isinstance(reason, socket.gaierror) and reason.errno != socket.EAI_AGAIN
    lasts = is_unknown_host or isinstance(reason, ssl.SSLCertVerificationError)
    message = str(reason) or type(reason).__name__
    return MirrorError(message) if lasts else _PassingError(message)


class DownloadError(OSError):
    """A file could not be fetched or is not the published one; the message says why."""


@dataclass(frozen=True)
class RemoteFile:
    """A file on the web.

    Args:
        urls: where it lies, tried in this order.
        size: in bytes; None if unknown.
        checksum: "sha256:<digits>" or "md5:<digits>"; None if none is known.
    """

    urls: tuple[str, ...]
    size: int | None = None
    checksum: str | None = None

    def problem(self, path: Path) -> str | None:
        """What is wrong with a copy, as the end of a sentence; None if it is right."""
        size = path.stat().st_size
        if self.size is not None and size != self.size:
            return f"has {size} bytes instead of {self.size}"
        if self.checksum is not None:
            algorithm, expected = self.checksum.split(":")
            digest = _digest(path, algorithm)
            if digest != expected:
                return f"has the {algorithm} checksum {digest} instead of {expected}"
        return None

    @property
    def evidence(self) -> str:
        """What speaks for a copy that has no `problem`, in a few words."""
        if self.checksum is not None:
            return f"{self.checksum.split(':')[0]} as published"
        known = "no checksum is" if self.size is not None else "neither checksum nor size is"
        return f"{known} published, so only its length was checked"


def require_free_space(folder: Path, size: int, purpose: str) -> None:
    """Raise DownloadError if the disk of a folder has less than `size` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise DownloadError(
            f"{purpose} needs {format_size(size)}, but {folder} has {format_size(free)} free; "
            "free some space, or name a folder on another disk."
        )


def format_size(size: float) -> str:
    """Bytes for people, e.g. 19336861798 -> "19.3 GB"."""
    if size < 1000:
        return f"{size:.0f} bytes"
    for unit in ("kB", "MB"):
        size /= 1000
        if size < 1000:
            return f"{size:.1f} {unit}"
    return f"{size / 1000:.1f} GB"


def byte_progress(description: str, total: int | None, start: int = 0) -> tqdm:
    """A progress bar in bytes that vanishes when it is done."""
    return tqdm(
        total=total,
        initial=start,
        desc=description,
        unit="B",
        unit_scale=True,
        leave=False,
        # A log file needs no ten lines a second.
        mininterval=0.1 if sys.stderr.isatty() else 30,
    )


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    name = path.name.removesuffix(".part")
    with path.open("rb") as file, byte_progress(f"check {name}", path.stat().st_size) as bar:
        while chunk := file.read(_HASHED_BLOCK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
