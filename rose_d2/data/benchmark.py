"""How fast and with how much memory training samples are prepared."""

from __future__ import annotations

import cProfile
import itertools
import json
import pstats
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
from detectron2.config import CfgNode
from PIL import Image

from rose_d2.data.build import TaskDicts, build_rose_train_loader, load_training_dicts
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.custom import register_custom_coco
from rose_d2.data.training_mix import DatasetView, train_only_on

COCO_LIKE = "benchmark_coco_like"
_WIDTH, _HEIGHT, _OBJECTS, _VERTICES = 640, 480, 10, 40
_WARM_UP = 5
_MOMENTS = 10
# Stage by the function whose cumulative time it is; the order is that of the table.
_STAGES = {
    "read_image": "decode the image file",
    "model_views": "resize to the two views",
    "decode": "decode the annotated masks",
    "_centres": "centres of what is not asked for",
}
_OTHER = "everything else"


@dataclass(frozen=True)
class Throughput:
    """What one process manages.

    Attributes:
        images_per_second: without a profiler.
        shares: share of the time by stage, 0 to 1, from a second, profiled pass.
    """

    images_per_second: float
    shares: dict[str, float]


def measure_throughput(cfg: CfgNode, spec: str, num_samples: int) -> Throughput:
    """Prepare samples in this process, as a loader worker does.

    Args:
        cfg: the full config; image sizes and prompts are taken from it.
        spec: a registered dataset, or name@task.
        num_samples: how many; the dataset is walked through again when it has fewer.

    Raises:
        FileNotFoundError: the dataset is not complete.
        ValueError: it does not exist, or has no training sample.
    """
    view = DatasetView.parse(spec)
    dataset = TaskDicts(load_training_dicts(cfg, view.dataset_name), view.task)
    mapper = RoseDatasetMapper(cfg, is_train=True)

    def prepare(count: int) -> float:
        start = time.perf_counter()
        for sample in range(count):
            mapper(dataset[sample % len(dataset)], np.random.default_rng(sample))
        return time.perf_counter() - start

    prepare(min(_WARM_UP, num_samples))
    seconds = prepare(num_samples)
    profiler = cProfile.Profile()
    profiler.runcall(prepare, num_samples)
    return Throughput(num_samples / seconds, _shares(pstats.Stats(profiler)))


def _shares(stats: pstats.Stats) -> dict[str, float]:
    total = stats.get_stats_profile().total_tt
    spent = dict.fromkeys(_STAGES.values(), 0.0)
    for (file, _, function), (_, _, _, cumulative, _) in stats.stats.items():  # type: ignore[attr-defined]
        if function in _STAGES and f"{Path('rose_d2', 'data')}" in file:
            spent[_STAGES[function]] += cumulative / total
    return spent | {_OTHER: 1 - sum(spent.values())}


def measure_memory(cfg: CfgNode, spec: str, num_samples: int) -> Iterator[tuple[int, float]]:
    """Watch a loader worker while it prepares samples.

    Args:
        cfg: the full config; its datasets and number of workers are replaced.
        spec: a registered dataset, or name@task.
        num_samples: how many.

    Yields:
        Number of samples and the worker's own memory (unique set size) in MB, ten times. Flat
        means that reading the dataset's dicts copies no pages of the parent.
    """
    cfg = cfg.clone()
    cfg.defrost()
    train_only_on(cfg, [spec])
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH = 1, 1
    every = max(1, num_samples // _MOMENTS)
    before = set(psutil.Process().children())
    batches = iter(build_rose_train_loader(cfg))
    for sample in itertools.count(1):
        next(batches)
        if sample % every == 0:
            workers = [child for child in psutil.Process().children() if child not in before]
            yield sample, sum(worker.memory_full_info().uss for worker in workers) / 1e6
        if sample >= num_samples:
            return


def register_coco_like(folder: Path, num_images: int) -> None:
    """Draw pictures of the size and the number of objects COCO has, and register them.

    Args:
        folder: empty; receives images and annotations.
        num_images: how many.
    """
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    images, annotations = [], []
    for number in range(num_images):
        name = f"{number:06d}.jpg"
        Image.fromarray(_texture(rng)).save(folder / "images" / name, quality=90)
        images.append({"id": number, "file_name": name, "width": _WIDTH, "height": _HEIGHT})
        annotations += [_annotation(rng, number, _OBJECTS * number + k) for k in range(_OBJECTS)]
    categories = [{"id": k, "name": f"class {k}"} for k in range(80)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(content), encoding="ascii")
    register_custom_coco(COCO_LIKE, folder / "images", folder / "annotations.json")


def _texture(rng: np.random.Generator) -> np.ndarray:
    """Smooth colours with some noise: about as hard to decode as a photograph."""
    coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
    smooth = cv2.resize(coarse, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_CUBIC)
    noise = rng.normal(0, 8, smooth.shape)
    return np.clip(smooth + noise, 0, 255).astype(np.uint8)


def _annotation(rng: np.random.Generator, image_id: int, annotation_id: int) -> dict:
    """One object: a closed curve of 40 points between 30 and 200 pixels wide."""
    centre = rng.uniform((0, 0), (_WIDTH, _HEIGHT))
    angles = np.linspace(0, 2 * np.pi, _VERTICES, endpoint=False)
    radii = rng.uniform(15, 100) * rng.uniform(0.8, 1.2, _VERTICES)
    points = centre + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.clip(points, 0, (_WIDTH - 1, _HEIGHT - 1))
    low, high = points.min(axis=0), points.max(axis=0)
    width, height = (high - low).tolist()
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": int(rng.integers(80)),
        "iscrowd": 0,
        "area": width * height,
        "bbox": [*low.tolist(), width, height],
        "segmentation": [points.reshape(-1).tolist()],
    }
