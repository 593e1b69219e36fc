"""What is published about a file on the web, and how to tell whether a copy of it is right."""

from __future__ import annotations

import hashlib
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

_CHUNK = 1 << 20


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
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()
