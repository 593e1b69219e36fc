"""Writes annotations of any origin as a COCO panoptic dataset: one PNG per image and one JSON."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects

from rose_d2.data.preparation import dump_json, partial_folder, run_parallel, write_atomically

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


@dataclass(frozen=True)
class PanopticImage:
    """The segments of one image.

    Attributes:
        image: `id`, `file_name`, `height`, `width`, as in COCO's `images`.
        segment_ids: int (H, W), the segment of each pixel; 0 is void.
        segments: `id` (1 to 2^24 - 1), `category_id` and `iscrowd` of each segment; one that no
            pixel has any more is dropped.
    """

    image: dict[str, Any]
    segment_ids: np.ndarray
    segments: list[dict[str, Any]]


def write_coco_panoptic(
    items: Sequence[Item],
    convert: Callable[[Item], PanopticImage],
    stem: Callable[[Item], str],
    *,
    json_file: Path,
    panoptic_root: Path,
    categories: list[dict[str, Any]],
    num_workers: int,
    description: str,
    overwrite: bool = False,
) -> bool:
    """Convert every image and write the dataset, in parallel and resumably.

    Finished images wait in a hidden folder beside `panoptic_root`; when all are done it becomes
    `panoptic_root`, and `json_file` is written last. After an interruption or an error neither
    exists, and the next call goes on where this one stopped.

    Args:
        items: one per image.
        convert: makes the segments of an item; can be pickled.
        stem: name of an item's PNG without suffix; can be pickled.
        json_file: COCO panoptic JSON to write.
        panoptic_root: folder for the PNGs.
        categories: `categories` of the JSON.
        num_workers: processes.
        description: left of the progress bar.
        overwrite: make it again although it is complete.

    Returns:
        False if it was complete already.

    Raises:
        ValueError: there is no image, or two have one name.
    """
    if json_file.exists() and panoptic_root.is_dir() and not overwrite:
        logger.info("%s is complete; nothing to do.", json_file)
        return False
    if not items:
        raise ValueError(f"No image to make {json_file} from; check that the sources are there.")
    if len({stem(item) for item in items}) != len(items):
        raise ValueError(f"Two images of {json_file} have the same name; rename one of them.")
    partial = partial_folder(panoptic_root, overwrite=overwrite)
    convert_one = functools.partial(_convert_one, convert=convert, stem=stem, folder=partial)
    written = run_parallel(convert_one, items, num_workers=num_workers, description=description)
    images, annotations = [], []
    for image, annotation in written:
        images.append(image)
        annotations.append(annotation)
    json_file.parent.mkdir(parents=True, exist_ok=True)
    json_file.unlink(missing_ok=True)
    _publish(partial, panoptic_root)
    dump_json({"images": images, "annotations": annotations, "categories": categories}, json_file)
    logger.info("Wrote %s: %d images.", json_file, len(images))
    return True


def _convert_one(
    item: Item, convert: Callable[[Item], PanopticImage], stem: Callable[[Item], str], folder: Path
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The image and annotation records of an item; its PNG is written unless it is there."""
    name = stem(item)
    record_file = folder / f"{name}.json"
    if record_file.exists():
        record = json.loads(record_file.read_text(encoding="utf-8"))
        return record["image"], record["annotation"]
    converted = convert(item)
    png_file = folder / f"{name}.png"
    colours = id_to_rgb(converted.segment_ids)
    write_atomically(png_file, Image.fromarray(colours).save)
    annotation = {
        "image_id": converted.image["id"],
        "file_name": png_file.name,
        "segments_info": _measured(converted),
    }
    dump_json({"image": converted.image, "annotation": annotation}, record_file)
    return converted.image, annotation


def id_to_rgb(segment_ids: np.ndarray) -> np.ndarray:
    """Spell segment ids as colours, R + 256 G + 65536 B.

    Args:
        segment_ids: int (H, W).

    Returns:
        uint8 (H, W, 3).
    """
    ids = segment_ids.astype(np.int64)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def _measured(converted: PanopticImage) -> list[dict[str, Any]]:
    """The segments that still have pixels, with their area and bounding box (x, y, w, h)."""
    segments = converted.segments
    # One pass over the pixels, whatever the number of segments: large images have hundreds.
    largest = max(int(converted.segment_ids.max()), *(s["id"] for s in segments), 0)
    numbers = np.zeros(largest + 1, dtype=np.int32)
    numbers[[s["id"] for s in segments]] = np.arange(1, len(segments) + 1)
    numbered = numbers[converted.segment_ids]  # (H, W), 0 for void
    areas = np.bincount(numbered.ravel(), minlength=len(segments) + 1)[1:]
    measured = []
    boxes = find_objects(numbered, max_label=len(segments))
    for segment, area, box in zip(segments, areas.tolist(), boxes, strict=True):
        if box is not None:
            rows, columns = box
            x, y = columns.start, rows.start
            xywh = [x, y, columns.stop - x, rows.stop - y]
            measured.append(segment | {"area": area, "bbox": xywh})
    return measured


def _publish(partial: Path, panoptic_root: Path) -> None:
    """Turn the finished partial folder into the final one, without the records."""
    for record_file in partial.glob("*.json"):
        record_file.unlink()
    shutil.rmtree(panoptic_root, ignore_errors=True)
    partial.rename(panoptic_root)
