"""The archives of every dataset: the table `archives.yaml` beside this file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from rose_d2.prepare.download import RemoteFile

ALL_FAMILIES = "all"


@dataclass(frozen=True)
class Archive:
    """One archive: what it is, where it comes from, and what is there once it is unpacked.

    Args:
        key: its name on the command line.
        families: the datasets that need it.
        file_name: of the archive.
        remote: its mirrors, official ones first; without any it must be fetched by hand.
        provides: files and folders under the root that it makes; it is present if all are.
        licence: one sentence.
        folder: under the root, where it is unpacked.
        inner: archives within it, see `rose_d2.prepare.unpacking.unpack`.
        max_growth: it may unpack to so many times its size.
        substitutes: folders under the root of which one makes this archive unnecessary.
        about: size in bytes, where only a rounded one is known.
        by_hand: what to do when no mirror delivers; may name {root}, {downloads} and {file}.
    """

    key: str
    families: tuple[str, ...]
    file_name: str
    remote: RemoteFile
    provides: tuple[str, ...]
    licence: str
    folder: str = "."
    inner: Mapping[str, str] = field(default_factory=dict)
    max_growth: int = 20
    substitutes: tuple[str, ...] = ()
    about: int | None = None
    by_hand: str = ""

    @property
    def size(self) -> int | None:
        """Bytes to fetch, if known."""
        return self.remote.size or self.about

    def is_present(self, root: Path) -> bool:
        """Whether everything it provides is under the root."""
        return all(_holds_something(root / path) for path in self.provides)

    def is_replaced(self, root: Path, coming: Iterable[str] = ()) -> bool:
        """Whether other files, there or coming, do its work."""
        coming = set(coming)
        return any(path in coming or _holds_something(root / path) for path in self.substitutes)


def _holds_something(path: Path) -> bool:
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def read_archives() -> tuple[Archive, ...]:
    """The table `archives.yaml`."""
    file = resources.files("rose_d2.prepare") / "archives.yaml"
    table = yaml.safe_load(file.read_text(encoding="utf-8"))["archives"]
    return tuple(_archive(key, **entry) for key, entry in table.items())


def _archive(
    key: str,
    *,
    urls: Sequence[str] = (),
    size: int | None = None,
    checksum: str | None = None,
    **others: Any,
) -> Archive:
    remote = RemoteFile(tuple(urls), size, checksum)
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in others.items()}
    return Archive(key=key, remote=remote, **fields)


ARCHIVES = read_archives()


def families() -> list[str]:
    """The datasets, in the order of the table."""
    return list(dict.fromkeys(family for archive in ARCHIVES for family in archive.families))


def select_archives(names: Iterable[str]) -> list[Archive]:
    """The archives of some datasets, in the order of the table.

    Args:
        names: datasets, keys of single archives, or "all".

    Raises:
        ValueError: a name is neither.
    """
    names = list(names)
    known = {ALL_FAMILIES, *families(), *(archive.key for archive in ARCHIVES)}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"Unknown dataset {unknown[0]!r}; there are {', '.join(families())} and "
            f"{ALL_FAMILIES!r}, and the single archives that --list shows."
        )
    wanted = set(names)
    return [
        archive
        for archive in ARCHIVES
        if ALL_FAMILIES in wanted or archive.key in wanted or wanted & set(archive.families)
    ]
