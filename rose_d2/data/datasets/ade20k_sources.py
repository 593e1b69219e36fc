"""Reads the files ADE20k is distributed as, before they are prepared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rose_d2.data.datasets.ade20k import CLASS_NAMES, THING_IDS, Ade20kPaths


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
