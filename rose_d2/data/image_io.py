"""Reading image files of any kind, and resizing them for the two views of the model."""

import cv2
import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

_SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")


class ImageReadError(ValueError):
    """A file that is not a readable image; the message names the file and the reason."""


def read_image(path: str) -> np.ndarray:
    """Read an image file as 8-bit RGB, whatever its mode.

    EXIF rotation is applied, 16-bit values are scaled to 8 bits, transparency is laid over white
    and of several frames the first is taken.

    Args:
        path: a file in any format Pillow reads.

    Returns:
        uint8 (H, W, 3), RGB.

    Raises:
        FileNotFoundError: there is no such file.
        ImageReadError: the file is empty, truncated, too large or not an image.
    """
    path = str(path)
    if not PathManager.exists(path):
        raise FileNotFoundError(f"There is no image file {path!r}; check the path.")
    try:
        with PathManager.open(path, "rb") as file, Image.open(file) as image:
            image.load()
            # In place, since a copy of a large photograph costs as much as decoding it.
            ImageOps.exif_transpose(image, in_place=True)
            return _to_rgb(image)
    except UnidentifiedImageError as error:
        raise ImageReadError(f"{path!r} {_why_unidentified(path)}") from error
    except Image.DecompressionBombError as error:
        raise ImageReadError(
            f"{path!r} is larger than Pillow accepts ({error}); shrink the image first."
        ) from error
    # Pillow reports broken files with all of these, depending on the format.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise ImageReadError(
            f"{path!r} cannot be decoded, it is probably truncated or damaged ({error}); "
            "replace the file."
        ) from error


def picture_array(picture: Image.Image) -> np.ndarray:
    """Bring a picture in memory to 8-bit RGB, as `read_image` does with a file.

    Returns:
        uint8 (H, W, 3), RGB.
    """
    return _to_rgb(ImageOps.exif_transpose(picture))


def model_views(image: np.ndarray, lmm_size: int, sam_size: int) -> tuple[Tensor, Tensor]:
    """The two inputs the model makes of one image.

    Args:
        image: uint8 (H, W, 3), RGB.
        lmm_size: MODEL.LMM.IMAGE_SIZE.
        sam_size: MODEL.MASK_HEAD.IMAGE_SIZE.

    Returns:
        `image` uint8 (3, lmm_size, lmm_size) and `sam_image` uint8 (3, h, w).
    """
    views = square_view(image, lmm_size), longest_side_view(image, sam_size)
    lmm_view, sam_view = (
        torch.from_numpy(np.ascontiguousarray(view.transpose(2, 0, 1))) for view in views
    )
    return lmm_view, sam_view


def square_view(image: np.ndarray, size: int) -> np.ndarray:
    """The language model's view: resized to a square, aspect ratio ignored.

    Args:
        image: uint8 (H, W, 3).
        size: side in pixels.

    Returns:
        uint8 (size, size, 3).
    """
    return _resize(image, size, size)


def longest_side_view(image: np.ndarray, size: int) -> np.ndarray:
    """SAM's view: the longest side resized to `size`, aspect ratio kept, no padding.

    Args:
        image: uint8 (H, W, 3).
        size: longest side in pixels.

    Returns:
        uint8 (h, w, 3) with max(h, w) == size.
    """
    height, width = image.shape[:2]
    scale = size / max(height, width)
    # Rounded half up, as segment-anything does.
    return _resize(image, max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    # Area averaging avoids aliasing when shrinking; it degrades to blocks when enlarging.
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return cv2.resize(image, (width, height), interpolation=interpolation)


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode in _SIXTEEN_BIT_MODES:
        values = np.clip(np.asarray(image, dtype=np.int64), 0, 65535)
        return _grey_to_rgb((values + 128) // 257)
    if image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        # Float images hold either 0..1 or 0..255; nothing in the file says which.
        return _grey_to_rgb(np.clip(values * 255 if values.max() <= 1 else values, 0, 255))
    if "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _grey_to_rgb(values: np.ndarray) -> np.ndarray:
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def _why_unidentified(path: str) -> str:
    with PathManager.open(path, "rb") as file:
        if not file.read(1):
            return "is an empty file; replace it."
    return "is not an image that Pillow can read; convert it to JPEG or PNG, or remove it."
