"""One archive to download: what it is, where it comes from, and what it makes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rose_d2.data.remote_file import RemoteFile

_COCO_LICENCE = "Annotations CC BY 4.0; the images belong to their Flickr owners."
_REFER_LICENCE = "The archive states none (the REFER toolkit is Apache-2.0)."


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
        inner: archives within it, see `rose_d2.data.unpacking.unpack`.
        substitutes: folders under the root of which one makes this archive unnecessary.
        about: size in bytes, where only a rounded one is known.
        by_hand: what to do when no mirror delivers; may name {root} and {downloads}.
    """

    key: str
    families: tuple[str, ...]
    file_name: str
    remote: RemoteFile
    provides: tuple[str, ...]
    licence: str
    folder: str = "."
    inner: Mapping[str, str] = field(default_factory=dict)
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


def coco_archive(
    key: str,
    path: str,
    size: int,
    sha256: str,
    provides: tuple[str, ...],
    *,
    families: tuple[str, ...] = ("coco",),
    has_copy: bool = True,
    inner: Mapping[str, str] | None = None,
    substitutes: tuple[str, ...] = (),
) -> Archive:
    """An archive of COCO's own host and its copies, unpacked under `coco`.

    Args:
        key: its name on the command line.
        path: on the host.
        size: bytes.
        sha256: hexadecimal.
        provides: files and folders under `coco` that it makes.
        families: the datasets that need it.
        has_copy: whether fast.ai keeps one.
        inner: archives within it, see `rose_d2.data.unpacking.unpack`.
        substitutes: folders under the root of which one makes this archive unnecessary.
    """
    name = path.rpartition("/")[2]
    urls = [
        f"http://images.cocodataset.org/{path}",
        f"https://s3.amazonaws.com/images.cocodataset.org/{path}",  # the same store, over TLS
    ]
    if has_copy:
        urls.append(f"https://s3.amazonaws.com/fast-ai-coco/{name}")
    return Archive(
        key=key,
        families=families,
        file_name=name,
        remote=RemoteFile(tuple(urls), size, f"sha256:{sha256}"),
        provides=tuple(f"coco/{entry}" for entry in provides),
        licence=_COCO_LICENCE,
        folder="coco",
        inner=inner or {},
        substitutes=substitutes,
    )


def refer_archive(name: str, split_by: str, capture: str, remote: tuple) -> Archive:
    """An archive of REFER annotations, whose own host is gone: the Internet Archive has captures.

    Args:
        name: of the dataset.
        split_by: who made its splits.
        capture: time stamp of the capture.
        remote: size in bytes and checksum of the file, as far as they are known.
    """
    host = "https://bvisionweb1.cs.unc.edu/licheng/referit/data"
    urls = tuple(
        f"https://web.archive.org/web/{capture}{form}/{host}/{name}.zip" for form in ("id_", "")
    )
    return Archive(
        key=f"{name}_annotations",
        families=(name,),
        file_name=f"{name}.zip",
        remote=RemoteFile(urls, *remote),
        provides=(f"{name}/instances.json", f"{name}/refs({split_by}).p"),
        licence=_REFER_LICENCE,
        by_hand=(
            f"The original host of {name}.zip is gone and the Internet Archive is slow at times: "
            "try again later, or ask a colleague for a copy (see "
            f"github.com/lichengunc/refer/issues/14) and put it at {{downloads}}/{name}.zip."
        ),
    )
