"""Pictures that the demo writes."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from rose_d2.structures.segment import Segment


def panoptic_ids(segments: Sequence[Segment], size: tuple[int, int]) -> np.ndarray:
    """Colours (H, W, 3) of a COCO panoptic PNG: id = R + 256 G + 65536 B, 0 where nothing is."""
    ids = np.zeros(size, dtype=np.int64)
    for number, segment in enumerate(segments, start=1):
        ids[segment.mask] = number
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=-1).astype(np.uint8)


def save_image(picture: np.ndarray, path: Path) -> None:
    """Write a picture (H, W, 3) whole or not at all; the suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    Image.fromarray(picture).save(partial, quality=92)
    os.replace(partial, path)
