"""What a user may point at: files, folders, addresses and pictures in memory."""

from __future__ import annotations

import hashlib
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image

from rose_d2.data.image_io import picture_array, read_image
from rose_d2.files import whole_file

# Larger downloads are refused: no photograph is.
_MAX_BYTES = 200 * 1024**2
_TIMEOUT_S = 30
_BLOCK = 1 << 16

_Item = TypeVar("_Item")


def is_url(source: object) -> bool:
    """Whether a source is an http or https address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def read_source(source: Any) -> np.ndarray:
    """Bring one image to what the model takes.

    Args:
        source: a path, an http(s) address, a PIL image, or a uint8 array (H, W, 3), RGB, or
            (H, W), grey.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or none of these.
    """
    if is_url(source):
        with tempfile.TemporaryDirectory() as folder:
            return read_image(str(fetch_image(source, Path(folder))))
    if isinstance(source, str | Path):
        return read_image(str(Path(source).expanduser()))
    if isinstance(source, Image.Image):
        return picture_array(source)
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.ndim == 2:
        return np.repeat(source[:, :, None], 3, axis=2)
    if isinstance(source, np.ndarray):
        return source  # checked where it enters the model
    raise ValueError(
        f"Got {type(source).__name__} where an image is needed: give a path, an http(s) address, a "
        "PIL image, a uint8 array (height, width, 3), a list of these, or a folder."
    )


def fetch_image(url: str, folder: Path) -> Path:
    """Download an image; one that is there already is kept.

    Args:
        url: an http(s) address.
        folder: receives the file; its name ends as the address does.

    Raises:
        ValueError: the address does not answer with a file of at most 200 MB.
    """
    name = Path(urllib.parse.unquote(urllib.parse.urlsplit(url).path)).name or "image"
    path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}_{name[-80:]}"
    if path.exists():
        return path
    request = urllib.request.Request(url, headers={"User-Agent": "rose_d2"})
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer,
            whole_file(path) as partial,
            open(partial, "wb") as file,
        ):
            _copy(answer, file)
    except (urllib.error.URLError, OSError, ValueError) as error:
        raise ValueError(f"{url} could not be fetched ({error}); check the address.") from error
    return path


def _copy(answer: Any, file: Any) -> None:
    size = 0
    while block := answer.read(_BLOCK):
        size += len(block)
        if size > _MAX_BYTES:
            raise ValueError(f"it is larger than {_MAX_BYTES // 1024**2} MB")
        file.write(block)


def images_of_folder(folder: Path) -> list[Path]:
    """The image files of a folder, by name; other files and sub-folders are passed over.

    Raises:
        ValueError: there are none.
    """
    known = Image.registered_extensions()
    files = [file for file in sorted(folder.iterdir()) if file.suffix.lower() in known]
    files = [file for file in files if file.is_file() and not file.name.startswith(".")]
    if not files:
        raise ValueError(f"There are no images in the folder {str(folder)!r}.")
    return files


def describe_source(source: Any) -> str | None:
    """The name of a source: its path or address, None for a picture in memory."""
    if isinstance(source, str | Path):
        return str(source)
    return getattr(source, "filename", None) or None


def in_batches(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    """Group items; the last group may be smaller."""
    batch: list[Any] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def read_ahead(items: Iterator[_Item], count: int) -> Iterator[_Item]:
    """Make items in a thread of their own, while the caller works on those before.

    Args:
        items: made one after another; what they raise comes up here, in its place.
        count: items that are made before they are asked for, at most.
    """
    end = object()
    with ThreadPoolExecutor(1, "reading") as reader:
        waiting = deque(reader.submit(next, items, end) for _ in range(count))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(reader.submit(next, items, end))
                yield item  # type: ignore[misc]
        finally:
            for future in waiting:
                future.cancel()
