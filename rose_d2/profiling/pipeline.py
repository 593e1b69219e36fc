"""Time and memory of preparing training samples and of the evaluators."""

from __future__ import annotations

import cProfile
import gc
import itertools
import json
import pickle
import pstats
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import psutil
import torch
from detectron2.config import CfgNode
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from PIL import Image

from rose_d2.data.build import TaskDicts, build_rose_train_loader, load_training_dicts
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.custom import register_custom_coco
from rose_d2.data.mixture import DatasetView, train_only_on
from rose_d2.evaluation.predictions import encode_output

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
_ROOMS = ("data", "layers")  # where these functions are
_OTHER = "everything else"
_WARM_UP_BATCHES = 3


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
        if function in _STAGES and any(f"{Path('rose_d2', room)}" in file for room in _ROOMS):
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


@dataclass(frozen=True)
class EvaluationCost:
    """Per image, in milliseconds, unless said otherwise.

    Attributes:
        num_images: images measured.
        data: reading and resizing, as far as the model has to wait for it.
        model: inference.
        process: by evaluator, its `process`.
        finish: by evaluator, its `evaluate` divided by the images; None where it refuses a part
            of the dataset.
        memory: images done and the process's own memory in MB, after every batch.
        state: MB by which all that the evaluators hold grows with 100 images.
        encoded: MB that the outputs of 100 images take as saved predictions.
    """

    num_images: int
    data: float
    model: float
    process: dict[str, float]
    finish: dict[str, float | None]
    memory: list[tuple[int, float]]
    state: float
    encoded: float

    @property
    def share(self) -> float:
        """Time of all evaluators as a share of the model's."""
        spent = sum(self.process.values()) + sum(t or 0.0 for t in self.finish.values())
        return spent / self.model

    @property
    def memory_growth(self) -> float:
        """MB per 100 images of the whole process, NaN if they are too few.

        Memory goes up and down with the model's work, so the lowest points of the second and of
        the last quarter are compared.
        """
        quarter = len(self.memory) // 4
        if quarter == 0:
            return float("nan")
        lowest = [
            min(self.memory[first : first + quarter], key=lambda moment: moment[1])
            for first in (quarter, 3 * quarter)
        ]
        (images, megabytes), (more_images, more_megabytes) = lowest
        return 100 * (more_megabytes - megabytes) / (more_images - images)


@torch.no_grad()
def measure_evaluation(
    model: Callable[[list[dict]], list[dict]],
    data_loader: Iterable[list[dict]],
    evaluator: DatasetEvaluator,
    num_images: int,
) -> EvaluationCost:
    """Run model and evaluators in turn, without overlap, and time each.

    Args:
        model: takes a batch, returns one output per item; in evaluation mode.
        data_loader: batches of the dataset of `evaluator`.
        evaluator: one or several (`DatasetEvaluators`).
        num_images: how many images are measured at most.

    Raises:
        ValueError: there is no image to measure.
    """
    parts = evaluator._evaluators if isinstance(evaluator, DatasetEvaluators) else [evaluator]
    evaluators = {type(part).__name__: part for part in parts}
    clock = _Clock()
    for part in evaluators.values():
        part.reset()
    for inputs in itertools.islice(data_loader, _WARM_UP_BATCHES):
        model(inputs)
    done, encoded_bytes, memory = 0, 0, []
    empty = _held_bytes(evaluators.values())
    batches = clock.each("data", data_loader)
    for inputs in batches:
        outputs = clock.time("model", model, inputs)
        for name, part in evaluators.items():
            clock.time(name, part.process, inputs, outputs)
        done += len(inputs)
        for item, output in zip(inputs, outputs, strict=True):
            encoded_bytes += len(json.dumps(encode_output(output, item["task"])))
        memory.append((done, _own_megabytes()))
        if done >= num_images:
            break
    if done == 0:
        raise ValueError("There is no image to measure; take a dataset that has some.")
    held = _held_bytes(evaluators.values()) - empty
    per_image = {name: 1000 * seconds / done for name, seconds in clock.seconds.items()}
    return EvaluationCost(
        num_images=done,
        data=per_image["data"],
        model=per_image["model"],
        process={name: per_image[name] for name in evaluators},
        finish={name: _finish(part, done) for name, part in evaluators.items()},
        memory=memory,
        state=100 * held / done / 1e6,
        encoded=100 * encoded_bytes / done / 1e6,
    )


class _Clock:
    """Seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, name: str, function: Callable, *arguments: object) -> object:
        start = time.perf_counter()
        result = function(*arguments)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start
        return result

    def each(self, name: str, items: Iterable) -> Iterable:
        """Iterate, counting the time each item takes to come."""
        iterator = iter(items)
        end = object()
        while (item := self.time(name, next, iterator, end)) is not end:
            yield item


def _finish(evaluator: DatasetEvaluator, num_images: int) -> float | None:
    start = time.perf_counter()
    try:
        evaluator.evaluate()
    except ValueError:
        return None
    return 1000 * (time.perf_counter() - start) / num_images


def _held_bytes(evaluators: Iterable[DatasetEvaluator]) -> int:
    """Size of all attributes, as far as they can be pickled."""
    total = 0
    for value in (value for part in evaluators for value in vars(part).values()):
        try:
            total += len(pickle.dumps(value))
        except (TypeError, AttributeError, pickle.PicklingError):
            continue  # a lock, an open file: nothing that grows
    return total


def _own_megabytes() -> float:
    gc.collect()
    return psutil.Process().memory_full_info().uss / 1e6
