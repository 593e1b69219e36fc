"""What evaluating an image costs beside the model: time of each evaluator, and memory."""

from __future__ import annotations

import gc
import itertools
import json
import pickle
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil
import torch
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators

from rose_d2.evaluation.prediction_encoding import encode_output

_WARM_UP_BATCHES = 3


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
