"""Which images a page shows: every saved prediction is scored, then some are chosen."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from rose_d2.data.referring_samples import ALL_SENTENCES, referring_samples
from rose_d2.evaluation.image_scores import ImageScore, score_image
from rose_d2.evaluation.image_segments import (
    TASKS_BY_EVALUATOR,
    ImageSegments,
    predicted_segments,
    true_segments,
)
from rose_d2.evaluation.prediction_store import PredictionStore, sample_key


@dataclass(frozen=True)
class ScoredImage:
    """One saved prediction.

    Attributes:
        key: of the prediction store.
        score: what became of it.
        file_name: of the image; the sentences about one image share it.
    """

    key: str
    score: ImageScore
    file_name: str = ""


@dataclass(frozen=True)
class Selection:
    """The images of a page.

    Attributes:
        best: highest score first; of one image file once, as long as there are others.
        worst: likewise, lowest score first; none of them is among the best.
        random: in the order of the dataset, drawn from all images.
    """

    best: list[ScoredImage]
    worst: list[ScoredImage]
    random: list[ScoredImage]


class SavedPredictions:
    """The predictions of a folder with the images and annotations of their dataset."""

    def __init__(self, folder: str | Path, dataset: str | None, score_threshold: float) -> None:
        """
        Args:
            folder: written by an evaluation with --save-predictions, of one dataset.
            dataset: a registered name; None is the one the predictions were made on.
            score_threshold: instances below this objectness are not shown.

        Raises:
            FileNotFoundError: there are no predictions, or the dataset is not on disk.
            ValueError: the predictions are of another dataset, or the dataset is unknown.
        """
        self.store = PredictionStore(folder, None)
        if not len(self.store):
            raise ValueError(
                f"The predictions in {folder} are empty; run the evaluation with "
                "--save-predictions again, it continues where it stopped."
            )
        self.dataset = _checked_dataset(folder, self.store.fingerprint.get("dataset"), dataset)
        self.metadata: Metadata = MetadataCatalog.get(self.dataset)
        self.task = _task_of(self.dataset, self.metadata)
        self.score_threshold = score_threshold
        self.samples = self._load_samples()
        self.keys = [key for key in self.samples if key in self.store]
        unknown = len(self.store) - len(self.keys)
        if unknown:
            raise ValueError(
                f"{unknown} of the {len(self.store)} predictions in {folder} are of images that "
                f"the dataset {self.dataset!r} does not have; name the dataset they were made on "
                "and use the same data (--dataset, DETECTRON2_DATASETS)."
            )

    def segments(self, key: str) -> tuple[ImageSegments, ImageSegments]:
        """What was predicted for an image and what is annotated in it.

        Raises:
            FileNotFoundError: an annotation file is missing.
            ValueError: the prediction does not fit the dataset.
        """
        output = self.store.get(key)
        predicted = predicted_segments(output, self.task, self.metadata, self.score_threshold)
        return predicted, true_segments(self.samples[key], self.task, self.metadata)

    def score_all(self) -> Iterator[ScoredImage]:
        """Score every prediction, in the order of the dataset."""
        for key in self.keys:
            score = score_image(self.task, *self.segments(key))
            yield ScoredImage(key, score, self.samples[key]["file_name"])

    def _load_samples(self) -> dict[str, dict[str, Any]]:
        dicts = DatasetCatalog.get(self.dataset)
        if self.task == "referring":
            stored = self.store.keys()
            per_ref = any(key.endswith(f"-{ALL_SENTENCES}") for key in stored)
            dicts = referring_samples(dicts, "per_ref" if per_ref else "per_sentence")
        return {sample_key(sample): sample for sample in dicts}


def choose_images(scored: Sequence[ScoredImage], num: int, seed: int) -> Selection:
    """Choose the best, the worst and random images.

    Args:
        scored: all images.
        num: how many of each; of few images, half are among the best and half among the worst.
        seed: of the random ones.
    """
    # Stable sorting: ties keep the order of the dataset.
    best_first = sorted(scored, key=lambda image: -image.score.score)
    best = _first_of_each_file(best_first, min(num, (len(scored) + 1) // 2))
    shown = {image.key for image in best}
    worst_first = sorted(scored, key=lambda image: image.score.score)
    rest = [image for image in worst_first if image.key not in shown]
    drawn = random.Random(seed).sample(range(len(scored)), min(num, len(scored)))
    return Selection(
        best=best,
        worst=_first_of_each_file(rest, num),
        random=[scored[index] for index in sorted(drawn)],
    )


def _first_of_each_file(ranked: Sequence[ScoredImage], num: int) -> list[ScoredImage]:
    """The first `num`, of every image file one before any gives a second."""
    seen: set[str] = set()
    places = []
    for place, image in enumerate(ranked):
        is_again = bool(image.file_name) and image.file_name in seen
        seen.add(image.file_name)
        places.append((is_again, place))
    return [ranked[place] for _, place in sorted(sorted(places)[:num], key=lambda pair: pair[1])]


def missing_images(samples: Mapping[str, Mapping[str, Any]], selection: Selection) -> list[str]:
    """Image files of a selection that are not there.

    Args:
        samples: dataset dicts by key.
        selection: the images to show.
    """
    chosen = [*selection.best, *selection.worst, *selection.random]
    files = dict.fromkeys(samples[image.key]["file_name"] for image in chosen)
    return [name for name in files if not os.path.isfile(name)]


def _checked_dataset(folder: str | Path, stored: str | None, asked: str | None) -> str:
    if asked and stored and asked != stored:
        raise ValueError(
            f"The predictions in {folder} were made on {stored!r}, not on {asked!r}; leave "
            "--dataset out or name another folder."
        )
    name = asked or stored
    if not name:
        raise ValueError(
            f"The predictions in {folder} do not say which dataset they were made on; name it "
            "with --dataset."
        )
    if name not in DatasetCatalog.list():
        raise ValueError(
            f"The dataset {name!r} is not registered; `python tools/check_data.py` lists those "
            "that are."
        )
    return name


def _task_of(dataset: str, metadata: Metadata) -> str:
    evaluator_type = metadata.get("evaluator_type", None)
    if evaluator_type not in TASKS_BY_EVALUATOR:
        raise ValueError(
            f"Dataset {dataset!r} has the evaluator type {evaluator_type!r}; pages can be made of "
            f"{', '.join(TASKS_BY_EVALUATOR)}."
        )
    return TASKS_BY_EVALUATOR[evaluator_type]
