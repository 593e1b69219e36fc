"""Makes what a download of Mapillary Vistas lacks for training and evaluation.

    python datasets/prepare_mapillary_vistas.py
    python datasets/prepare_mapillary_vistas.py --version v2.0 --splits val

Makes, in <root>/mapillary_vistas/{training,validation} (2.0: in its folder v2.0):
    panoptic/panoptic_2018.json (2.0: panoptic_2020.json) and its PNGs
        from the instances PNGs; official panoptic files are left alone, with --overwrite too;
    labels_detectron2/ (2.0 only)
        label images with the 116 evaluated classes counted from 0; 255 is void.

An interrupted run goes on where it stopped.
"""

import argparse
import functools
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rose_d2.data.datasets.mapillary_vistas import (
    NUM_IMAGES,
    VERSIONS,
    VOID,
    VistasPaths,
    VistasVersion,
    how_to_get,
)
from rose_d2.prepare.preparation import (
    PanopticImage,
    preparation_parser,
    run_preparation,
    write_coco_panoptic,
    write_label_maps,
)

logger = logging.getLogger(__name__)

# An instances PNG holds label * 256 + number of the instance.
NUMBERS_PER_LABEL = 256


def instance_segments(
    values: np.ndarray, version: VistasVersion
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Segments of an image: one per thing instance, one per kind of stuff; void labels are void.

    Args:
        values: int (H, W), label * 256 + number of the instance.
        version: of the dataset.

    Returns:
        int32 (H, W) of segment ids, 0 is void, and the segments with `category_id` from 1.
    """
    class_of_label = version.class_of_label()
    segment_of_value = np.zeros(len(class_of_label) * NUMBERS_PER_LABEL, dtype=np.int32)
    segments: dict[int, dict[str, Any]] = {}
    for value in np.flatnonzero(np.bincount(values.ravel())).tolist():
        label = value // NUMBERS_PER_LABEL
        class_id = int(class_of_label[label])
        if class_id == VOID:
            continue
        # All numbers of a stuff label are one segment.
        key = value if version.labels[label].kind == "thing" else label * NUMBERS_PER_LABEL
        segment = {"id": len(segments) + 1, "category_id": class_id + 1, "iscrowd": 0}
        segment_of_value[value] = segments.setdefault(key, segment)["id"]
    return segment_of_value[values], list(segments.values())


def convert(path: Path, version: VistasVersion) -> PanopticImage:
    """The segments of one instances PNG."""
    values = read_labels(path, version, NUMBERS_PER_LABEL)
    segment_ids, segments = instance_segments(values, version)
    height, width = values.shape
    image = {"id": path.stem, "file_name": f"{path.stem}.jpg", "height": height, "width": width}
    return PanopticImage(image, segment_ids, segments)


def read_labels(path: Path, version: VistasVersion, numbers_per_label: int) -> np.ndarray:
    """Reads a label or instances PNG, whose palette is of no interest here.

    Args:
        path: the file.
        version: of the dataset.
        numbers_per_label: how many values stand for one label.

    Returns:
        int32 (H, W).

    Raises:
        ValueError: it has labels that the version does not know.
    """
    with Image.open(path) as file:
        values = np.asarray(file).astype(np.int32)
    largest = int(values.max()) // numbers_per_label
    if values.ndim != 2 or largest >= len(version.labels):
        raise ValueError(
            f"{path} has the shape {values.shape} and labels up to {largest}; Mapillary Vistas "
            f"{version.number} has one channel and labels up to {len(version.labels) - 1}. Choose "
            "another --version, or unpack the dataset again."
        )
    return values


def contiguous_labels(path: Path, version: VistasVersion) -> np.ndarray:
    """Label image with contiguous classes, uint8 (H, W)."""
    return version.class_of_label()[read_labels(path, version, 1)]


def list_pngs(folder: Path, version: VistasVersion, args: argparse.Namespace) -> list[Path]:
    """The PNGs of a folder of the download.

    Raises:
        FileNotFoundError: there are none.
    """
    files = sorted(folder.glob("*.png"))
    if not files:
        raise FileNotFoundError(
            f"{folder} has no PNGs. {how_to_get(version)} It was looked for under --root "
            f"{args.root}; --splits leaves one split out."
        )
    return files


def prepare_panoptic(
    version: VistasVersion, split: str, paths: VistasPaths, args: argparse.Namespace
) -> None:
    """Makes the panoptic files of one split, unless they are there.

    Raises:
        ValueError: there is a part of the official files, which is not ours to replace.
    """
    folder = paths.panoptic_root
    # Tells what was made here from what was downloaded, also after an interruption.
    mark = folder.with_name(f".{folder.name}.made_from_instances")
    if not mark.exists() and folder.is_dir() and any(folder.iterdir()):
        if paths.panoptic_json.exists():
            logger.info("%s is the official one; nothing to make.", paths.panoptic_json)
            return
        raise ValueError(
            f"{folder} has files but no {paths.panoptic_json.name}: unpack the dataset again, or "
            "remove the folder to make it from the instances."
        )
    files = list_pngs(paths.instance_root, version, args)
    if not mark.exists():
        mark.touch()
    write_coco_panoptic(
        files,
        functools.partial(convert, version=version),
        get_stem,
        json_file=paths.panoptic_json,
        panoptic_root=folder,
        categories=list_categories(version),
        num_workers=args.num_workers,
        description=f"{version.number} {split}: segments",
        overwrite=args.overwrite,
    )


def prepare_labels(
    version: VistasVersion, split: str, paths: VistasPaths, args: argparse.Namespace
) -> None:
    """Makes the folder of label images of one split; it appears when it is complete."""
    folder = paths.label_root
    if folder.is_dir() and not args.overwrite:
        logger.info("%s is complete; nothing to do.", folder)
        return
    write_label_maps(
        list_pngs(paths.official_label_root, version, args),
        functools.partial(contiguous_labels, version=version),
        get_stem,
        folder,
        num_workers=args.num_workers,
        description=f"{version.number} {split}: labels",
        overwrite=args.overwrite,
    )


def get_stem(path: Path) -> str:
    """Name of a file without suffix."""
    return path.stem


def list_categories(version: VistasVersion) -> list[dict[str, Any]]:
    """`categories` of the JSON, with the dataset's readable names."""
    return [
        {
            "id": class_id + 1,
            "name": label.name,
            "isthing": int(label.kind == "thing"),
            "color": list(label.color),
        }
        for class_id, label in enumerate(version.classes)
    ]


def prepare(args: argparse.Namespace) -> None:
    """Makes all files of the chosen splits that are not there."""
    version = VERSIONS[args.version]
    for split in args.splits:
        paths = VistasPaths(args.root, version, split)
        prepare_panoptic(version, split, paths, args)
        if paths.label_root != paths.official_label_root:
            prepare_labels(version, split, paths, args)


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = preparation_parser(__doc__)
    parser.add_argument(
        "--version", choices=list(VERSIONS), default="v1.2", help="of the labels (default: v1.2)"
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=list(NUM_IMAGES),
        default=list(NUM_IMAGES),
        help="splits to prepare (default: all)",
    )
    return run_preparation(prepare, parser, arguments)


if __name__ == "__main__":
    sys.exit(main())
