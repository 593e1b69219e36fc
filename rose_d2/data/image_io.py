"""Reading image files of any kind, and resizing them for the two views of the model."""

import contextlib
import io
import logging
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

logger = logging.getLogger(__name__)

MAX_PIXELS = 100_000_000
"""INPUT.MAX_PIXELS by default: a file of a few kB can claim any size."""
_SIXTEEN_BIT_MODES = ("I;16", "I;16B", "I;16L", "I;16N")
# Fractions up to here are shares with some glare above 1 rather than dark bytes.
_FAR_FROM_SHARES = 16
_QUARTER_TURNS = (5, 6, 7, 8)
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
# Pillow reports broken files with all of these, depending on the format.
_DECODING_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    RuntimeError,
    struct.error,
    zlib.error,
)


class ImageReadError(ValueError):
    """A file that is not a readable image; the message names the file and the reason."""


def read_image(
    path: str,
    *,
    annotated_size: tuple[int, int] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Read an image file as 8-bit RGB, whatever its mode.

    EXIF rotation is applied, 16-bit values are scaled to 8 bits, transparency is laid over white
    and of several frames the first is taken.

    Args:
        path: a file in any format Pillow reads.
        annotated_size: (height, width) of its annotations; where only the stored pixels have it,
            the annotator's tool did not know of EXIF rotation, and none is applied.
        max_pixels: INPUT.MAX_PIXELS.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is empty, truncated, too large or not an image.
    """
    with opened_image(path, max_pixels=max_pixels) as image:
        image.load()
        if not _is_annotated_as_stored(image, annotated_size):
            # In place, since a copy of a large photograph costs as much as decoding it.
            ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image, path)


@contextlib.contextmanager
def opened_image(path: str, *, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file; what Pillow raises, also in the block, names the file and the reason.

    Args:
        path: a file in any format Pillow reads.
        max_pixels: more are not decoded.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is empty, truncated, too large or not an image.
    """
    path = str(path)
    if not PathManager.exists(path):
        raise FileNotFoundError(f"There is no image file {path!r}; check the path.")
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would wait for ever
        raise ImageReadError(f"{path!r} is not a regular file but a folder, a pipe or a device.")
    try:
        with PathManager.open(path, "rb") as file, _opened(file) as image:
            if image.width * image.height > max_pixels:
                raise ImageReadError(
                    f"{path!r} has {image.width} x {image.height} pixels, more than the "
                    f"{max_pixels} of INPUT.MAX_PIXELS; shrink the image, or raise the limit if "
                    "the memory allows."
                )
            yield image
    except ImageReadError:
        raise
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{path!r} {_why_unidentified(path)}") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(
            f"{path!r} is larger than Pillow accepts ({error}); shrink the image first."
        ) from error
    except _DECODING_ERRORS as error:
        raise ImageReadError(
            f"{path!r} cannot be decoded, it is probably truncated or damaged ({error}); "
            "replace the file."
        ) from error


def picture_array(picture: Image.Image) -> np.ndarray:
    """Bring a picture in memory to 8-bit RGB, as `read_image` does with a file.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    return _to_rgb(ImageOps.exif_transpose(picture), "the picture")


def _opened(file: io.IOBase) -> Image.Image:
    """Open an image; the text of a PNG, of which Pillow takes only so much, is passed over."""
    try:
        return Image.open(file)
    except ValueError:
        file.seek(0)
        content = file.read()
        if not content.startswith(_PNG_START):
            raise
        return Image.open(io.BytesIO(_without_text(content)))


def _without_text(png: bytes) -> bytes:
    """A PNG without its chunks of text."""
    kept, place = [_PNG_START], len(_PNG_START)
    while place + 8 <= len(png):
        length, kind = struct.unpack_from(">I4s", png, place)
        end = place + 12 + length  # with the checksum
        if kind not in _PNG_TEXTS:
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def _is_annotated_as_stored(image: Image.Image, annotated_size: tuple[int, int] | None) -> bool:
    if annotated_size is None or image.width == image.height:
        return False
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) in _QUARTER_TURNS
    return is_turned and image.size[::-1] == tuple(annotated_size)


def _to_rgb(image: Image.Image, path: str) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES or (image.mode == "I" and image.format == "PNG"):
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return _grey_to_rgb((values + 128) // 257)
    if image.mode in ("I", "F"):
        return _grey_to_rgb(_scaled_to_bytes(np.asarray(image, dtype=np.float64), path))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _scaled_to_bytes(values: np.ndarray, path: str) -> np.ndarray:
    """Numbers of unknown range as 0 to 255: nothing in such a file says what is white.

    Values up to 1, 255 or 65535 are taken for shares, bytes or 16 bits; others are stretched from
    the lowest to the highest, with a warning.
    """
    known = values[np.isfinite(values)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    is_whole = bool((known == np.floor(known)).all())
    if low >= 0 and high <= 1:
        return np.round(values * 255)
    if low >= 0 and high <= 255 and (is_whole or high > _FAR_FROM_SHARES):
        return np.round(values)
    if low >= 0 and 255 < high <= 65535:
        return (values + 128) // 257
    logger.warning("%s has values from %g to %g, which are stretched to 0..255.", path, low, high)
    return np.round((values - low) * (255 / max(high - low, np.finfo(np.float64).tiny)))


def _grey_to_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _why_unidentified(path: str) -> str:
    with PathManager.open(path, "rb") as file:
        if not file.read(1):
            return "is an empty file; replace it."
    return "is not an image that Pillow can read; convert it to JPEG or PNG, or remove it."
