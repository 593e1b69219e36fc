"""ReasonSeg as detectron2 datasets: questions whose answer is one region of the image.

One JSON file per image, in LabelMe's style, as LISA reads it (dvlab-research/LISA:
utils/data_processing.py, utils/dataset.py, utils/reason_seg_dataset.py).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.structures import BoxMode
from PIL import Image
from pycocotools import mask as mask_util

from rose_d2.data.datasets.registration import BrokenAnnotations, DatasetEntry, register
from rose_d2.prompts.tasks import TASKS
from rose_d2.structures.mask_codec import encode_mask

FOLDER = "ReasonSeg"
NUM_IMAGES = {"train": 239, "val": 200, "test": 779}
HOW_TO_GET = (
    "Get train.zip, val.zip and test.zip of ReasonSeg by the link in the README of "
    "https://github.com/dvlab-research/LISA and unpack them into {folder}."
)
_EXIF_ORIENTATION = 0x0112
_TURNED_BY_90_DEGREES = (5, 6, 7, 8)
# What LISA still skips: whole images that were once marked as doubtful.
_OBSOLETE_LABEL = "flag"
_IGNORE_LABEL = "ignore"


def load_reasonseg(folder: str | Path, *, all_texts: bool) -> list[dict[str, Any]]:
    """Reads one split; of the images only the headers are opened.

    Broken annotations are left out and reported; within `strict_annotations` the first one is
    an error.

    Args:
        folder: of the split, with <name>.jpg and <name>.json.
        all_texts: one dict per question of an image, as in LISA's training; otherwise only its
            first question counts, as in LISA's evaluation.

    Returns:
        Referring dicts ordered by file name, see `load_refer`; `image_id` and `ref_id` count the
        images, the target has class -1. Pixels labelled "ignore" are a crowd in `annotations`,
        which training leaves alone, and `ignore_annotations`, which evaluation leaves out. An
        image without target pixels has no `target_indices`: right is what answers nothing there.

    Raises:
        ValueError: if a file is damaged, or none can be used.
    """
    folder = Path(folder)
    broken = BrokenAnnotations(folder)
    records = []
    for image_id, path in enumerate(sorted(folder.glob("*.json"))):
        annotation = _read_annotation(path)
        shared = _describe_image(path, annotation, broken)
        if shared is None:
            continue
        texts = [str(text).strip() for text in annotation["text"]]
        usable = [(number, text) for number, text in enumerate(texts) if text]
        if not usable:
            broken.add("images without a question", path.name)
        for number, text in usable if all_texts else usable[:1]:
            ids = {"image_id": image_id, "ref_id": image_id, "sent_id": number}
            records.append(shared | ids | {"sentence": text})
    broken.report()
    if not records:
        raise ValueError(f"{folder} holds no question that can be used; get the folder again.")
    return records


def paint_shapes(
    shapes: list[dict[str, Any]], height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Target and ignored pixels; polygons are painted from the largest to the smallest.

    Of equal ones the last is painted first, as LISA's reversed sort has it.

    Args:
        shapes: with `label` (with "ignore" in it, else the target, however it is spelled) and
            `points` [[x, y], ...], at least one: one is a pixel, two are a line.
        height: of the image in pixels.
        width: of the image in pixels.

    Returns:
        Two bool arrays (H, W): the target, and what counts neither way.
    """
    painted = []
    for shape in shapes:
        pixels = np.zeros((height, width), dtype=np.uint8)
        outline = np.asarray([shape["points"]], dtype=np.int32)
        cv2.polylines(pixels, outline, True, 1, 1)
        cv2.fillPoly(pixels, outline, 1)
        painted.append((pixels.astype(bool), _IGNORE_LABEL in shape["label"].lower()))
    target, ignore = np.zeros((2, height, width), dtype=bool)
    for pixels, is_ignored in sorted(painted, key=lambda part: part[0].sum())[::-1]:
        target[pixels], ignore[pixels] = not is_ignored, is_ignored
    return target, ignore


def register_reasonseg(root: str | Path) -> None:
    """Registers reasonseg_{train,val,test}; nothing is read.

    Args:
        root: the datasets folder, the parent of `ReasonSeg`; `~` is expanded.
    """
    parent = Path(root).expanduser() / FOLDER
    for split, num_images in NUM_IMAGES.items():
        register(_entry(parent, split, num_images))


def _entry(parent: Path, split: str, num_images: int) -> DatasetEntry:
    folder = parent / split
    return DatasetEntry(
        name=f"reasonseg_{split}",
        load=lambda: load_reasonseg(folder, all_texts=split == "train"),
        metadata={
            **TASKS["referring"].metadata,
            "image_source": "reasonseg",
            "split": split,
        },
        files=(folder,),
        how_to_get=HOW_TO_GET.format(folder=parent),
        num_images=num_images,
    )


def _read_annotation(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    try:
        try:
            annotation = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError:
            annotation = json.loads(content.decode("cp1252"))
        if not isinstance(annotation["text"], list):
            raise TypeError("text is no list")
        _ = [(shape["label"], shape["points"]) for shape in annotation["shapes"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an annotation of ReasonSeg with text and shapes ({error!r}); get the "
            "file again."
        ) from error
    return annotation


def _describe_image(
    path: Path, annotation: dict[str, Any], broken: BrokenAnnotations
) -> dict[str, Any] | None:
    """What all questions of an image share, or None where it cannot be used."""
    image_path = path.with_suffix(".jpg")
    if not image_path.is_file():
        broken.add("annotations without their image", path.name)
        return None
    height, width = _image_size(image_path)
    target, ignore = paint_shapes(_usable_shapes(path, annotation, broken), height, width)
    asked = [_to_annotation(target, is_crowd=False)] if target.any() else []
    ignored = [_to_annotation(ignore, is_crowd=True)] if ignore.any() else []
    return {
        "file_name": str(image_path),
        "height": height,
        "width": width,
        "annotations": [*asked, *ignored],
        "target_indices": list(range(len(asked))),
        "ignore_annotations": ignored,
    }


def _usable_shapes(
    path: Path, annotation: dict[str, Any], broken: BrokenAnnotations
) -> list[dict[str, Any]]:
    usable = []
    for shape in annotation["shapes"]:
        if str(shape["label"]).lower() == _OBSOLETE_LABEL:
            continue
        if len(shape["points"]):
            usable.append(shape)
        else:
            broken.add("shapes without a point", path.name)
    return usable


def _image_size(path: Path) -> tuple[int, int]:
    """Height and width as the image is shown, that is after its EXIF rotation."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            is_turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED_BY_90_DEGREES
    except OSError as error:
        raise ValueError(f"{path} is not a readable image ({error}); get it again.") from error
    return (width, height) if is_turned else (height, width)


def _to_annotation(mask: np.ndarray, *, is_crowd: bool) -> dict[str, Any]:
    code = encode_mask(mask)
    return {
        "bbox": mask_util.toBbox(code).tolist(),
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": -1,
        "segmentation": code,
        "iscrowd": int(is_crowd),
    }
