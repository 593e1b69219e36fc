"""Joins COCO-Stuff's label maps with COCO's instances. Run it once, after unpacking both.

    python datasets/prepare_coco_stuff.py
    python datasets/prepare_coco_stuff.py --root /data --splits val

Reads, in <root>/coco: annotations/instances_{split}2017.json, stuffthingmaps/{split}2017.
Makes, in <root>/coco:
    annotations/cocostuff_panoptic_{split}2017.json and cocostuff_panoptic_{split}2017/
        for training: every thing instance is a segment, every kind of stuff of an image is one;
    cocostuff_sem_seg_{split}2017/
        for mIoU: the official label maps with contiguous classes, 0-170, 255 unlabelled.

In the segments, instance masks lie over stuff, smaller instances over larger ones, and all of
them over crowd regions, which are segments marked as crowd. Where a label map says "thing" but no
instance covers the pixel, nobody knows whose it is: it is void. An interrupted run goes on where
it stopped.
"""

import argparse
import functools
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from rose_d2.data.datasets.coco import (
    CLASS_OF_LABEL,
    COCO_NUM_IMAGES,
    COCO_STUFF_CLASSES,
    COCO_THING_IDS,
    CocoStuffPaths,
    contiguous_labels,
    load_coco_instances,
)
from rose_d2.data.datasets.registration import distinct_colors
from rose_d2.prepare.preparation import (
    PanopticImage,
    preparation_parser,
    run_preparation,
    write_coco_panoptic,
    write_label_maps,
)
from rose_d2.structures.mask_codec import decode_mask, segmentation_to_rle

logger = logging.getLogger(__name__)

LABEL_OF_CLASS = {class_id: label for label, class_id in CLASS_OF_LABEL.items()}


def join_segments(
    labels: np.ndarray, annotations: list[dict[str, Any]]
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Lays the instances of an image over its stuff.

    Args:
        labels: uint8 (H, W), contiguous classes, 255 unlabelled.
        annotations: the image's instances with contiguous `category_id`.

    Returns:
        int32 (H, W) of segment ids, 0 is void, and the segments with COCO-Stuff's labels as
        `category_id`: first stuff, then instances and crowd regions in the order they came in.
    """
    height, width = labels.shape
    segment_ids = np.zeros((height, width), dtype=np.int32)
    segments = []

    def add_segment(class_id: int, iscrowd: int) -> int:
        segment = {"id": len(segments) + 1, "category_id": LABEL_OF_CLASS[class_id]}
        segments.append(segment | {"iscrowd": iscrowd})
        return segment["id"]

    for class_id in np.unique(labels).tolist():
        if class_id in LABEL_OF_CLASS and LABEL_OF_CLASS[class_id] not in COCO_THING_IDS:
            segment_ids[labels == class_id] = add_segment(class_id, 0)
    layers = []
    for annotation in annotations:
        rle = segmentation_to_rle(annotation["segmentation"], height, width)
        segment_id = add_segment(annotation["category_id"], annotation["iscrowd"])
        layers.append((not annotation["iscrowd"], -int(coco_mask.area(rle)), segment_id, rle))
    for _, _, segment_id, rle in sorted(layers, key=lambda layer: layer[:3]):
        segment_ids[decode_mask(rle, height, width)] = segment_id
    return segment_ids, segments


def convert(record: dict[str, Any], maps: Path) -> PanopticImage:
    """The segments of one image.

    Args:
        record: dataset dict of the image with its instances.
        maps: folder of the label maps.
    """
    segment_ids, segments = join_segments(read_labels(record, maps), record["annotations"])
    image = {
        "id": record["image_id"],
        "file_name": Path(record["file_name"]).name,
        "height": record["height"],
        "width": record["width"],
    }
    return PanopticImage(image, segment_ids, segments)


def read_labels(record: dict[str, Any], maps: Path) -> np.ndarray:
    """The label map of one image with contiguous classes, uint8 (H, W).

    Raises:
        FileNotFoundError: the image has no label map.
        ValueError: it has another size, or values that are no labels.
    """
    path = maps / f"{stem(record)}.png"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing; unpack stuffthingmaps_trainval2017.zip again into {maps.parent}."
        )
    with Image.open(path) as file:
        label_map = np.asarray(file)
    if label_map.shape != (record["height"], record["width"]):
        raise ValueError(
            f"The label map {path} has the shape {label_map.shape}, its image is "
            f"{(record['height'], record['width'])}; unpack stuffthingmaps_trainval2017.zip again."
        )
    return contiguous_labels(label_map, path)


def stem(record: dict[str, Any]) -> str:
    """Name of an image without suffix."""
    return Path(record["file_name"]).stem


def prepare_split(split: str, args: argparse.Namespace) -> None:
    """Makes all files of one split that are not there."""
    paths = CocoStuffPaths(args.root, split)
    has_segments = paths.joined_json.exists() and paths.joined_root.is_dir()
    if has_segments and paths.sem_seg_root.is_dir() and not args.overwrite:
        logger.info("COCO-Stuff %s is complete; nothing to do.", split)
        return
    for source in (paths.instances_json, paths.stuff_thing_maps):
        if not source.exists():
            raise FileNotFoundError(
                f"{source} is missing; see COCO-Stuff in datasets/README.md, or choose another "
                f"--root than {args.root} or fewer --splits."
            )
    records = load_coco_instances(paths.instances_json, paths.image_root, COCO_THING_IDS)
    write_coco_panoptic(
        records,
        functools.partial(convert, maps=paths.stuff_thing_maps),
        stem,
        json_file=paths.joined_json,
        panoptic_root=paths.joined_root,
        categories=list_categories(),
        num_workers=args.num_workers,
        description=f"{split}: segments",
        overwrite=args.overwrite,
    )
    if args.overwrite or not paths.sem_seg_root.is_dir():
        write_label_maps(
            records,
            functools.partial(read_labels, maps=paths.stuff_thing_maps),
            stem,
            paths.sem_seg_root,
            num_workers=args.num_workers,
            description=f"{split}: labels",
            overwrite=args.overwrite,
        )


def list_categories() -> list[dict[str, Any]]:
    """`categories` of the JSON: COCO-Stuff's labels with the names the model learns."""
    colors = distinct_colors(len(CLASS_OF_LABEL))
    return [
        {
            "id": label,
            "name": COCO_STUFF_CLASSES[k],
            "isthing": int(label in COCO_THING_IDS),
            "color": color,
        }
        for (label, k), color in zip(CLASS_OF_LABEL.items(), colors, strict=True)
    ]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = preparation_parser(__doc__)
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=list(COCO_NUM_IMAGES),
        default=list(COCO_NUM_IMAGES),
        help="splits to prepare (default: all)",
    )

    def prepare(args: argparse.Namespace) -> None:
        for split in args.splits:
            prepare_split(split, args)

    return run_preparation(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
