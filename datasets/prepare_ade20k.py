"""Prepares ADE20K (scene parsing, 150 classes) for semantic, panoptic and instance segmentation.

Needed under --root, fetched by `python datasets/download.py ade20k`, or by hand (no account):

    http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip
    http://sceneparsing.csail.mit.edu/data/ChallengeData2017/annotations_instance.tar

    ADEChallengeData2016/images/{training,validation}/ADE_*.jpg
    ADEChallengeData2016/annotations/{training,validation}/ADE_*.png
    ADEChallengeData2016/annotations_instance/{training,validation}/ADE_*.png   (the second file)

Made, in ADEChallengeData2016/:

    annotations_detectron2/{training,validation}/   classes 0 to 149, 255 unlabelled
    ade20k_panoptic_{train,val}.json and folders    COCO panoptic
    ade20k_instance_{train,val}.json                COCO instances of the 100 thing classes

    python datasets/prepare_ade20k.py
    python datasets/prepare_ade20k.py --root /data --splits val

In the panoptic annotation each stuff class of a picture is one segment, then each instance is laid
over it. Pixels of a thing class without an instance number are void, like unlabelled ones: neither
an error nor a success in evaluation, and ignored in training.

Run it again after an interruption or an error: it goes on where it stopped, and what is complete
is left alone. Nothing half-made ever has its final name.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rose_d2.data.datasets.ade20k import (
    CLASS_NAMES,
    NUM_IMAGES,
    SPLIT_FOLDERS,
    STUFF_IDS,
    THING_IDS,
    Ade20kPaths,
    instance_categories,
    panoptic_categories,
)
from rose_d2.prepare.preparation import (
    PanopticImage,
    dump_json,
    partial_folder,
    preparation_parser,
    run_parallel,
    run_preparation,
    write_coco_panoptic,
    write_label_maps,
)
from rose_d2.synthetic.annotate import encode_mask

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """The three files of one picture.

    Attributes:
        image: JPEG.
        labels: PNG of classes, 1 to 150; 0 is unlabelled.
        instances: PNG with the thing class (1 to 100) in red, the instance number in green.
    """

    image: Path
    labels: Path
    instances: Path

    @property
    def stem(self) -> str:
        """Name without suffix, e.g. "ADE_train_00000001"."""
        return self.image.stem


def find_sources(paths: Ade20kPaths) -> list[Source]:
    """All pictures of a split, by name.

    Raises:
        FileNotFoundError: a folder or an annotation is missing.
    """
    for folder in (paths.image_root, paths.label_root, paths.instance_label_root):
        if not folder.is_dir():
            is_instance = folder == paths.instance_label_root
            archive = "annotations_instance.tar" if is_instance else "ADEChallengeData2016.zip"
            raise FileNotFoundError(
                f"{folder} is missing: unpack {archive} so that it is there "
                "(--help says where to get it), or give another --root."
            )
    sources = []
    for image in sorted(paths.image_root.glob("*.jpg")):
        labels, instances = (
            folder / f"{image.stem}.png" for folder in (paths.label_root, paths.instance_label_root)
        )
        sources.append(Source(image, labels, instances))
    for kind in ("labels", "instances"):
        missing = [path for path in (getattr(s, kind) for s in sources) if not path.exists()]
        if missing:
            raise FileNotFoundError(
                f"{len(missing)} of {len(sources)} pictures in {paths.image_root} lack their "
                f"annotation, first {missing[0]}; unpack the archive again."
            )
    if not sources:
        raise FileNotFoundError(f"{paths.image_root} has no .jpg file; unpack the zip file again.")
    return sources


def read_labels(path: Path) -> np.ndarray:
    """Scene parsing labels: uint8 (H, W), 0 to 150.

    Raises:
        ValueError: the file is damaged or of another kind.
    """
    labels = _read_png(path)
    if labels.ndim != 2 or labels.dtype != np.uint8 or labels.max() > len(CLASS_NAMES):
        raise ValueError(
            f"{path} has shape {labels.shape} and values up to {labels.max()}; one channel with 0 "
            f"to {len(CLASS_NAMES)} is needed. Unpack ADEChallengeData2016.zip again."
        )
    return labels


def read_instances(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Instance labels: thing class (0 to 100) and instance number, both uint8 (H, W).

    Raises:
        ValueError: the file is damaged or of another kind.
    """
    channels = _read_png(path)
    if channels.ndim != 3 or channels[..., 0].max() > len(THING_IDS):
        raise ValueError(
            f"{path} has shape {channels.shape} and values up to {channels.max()}; colors with 0 "
            f"to {len(THING_IDS)} in red are needed. Unpack annotations_instance.tar again."
        )
    return channels[..., 0], channels[..., 1]


