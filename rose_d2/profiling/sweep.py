"""How the time and memory of inference grow: with objects, with pixels, with the batch."""

from __future__ import annotations

from collections.abc import Iterator

from detectron2.config import CfgNode
from tqdm import tqdm

from rose_d2.profiling.inputs import COCO_SIZE
from rose_d2.profiling.steps import StepCost, measure_inference

# Values of each axis; where one varies, the others are the first of theirs but for the objects.
OBJECTS = (1, 10, 30, 100)
# A small photograph, then 3, 12 and 48 megapixels, (height, width).
IMAGE_SIZES = (COCO_SIZE, (1500, 2000), (3000, 4000), (6000, 8000))
BATCH_SIZES = (1, 2, 4, 8)
_FEW = 30


def sweep(cfg: CfgNode, num_steps: int) -> dict[str, list[tuple[float, StepCost]]]:
    """Measure batches of inference with random weights, one axis at a time.

    Args:
        cfg: the full config; its checkpoints are not read.
        num_steps: measured batches a point.

    Returns:
        Axis -> points of it in ascending order: its value and the cost of a batch. The axes are
        the objects that are kept and named, megapixels of the image, and images of the batch.
    """
    points: dict[str, list[tuple[float, StepCost]]] = {}
    settings = list(_settings())
    for axis, value, (objects, image_size, batch_size) in tqdm(settings, unit="point"):
        changed = cfg.clone()
        changed.defrost()
        changed.TEST.TOP_K = objects
        cost = measure_inference(changed, batch_size, num_steps, image_size)
        points.setdefault(axis, []).append((value, cost))
    return points


def _settings() -> Iterator[tuple[str, float, tuple[int, tuple[int, int], int]]]:
    """Axis, value on it, and the objects, image size and batch size it stands for."""
    for objects in OBJECTS:
        yield "objects", objects, (objects, COCO_SIZE, 1)
    for size in IMAGE_SIZES:
        yield "megapixels", round(size[0] * size[1] / 1e6, 1), (_FEW, size, 1)
    for batch_size in BATCH_SIZES:
        yield "images in a batch", batch_size, (_FEW, COCO_SIZE, batch_size)
