"""Unpacking zip and tar archives from the web: nothing leaves the folder, nothing stays half-done.

Neither `zipfile` nor tarfile's "data" filter refuses all that is refused here (they correct names
silently and make links), so every member is checked before they write it.
"""

from __future__ import annotations

import gzip
import lzma
import posixpath
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from rose_d2.prepare.download import format_size, require_free_space

_DAMAGE = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    lzma.LZMAError,
    zlib.error,
    EOFError,
    IndexError,
    NotImplementedError,
)
_BLOCK = 1 << 20


class UnpackError(ValueError):
    """An archive is damaged, hostile, or not the one expected; the message says which."""


def unpack(
    archive: Path,
    folder: Path,
    *,
    inner: Mapping[str, str] | None = None,
    expected: Sequence[str] = (),
    max_growth: int = 20,
) -> None:
    """Unpack an archive into a folder that may hold other things.

    Everything is unpacked into a hidden folder first and moved when it is complete. A link becomes
    a copy of the file it names. Litter of macOS is left out.

    Args:
        archive: a zip or tar file.
        folder: made if missing; files of the same names in it are replaced.
        inner: archives within the archive and the folders, inside `folder`, for their content.
        expected: paths, inside `folder`, that the archive must contain.
        max_growth: all that is written may be so many times the archive's size.

    Raises:
        UnpackError: the archive is damaged, wants to write outside or too much, or lacks something
            expected.
        DownloadError: the disk is too small.
    """
    partial = folder / f".{archive.name}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    extraction = _Extraction(max_growth * archive.stat().st_size)
    try:
        extraction.extract(archive, partial)
        for path, place in (inner or {}).items():
            _require(partial, [path], archive.name)
            extraction.extract(partial / path, partial / place)
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


class _Extraction:
    """Writes the files of an archive, and of those within it, up to a number of bytes.

    Args:
        max_bytes: of all files together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0

    def extract(self, archive: Path, folder: Path) -> None:
        """Write the files of an archive into a folder."""
        folder.mkdir(exist_ok=True)
        try:
            if zipfile.is_zipfile(archive):
                links = self._extract_zip(archive, folder)
            elif tarfile.is_tarfile(archive):
                links = self._extract_tar(archive, folder)
            else:
                raise UnpackError(
                    f"{archive} is neither zip nor tar; delete it and fetch it again."
                )
        except _DAMAGE as error:
            raise UnpackError(
                f"{archive} is damaged ({error}); delete it and fetch it again."
            ) from error
        # No link is ever made: one could be followed out of the folder by a later member.
        for name, link in links.items():
            source, target = folder / link, folder / name
            if not source.is_file():
                raise UnpackError(
                    f"{archive.name} has a link {target.name!r} to {source.name!r}, which is no "
                    "file of it; unpack it by hand if you trust it."
                )
            self._count(source.stat().st_size, archive.name)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def _extract_zip(self, archive: Path, folder: Path) -> dict[str, PurePosixPath]:
        links = {}
        with zipfile.ZipFile(archive) as file:
            infos = [info for info in file.infolist() if not info.is_dir()]
            require_free_space(folder, sum(info.file_size for info in infos), archive.name)
            for info in _progress(infos, archive):
                name = info.filename
                if info.flag_bits & 1:
                    raise UnpackError(f"{archive} needs a password for {name!r}.")
                if _is_litter(_inside(name, archive.name)):
                    continue
                # zipfile writes no more of a member than its header says.
                self._count(info.file_size, archive.name)
                if stat.S_ISLNK(info.external_attr >> 16):
                    with file.open(info) as content:
                        link = content.read(4096).decode("utf-8", "replace")
                    links[name] = _inside(_relative_to_member(name, link), archive.name)
                else:
                    file.extract(info, folder)
        return links

    def _extract_tar(self, archive: Path, folder: Path) -> dict[str, PurePosixPath]:
        if not hasattr(tarfile, "data_filter"):
            raise UnpackError(
                f"{archive} is a tar file: unpacking it needs Python 3.10.12 or newer."
            )
        links = {}

        def check(info: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
            if info.isdir() or _is_litter(_inside(info.name, archive.name)):
                return None
            self._count(info.size, archive.name)
            if info.issym() or info.islnk():
                link = info.linkname
                link = _relative_to_member(info.name, link) if info.issym() else link
                links[info.name] = _inside(link, archive.name)
                return None
            if not info.isreg():
                raise UnpackError(f"{archive} has {info.name!r}, which is neither file nor folder.")
            return tarfile.data_filter(info, path)

        with tarfile.open(archive) as file:
            require_free_space(folder, archive.stat().st_size, archive.name)
            file.extractall(folder, _progress(file, archive), filter=check)
            # A checksum stands behind the end of the archive, where tarfile does not look.
            while file.fileobj is not None and file.fileobj.read(_BLOCK):
                pass
        return links

    def _count(self, size: int, name: str) -> None:
        """Stop before more is written than allowed."""
        self.num_bytes += size
        if self.num_bytes > self.max_bytes:
            raise UnpackError(
                f"{name} unpacks to more than {format_size(self.max_bytes)}, which is too much for "
                "this dataset; nothing of it was unpacked. Do not use this file."
            )


def _progress(members: Iterable, archive: Path) -> tqdm:
    return tqdm(members, desc=f"unpack {archive.name}", unit="file", leave=False)


def _is_litter(path: PurePosixPath) -> bool:
    return path.parts[0] == "__MACOSX" or path.name == ".DS_Store" or path.name.startswith("._")


def _relative_to_member(name: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), link))


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
