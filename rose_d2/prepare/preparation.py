"""What the preparation scripts share: options, workers, label maps, panoptic files."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects
from tqdm import tqdm

from rose_d2.command_line import make_parser, run_main
from rose_d2.data.datasets.registration import strict_annotations
from rose_d2.files import whole_file, write_text
from rose_d2.structures.mask_codec import ids_to_colours

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
_ITEMS_PER_CHUNK = 16


def preparation_parser(
    description: str | None, *, reads_annotations: bool = True
) -> argparse.ArgumentParser:
    """Make the parser that the preparation scripts share; a script adds its own arguments.

    Args:
        description: usually the script's docstring.
        reads_annotations: offer `--strict`.
    """
    parser = make_parser(description)
    add_root_argument(parser)
    parser.add_argument(
        "--num-workers",
        type=int,
        default=os.cpu_count() or 1,
        help="processes; changes the time, never the files (default: number of cores)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="make again what is already complete"
    )
    parser.set_defaults(strict=False)
    if reads_annotations:
        parser.add_argument(
            "--strict",
            action="store_true",
            help="stop at the first broken annotation instead of counting it",
        )
    return parser


def add_root_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--root`."""
    parser.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("DETECTRON2_DATASETS", "datasets")),
        help="folder that holds all datasets (default: $DETECTRON2_DATASETS, else ./datasets)",
    )


def run_preparation(
    work: Callable[[argparse.Namespace], int | None],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None = None,
) -> int:
    """Do `run_main` for a script that prepares a dataset.

    Args:
        work: does the work; its return value, if any, is the exit status.
        parser: from `preparation_parser`.
        arguments: replaces sys.argv[1:].
    """
    args = parser.parse_args(arguments)
    args.root = args.root.expanduser()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with strict_annotations(args.strict):
        return run_main(work, args)


def run_parallel(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int,
    description: str,
    unit: str = "image",
) -> Iterator[Result]:
    """Apply a function to every item, in processes, with a progress bar.

    Args:
        function: can be pickled.
        items: its arguments.
        num_workers: processes; with 1 or less everything runs in this one.
        description: left of the progress bar.
        unit: what an item is called there.

    Yields:
        The results in the order of the items.
    """
    with contextlib.ExitStack() as stack:
        if num_workers <= 1:
            results: Iterator[Result] = map(function, items)
        else:
            pool = ProcessPoolExecutor(num_workers, initializer=start_worker)
            # Also when interrupted: nobody may write any more once the caller cleans up.
            stack.callback(pool.shutdown, wait=True, cancel_futures=True)
            results = pool.map(function, items, chunksize=_ITEMS_PER_CHUNK)
        yield from tqdm(results, total=len(items), desc=description, unit=unit)


def start_worker() -> None:
    """Leave Ctrl-C, which reaches the whole process group, to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def partial_folder(target: Path, *, overwrite: bool = False) -> Path:
    """The hidden folder beside `target` where finished files wait until all are there.

    An interrupted run finds in it what was done before.

    Args:
        target: folder that is to appear when it is complete.
        overwrite: start with an empty one.
    """
    partial = target.with_name(f".{target.name}.partial")
    if overwrite:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    return partial


def write_label_maps(
    items: Sequence[Item],
    read: Callable[[Item], np.ndarray],
    stem: Callable[[Item], str],
    folder: Path,
    *,
    num_workers: int,
    description: str,
    overwrite: bool = False,
) -> None:
    """Write one label PNG per item, in parallel and resumably; the folder appears when complete.

    Args:
        items: one per image.
        read: makes the label map of an item, uint8 (H, W); can be pickled.
        stem: name of an item's PNG without suffix; can be pickled.
        folder: to write; one that exists is replaced.
        num_workers: processes.
        description: left of the progress bar.
        overwrite: also forget what an interrupted run has made.
    """
    partial = partial_folder(folder, overwrite=overwrite)
    write = functools.partial(_write_label_map, read=read, stem=stem, folder=partial)
    done = run_parallel(write, items, num_workers=num_workers, description=description)
    count = sum(1 for _ in done)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    logger.info("Wrote %s: %d images.", folder, count)


def _write_label_map(
    item: Item, read: Callable[[Item], np.ndarray], stem: Callable[[Item], str], folder: Path
) -> None:
    path = folder / f"{stem(item)}.png"
    if not path.exists():
        with whole_file(path) as partial:
            Image.fromarray(read(item)).save(partial)


def dump_json(content: Any, path: Path) -> None:
    """Write compact JSON, whole or not at all."""
    write_text(path, json.dumps(content, separators=(",", ":")))


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
    colours = ids_to_colours(converted.segment_ids)
    with whole_file(png_file) as partial:
        Image.fromarray(colours).save(partial)
    annotation = {
        "image_id": converted.image["id"],
        "file_name": png_file.name,
        "segments_info": _measured(converted),
    }
    dump_json({"image": converted.image, "annotation": annotation}, record_file)
    return converted.image, annotation


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
