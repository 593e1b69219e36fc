"""Unpacking zip and tar archives from the web: nothing leaves the folder, nothing stays half-done.

Python's own safeguard for tar files (`filter=`) is missing in early releases of 3.10, and zip has
none against links, so every member is checked here.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from rose_d2.prepare.download import require_free_space

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)


class UnpackError(ValueError):
    """An archive is damaged, hostile, or not the one expected; the message says which."""


@dataclass(frozen=True)
class _Member:
    """A file of an archive; `link` names the member whose content it shares."""

    name: str
    open: Callable[[], IO[bytes] | None]
    link: str | None = None


def unpack(
    archive: Path,
    folder: Path,
    *,
    inner: Mapping[str, str] | None = None,
    expected: Sequence[str] = (),
) -> None:
    """Unpack an archive into a folder that may hold other things.

    Everything is unpacked into a hidden folder first and moved when it is complete. A link becomes
    a copy of the file it names. Litter of macOS is left out.

    Args:
        archive: a zip or tar file.
        folder: made if missing; files of the same names in it are replaced.
        inner: archives within the archive and the folders, inside `folder`, for their content.
        expected: paths, inside `folder`, that the archive must contain.

    Raises:
        UnpackError: the archive is damaged, wants to write outside, or lacks something expected.
        DownloadError: the disk is too small.
    """
    partial = folder / f".{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _extract(archive, partial)
        for path, place in (inner or {}).items():
            _require(partial, [path], archive.name)
            _extract(partial / path, partial / place)
            (partial / path).unlink()
        _require(partial, expected, archive.name)
        _move_content(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _require(partial: Path, paths: Sequence[str], name: str) -> None:
    for path in paths:
        if not (partial / path).exists():
            found = ", ".join(sorted(entry.name for entry in partial.iterdir())[:5]) or "nothing"
            raise UnpackError(f"{name} has no {path}, only {found}; it is not the file expected.")


def _extract(archive: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                infos = file.infolist()
                require_free_space(folder, sum(info.file_size for info in infos), archive.name)
                _write_members(_zip_members(file), folder, archive.name, len(infos))
        elif tarfile.is_tarfile(archive):
            with tarfile.open(archive) as file:
                require_free_space(folder, archive.stat().st_size, archive.name)
                _write_members(_tar_members(file), folder, archive.name)
        else:
            raise UnpackError(f"{archive} is neither zip nor tar; delete it and fetch it again.")
    except _DAMAGE as error:
        raise UnpackError(
            f"{archive} is damaged ({error}); delete it and fetch it again."
        ) from error


def _zip_members(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        if info.flag_bits & 1:
            raise UnpackError(f"{file.filename} needs a password for {info.filename!r}.")
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        link = None
        if is_link:
            with file.open(info) as content:
                link = content.read(4096).decode("utf-8", "replace")
            link = _relative_to_member(info.filename, link)
        if not info.is_dir():
            yield _Member(info.filename, lambda info=info: file.open(info), link)


def _tar_members(file: tarfile.TarFile) -> Iterator[_Member]:
    for info in file:
        link = None
        if info.issym():
            link = _relative_to_member(info.name, info.linkname)
        elif info.islnk():
            link = info.linkname
        elif not (info.isreg() or info.isdir()):
            raise UnpackError(f"{file.name} has {info.name!r}, which is neither file nor folder.")
        if not info.isdir():
            yield _Member(info.name, lambda info=info: file.extractfile(info), link)


def _relative_to_member(name: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


def _write_members(
    members: Iterator[_Member], folder: Path, archive_name: str, total: int | None = None
) -> None:
    links = []
    description = f"unpack {archive_name}"
    for member in tqdm(members, desc=description, total=total, unit="file", leave=False):
        path = _inside(member.name, archive_name)
        if path.parts[0] == "__MACOSX" or path.name == ".DS_Store" or path.name.startswith("._"):
            continue
        if member.link is not None:
            links.append((folder / path, folder / _inside(member.link, archive_name)))
            continue
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 1 << 20)
    # No link is ever made: one could be followed out of the folder by a later member.
    for target, source in links:
        if not source.is_file():
            raise UnpackError(
                f"{archive_name} has a link {target.name!r} to {source.name!r}, which is no file "
                "of it; unpack it by hand if you trust it."
            )
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _inside(name: str, archive_name: str) -> PurePosixPath:
    """The member's path, if it stays inside."""
    path = PurePosixPath(name)
    is_foreign = "\\" in name or "\0" in name or re.match("[A-Za-z]:", name)
    if is_foreign or path.is_absolute() or ".." in path.parts or not path.parts:
        raise UnpackError(
            f"{archive_name} names {name!r}, which is outside of its folder; nothing of it was "
            "unpacked. Do not use this file."
        )
    return path


def _move_content(source: Path, target: Path) -> None:
    """Move the entries of a folder into another; a folder that is new there moves in one step."""
    for entry in sorted(source.iterdir()):
        place = target / entry.name
        if entry.is_dir() and place.is_dir():
            _move_content(entry, place)
        elif place.is_dir():
            raise UnpackError(
                f"{place} is a folder, but the archive has a file there; move it away."
            )
        else:
            shutil.move(entry, place)
