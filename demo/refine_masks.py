"""Masks of an earlier run or of another system, by image: COCO results or label PNGs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image, UnidentifiedImageError

from rose_d2.structures.segment import Segment

_VOID = 255


class CocoMasks:
    """The masks of a COCO file, found by the file name of their image.

    Taken are an object with "images" and "annotations", as `demo.py` and most tools write it, and
    a bare list of results whose entries have a "file_name", or an "image_id" that is the number in
    the image's file name (as in COCO: 139 for 000000000139.jpg).
    """

    def __init__(self, path: Path) -> None:
        """
        Args:
            path: the JSON file.

        Raises:
            ValueError: it is not such a file.
        """
        self.path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            entries = content if isinstance(content, list) else content["annotations"]
            images = [] if isinstance(content, list) else content["images"]
            categories = [] if isinstance(content, list) else content.get("categories", [])
            self._file_names = {image["id"]: image["file_name"] for image in images}
            self._names = {category["id"]: category["name"] for category in categories}
            self._entries: dict[str, list[dict[str, Any]]] = {
                name: [] for name in self._file_names.values()
            }
            for entry in entries:
                self._entries.setdefault(self._image_of(entry), []).append(entry)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"--refine {str(path)!r} is not a COCO file of masks ({error!r}): give an object "
                'with "images" (file_name) and "annotations", or a list of results with a '
                '"file_name" or "image_id" each.'
            ) from error

    def of(self, path: Path, file_name: str, size: tuple[int, int]) -> list[Segment]:
        """Return the masks of one image.

        Args:
            path: the image.
            file_name: its name as `demo.py` writes it.
            size: its (height, width).

        Raises:
            ValueError: the file does not know the image, or a mask does not fit it.
        """
        entries = self._entries[self._key_of(path, file_name)]
        return [segment for entry in entries if (segment := self._segment(entry, size)) is not None]

    def _image_of(self, entry: dict[str, Any]) -> str:
        if "file_name" in entry:
            return str(entry["file_name"])
        image_id = entry["image_id"]
        return str(self._file_names.get(image_id, image_id))

    def _key_of(self, path: Path, file_name: str) -> str:
        if file_name in self._entries:
            return file_name
        number = str(int(path.stem)) if path.stem.isdecimal() else path.stem
        for wanted in ({path.name}, {path.stem, number}):
            known = [key for key in self._entries if Path(key).name in wanted]
            if len(known) > 1:
                raise ValueError(f"{self.path} has several images called {path.name}.")
            if known:
                return known[0]
        raise ValueError(f"{self.path} has no image of this name.")

    def _segment(self, entry: dict[str, Any], size: tuple[int, int]) -> Segment | None:
        mask = _decoded(entry["segmentation"], size)
        name = entry.get("category_name", self._names.get(entry.get("category_id"), ""))
        name_score = entry.get("name_score")
        if not mask.any():
            return None
        score, is_thing = float(entry.get("score", 1.0)), bool(entry.get("isthing", 1))
        return Segment(mask, str(name), score, name_score, is_thing)


class LabelMasks:
    """A folder of label PNGs named like their images; every value in one is a nameless segment.

    Grey and palette PNGs: 0 is background and 255 void (unless the PNG holds only 0 and 255).
    Colour PNGs are read as COCO panoptic ones: id = R + 256 G + 65536 B, 0 is background.
    """

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: has a PNG `STEM.png` for the image `STEM.jpg`.

        Raises:
            ValueError: there is no PNG in it.
        """
        self.folder = folder
        self._files = {file.stem: file for file in sorted(folder.glob("*.png"))}
        if not self._files:
            raise ValueError(f"--refine {str(folder)!r} is a folder without label PNGs.")

    def of(self, path: Path, file_name: str, size: tuple[int, int]) -> list[Segment]:
        """Return the masks of one image; see `CocoMasks.of`."""
        if path.stem not in self._files:
            raise ValueError(f"{self.folder} has no {path.stem}.png.")
        file = self._files[path.stem]
        try:
            with Image.open(file) as png:
                labels = _labels(png)
        except (OSError, SyntaxError, UnidentifiedImageError) as error:
            raise ValueError(f"{file} cannot be read ({error}).") from error
        if labels.shape != size:
            raise ValueError(f"{file} is {labels.shape} (height, width), the image {size}.")
        return [Segment(labels == value, "", 1.0) for value in np.unique(labels[labels > 0])]


def read_masks(path: Path) -> CocoMasks | LabelMasks:
    """Open what `--refine` names.

    Raises:
        ValueError: it does not exist or is neither a COCO file nor a folder of PNGs.
    """
    if path.is_dir():
        return LabelMasks(path)
    if not path.is_file():
        raise ValueError(f"--refine {str(path)!r} does not exist.")
    return CocoMasks(path)


def _decoded(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the mask (H, W) of an RLE, compressed or not, or of polygons."""
    try:
        if isinstance(segmentation, dict):
            if tuple(segmentation["size"]) != size:
                raise ValueError(
                    f"a mask is {segmentation['size']} (height, width), the image {list(size)}"
                )
            rle = segmentation
            if isinstance(rle["counts"], list):
                rle = mask_util.frPyObjects(rle, *size)
        else:
            rle = mask_util.merge(mask_util.frPyObjects(segmentation, *size))
        return np.asarray(mask_util.decode(rle)).astype(bool)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"a mask to refine does not fit ({error}).") from error


def _labels(png: Image.Image) -> np.ndarray:
    """Return ids (H, W), 0 where nothing is."""
    values = np.asarray(png).astype(np.int64)
    if values.ndim == 3:
        return values[..., :3] @ np.array([1, 256, 65536])
    if png.mode in ("L", "P") and not set(np.unique(values).tolist()) <= {0, _VOID}:
        values[values == _VOID] = 0
    return values