def _read_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as image:
            return np.asarray(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(
            f"{path} cannot be read ({error}); replace it from its archive and run this again."
        ) from error


def image_record(source: Source, shape: tuple[int, ...]) -> dict[str, Any]:
    """COCO's record of a picture; its id is the number in its name.

    Raises:
        ValueError: the picture has not the size of its annotation.
    """
    try:
        with Image.open(source.image) as image:
            width, height = image.size
    except OSError as error:
        raise ValueError(
            f"{source.image} cannot be read ({error}); replace it and run this again."
        ) from error
    if (height, width) != shape:
        raise ValueError(
            f"{source.image} has size (height, width) {(height, width)} but its annotation "
            f"{shape}; unpack the archives again."
        )
    image_id = int(source.stem.rpartition("_")[2])
    return {"id": image_id, "file_name": source.image.name, "height": height, "width": width}


def iterate_instances(source: Source) -> Iterator[tuple[int, np.ndarray]]:
    """Class id and mask, bool (H, W), of each instance of a picture."""
    categories, numbers = read_instances(source.instances)
    keys = categories.astype(np.int32) * 256 + numbers
    keys[(categories == 0) | (numbers == 0)] = 0
    for key in np.unique(keys[keys > 0]).tolist():
        yield THING_IDS[key // 256 - 1], keys == key


def convert_panoptic(source: Source) -> PanopticImage:
    """Stuff classes first, then the instances over them.

    Raises:
        ValueError: a file is damaged, or the sizes differ.
    """
    labels = read_labels(source.labels)
    image = image_record(source, labels.shape)
    regions = [(i, labels == i + 1) for i in STUFF_IDS if (labels == i + 1).any()]
    regions += iterate_instances(source)
    segment_ids = np.zeros(labels.shape, np.int64)
    for segment_id, (_, mask) in enumerate(regions, start=1):
        if mask.shape != labels.shape:
            raise ValueError(
                f"{source.instances} has size {mask.shape} but {source.labels} {labels.shape}; "
                "unpack the archives again."
            )
        segment_ids[mask] = segment_id
    segments = [
        {"id": segment_id, "category_id": class_id, "iscrowd": 0}
        for segment_id, (class_id, _) in enumerate(regions, start=1)
    ]
    return PanopticImage(image, segment_ids, segments)


def convert_instances(source: Source, folder: Path) -> dict[str, Any]:
    """Image record and annotations (without ids) of a picture, kept in `folder` once made."""
    record_file = folder / f"{source.stem}.json"
    if record_file.exists():
        return json.loads(record_file.read_text(encoding="utf-8"))
    categories, _ = read_instances(source.instances)
    image = image_record(source, categories.shape)
    annotations = []
    for class_id, mask in iterate_instances(source):
        rows, columns = np.nonzero(mask)
        x, y = int(columns.min()), int(rows.min())
        annotations.append(
            {
                "image_id": image["id"],
                "category_id": class_id,
                "segmentation": encode_mask(mask),
                "area": len(rows),
                "bbox": [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y],
                "iscrowd": 0,
            }
        )
    record = {"image": image, "annotations": annotations}
    dump_json(record, record_file)
    return record


def convert_labels(source: Source) -> np.ndarray:
    """Labels counted from 0, with 255 (0 - 1 in 8 bits) where nothing is known, uint8 (H, W)."""
    return read_labels(source.labels) - np.uint8(1)


def write_labels(sources: list[Source], paths: Ade20kPaths, args: argparse.Namespace) -> None:
    """Makes annotations_detectron2 of a split unless every picture has its file there."""
    folder = paths.sem_seg_root
    present = {path.name for path in folder.glob("*.png")}
    if not args.overwrite and all(f"{source.stem}.png" in present for source in sources):
        logger.info("%s is complete; nothing to do.", folder)
        return
    write_label_maps(
        sources,
        convert_labels,
        _stem,
        folder,
        num_workers=args.num_workers,
        description=folder.name,
        overwrite=args.overwrite,
    )


def write_instances(sources: list[Source], paths: Ade20kPaths, args: argparse.Namespace) -> None:
    """Makes the instance JSON of a split unless it is there."""
    json_file = paths.instance_json
    if json_file.exists() and not args.overwrite:
        logger.info("%s is complete; nothing to do.", json_file)
        return
    partial = partial_folder(json_file.with_suffix(""), overwrite=args.overwrite)
    convert = functools.partial(convert_instances, folder=partial)
    records = list(
        run_parallel(convert, sources, num_workers=args.num_workers, description=json_file.stem)
    )
    found = [annotation for record in records for annotation in record["annotations"]]
    content = {
        "images": [record["image"] for record in records],
        "annotations": [{"id": number} | a for number, a in enumerate(found, start=1)],
        "categories": instance_categories(),
    }
    dump_json(content, json_file)
    shutil.rmtree(partial)
    logger.info("Wrote %s: %d images, %d instances.", json_file, len(records), len(found))


def main(args: argparse.Namespace) -> None:
    """Prepares the splits asked for."""
    sources = {split: find_sources(Ade20kPaths(args.root, split)) for split in args.splits}
    for split, found in sources.items():
        paths = Ade20kPaths(args.root, split)
        if len(found) != NUM_IMAGES[split]:
            logger.warning(
                "%s has %d pictures; the published split has %d.",
                paths.image_root,
                len(found),
                NUM_IMAGES[split],
            )
        write_labels(found, paths, args)
        write_coco_panoptic(
            found,
            convert_panoptic,
            _stem,
            json_file=paths.panoptic_json,
            panoptic_root=paths.panoptic_root,
            categories=panoptic_categories(),
            num_workers=args.num_workers,
            description=paths.panoptic_root.name,
            overwrite=args.overwrite,
        )
        write_instances(found, paths, args)


def _stem(source: Source) -> str:
    return source.stem


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = preparation_parser(__doc__)
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=list(SPLIT_FOLDERS),
        default=list(SPLIT_FOLDERS),
        help="which splits to prepare (default: both)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_preparation(main, build_parser()))
