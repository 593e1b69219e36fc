"""Which files the demo segments, what it calls them, and the pictures it writes."""

from __future__ import annotations

import glob
import mimetypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:  # slow to import, and mistakes in the command are answered before
    from rose_d2.structures.segments import Segment

_IGNORED_FILES = ("thumbs.db", "desktop.ini")
# Names have at most 255 bytes; a number and a suffix come behind.
_STEM_BYTES = 200
_RESULTS = (
    *("overlays", "panoptic", "panoptic_coloured", "before_after"),
    *("contact_sheet.jpg", "gallery.html"),
)


def find_images(inputs: Sequence[str], output: Path) -> list[Path]:
    """List the files that the user's paths, folders and globs stand for, each once.

    Raises:
        ValueError: an input does not exist or holds no image.
    """
    found: dict[str, Path] = {}
    for entry in inputs:
        path = Path(os.path.expanduser(entry))  # leaves an unknown ~user as it is
        if entry.lower().startswith(("http://", "https://")):
            from rose_d2.predictor.sources import fetch_image

            files = [fetch_image(entry, output / "downloads")]
        elif path.is_dir():
            files = _images_of_folder(path, output)
        elif path.exists():
            files = [path]
        elif glob.has_magic(entry):
            matches = map(Path, sorted(glob.glob(str(path), recursive=True)))
            files = [file for file in matches if _is_wanted(file, output)]
        else:
            raise ValueError(f"--input {entry!r} does not exist.")
        if not files:
            raise ValueError(f"--input {entry!r} matches no file.")
        for file in files:
            found.setdefault(os.path.realpath(file), file)
    return list(found.values())


def _images_of_folder(folder: Path, output: Path) -> list[Path]:
    """All files of a folder but those of another kind, if any looks like an image.

    A file without a telling suffix counts, so that a damaged picture is noticed.
    """
    files = [file for file in sorted(folder.iterdir()) if _is_wanted(file, output)]
    known = Image.registered_extensions()
    if any(file.suffix.lower() in known for file in files):
        return [file for file in files if not _is_of_another_kind(file)]
    hint = f" To try every file in it and below: --input '{folder}/**/*'"
    raise ValueError(f"there are no images in the folder {str(folder)!r}.{hint}")


def _is_of_another_kind(file: Path) -> bool:
    """Whether the suffix says that a file is text, sound, video or the like."""
    if file.suffix.lower() in Image.registered_extensions():
        return False
    kind, _ = mimetypes.guess_type(file.name)
    return kind is not None and not kind.startswith("image/")


def _is_wanted(file: Path, output: Path) -> bool:
    """Leave out folders, system files and pictures that an earlier run of this demo drew.

    What is no file, such as a pipe or a link that leads nowhere, stays: it is told as a failure.
    """
    hidden = file.name.startswith(".") or file.name.casefold() in _IGNORED_FILES
    results = [Path(os.path.realpath(output / name)) for name in _RESULTS]
    # realpath, since resolve does not take links in a circle.
    place = Path(os.path.realpath(file))
    drawn = any(path in results for path in (place, *place.parents))
    return not file.is_dir() and not hidden and not drawn


def image_folder(inputs: Sequence[str], output: Path) -> Path:
    """The deepest folder that holds all inputs; predictions name images relative to it."""
    folders = [os.path.realpath(_folder_of(entry, output)) for entry in inputs]
    try:
        return Path(os.path.commonpath(folders))
    except ValueError:  # drives of Windows
        return Path.cwd()


def _folder_of(entry: str, output: Path) -> Path:
    if entry.lower().startswith(("http://", "https://")):
        return output / "downloads"
    path = Path(os.path.expanduser(entry))
    if path.is_dir():
        return path
    while glob.has_magic(str(path)) and not path.exists():
        path = path.parent
    return path if path.is_dir() else path.parent


def file_name_of(path: Path, folder: Path | None = None) -> str:
    """How predictions.json calls an image.

    Args:
        path: the image.
        folder: the name is relative to it; None: to the working directory if the image is in it,
            else absolute.
    """
    if folder is None:
        absolute, here = Path(os.path.realpath(path)), Path.cwd()
        name = absolute.relative_to(here) if here in absolute.parents else absolute
        return readable(name.as_posix())
    # First as it stands: an image may be a link to elsewhere, and still is one of this folder.
    for place_of in (os.path.abspath, os.path.realpath):
        place, root = Path(place_of(path)), Path(place_of(folder))
        if root in place.parents:
            return readable(place.relative_to(root).as_posix())
    try:
        return readable(Path(os.path.relpath(place, root)).as_posix())
    except ValueError:  # another drive of Windows
        return readable(place.as_posix())


def readable(name: str) -> str:
    """A file name in UTF-8; bytes of another encoding are spelled out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def result_stem(name: str) -> str:
    """A file's name without suffix, fit for results on any file system: short and in UTF-8."""
    stem = readable(name).replace("\\", "_")
    return stem.encode()[:_STEM_BYTES].decode("utf-8", "ignore")


def segment_map(segments: Sequence[Segment], size: tuple[int, int]) -> np.ndarray:
    """Which segment each pixel belongs to, int32 (H, W), from 1 on; 0 where there is none."""
    ids = np.zeros(size, dtype=np.int32)
    for number, segment in enumerate(segments, start=1):
        np.copyto(ids, number, where=segment.mask)
    return ids


def coloured(segments: Sequence[Segment], ids: np.ndarray) -> np.ndarray:
    """A picture (H, W, 3) to look at: every name in its colour, outlines and the rest black.

    Args:
        segments: of an image.
        ids: their `segment_map`.
    """
    import cv2

    from rose_d2.visualization.visualizer import colour_of

    colours = [(0.0, 0.0, 0.0), *(colour_of(segment.category_name) for segment in segments)]
    picture = np.rint(255 * np.array(colours)).astype(np.uint8)[ids]
    for segment in segments:
        outline, _ = cv2.findContours(
            segment.mask.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(picture, outline, -1, (0, 0, 0), 1)
    return picture


def save_image(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) whole or not at all; the suffix chooses the format."""
    from rose_d2.files import whole_file

    with whole_file(path) as partial:
        Image.fromarray(picture).save(partial, quality=92)
