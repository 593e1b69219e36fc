"""One score per image, to find the images a model is best and worst at.

These are for looking, not for reporting: benchmarks are scored over a whole dataset.

* semantic: mean IoU over the classes that are annotated or predicted in the image;
* instance: F1 = 2 TP / (2 TP + FP + FN) of the instances shown, at IoU 0.5 with the right class;
* panoptic: PQ of the image, the mean over the classes annotated or predicted in it;
* referring: IoU of the answer.

An image with nothing to find and nothing predicted scores 1. Unlabelled and crowd pixels do not
count, and a segment that lies mostly on them is no mistake.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from torch import Tensor

from rose_d2.data.annotations import load_labels
from rose_d2.data.build import sample_key
from rose_d2.data.datasets.refer_files import ALL_SENTENCES, referring_samples
from rose_d2.evaluation.ground_truth import (
    GroundTruthObjects,
    ReferringTarget,
    decode_segmentation,
    load_objects,
)
from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.layers.masks import mask_areas, pairwise_intersection
from rose_d2.prompts.tasks import TASKS

# Of tasks that share an evaluator the first: it is the one that is scored here.
TASKS_BY_EVALUATOR = {
    task.evaluator_type: task.name for task in reversed(TASKS.values()) if task.evaluator_type
}


@dataclass(frozen=True)
class ImageSegments:
    """N named masks of one image.

    Attributes:
        masks: bool (N, H, W).
        names: N names: generated ones, or of classes.
        classes: N contiguous class ids, -1 where no class fits.
        is_thing: N flags.
        scores: N scores, None where there is none.
        name_scores: N probabilities of the names, None where a name was not generated; empty for
            none of them.
        ignore: bool (H, W), pixels that do not count; None for none. Only of the truth.
    """

    masks: Tensor
    names: list[str]
    classes: list[int]
    is_thing: list[bool]
    scores: list[float | None] = field(default_factory=list)
    ignore: Tensor | None = None
    name_scores: list[float | None] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)


def predicted_segments(
    output: Mapping[str, Any], task: str, metadata: Metadata, score_threshold: float
) -> ImageSegments:
    """The segments of an output as a user would see them.

    Args:
        output: of the model, or decoded from saved predictions.
        task: semantic (one segment per class), instance, panoptic or referring (one segment).
        metadata: of the dataset.
        score_threshold: instances below this objectness are left out.

    Raises:
        ValueError: the output is one of another task.
    """
    # Saved predictions have neither the scores of "sem_seg" nor a selection of the instances.
    saved = {"semantic": "sem_seg_labels", "instance": "open_instances"}
    needed = saved.get(task, TASKS[task].output)
    if needed not in output:
        raise ValueError(
            f"The predictions have no {needed!r}, only {', '.join(output)}; they were made for "
            f"another task than {task}. Name the dataset they were made on."
        )
    if task == "semantic":
        return _segments_of_labels(output["sem_seg_labels"], metadata)
    if task == "instance":
        return _segments_of_instances(output[needed], score_threshold)
    if task == "panoptic":
        return _segments_of_panoptic(*output["panoptic_seg"])
    mask = output["ref_seg"].bool()[None]
    return ImageSegments(mask, ["answer"], [0], [True], [output.get("ref_score")])


def true_segments(sample: Mapping[str, Any], task: str, metadata: Metadata) -> ImageSegments:
    """The annotated segments of a dataset dict.

    Args:
        sample: the dataset dict.
        task: see `predicted_segments`.
        metadata: of the dataset.

    Raises:
        FileNotFoundError: an annotation file is missing.
    """
    if TASKS[task].takes_expression:
        target = ReferringTarget(dict(sample))
        ignore = None if target.ignore is None else torch.from_numpy(target.ignore)
        mask = torch.from_numpy(target.mask)[None]
        return ImageSegments(mask, [sample["sentence"]], [0], [True], [None], ignore)
    if task == "semantic":
        labels = torch.from_numpy(load_labels(dict(sample), metadata))
        ignored = labels == metadata.get("ignore_label", 255)
        return _segments_of_labels(labels, metadata, ignored)
    objects = load_objects(dict(sample))
    if objects is None:
        raise ValueError(
            f"Image {sample['file_name']!r} has neither annotations nor panoptic segments; "
            "there is nothing to compare predictions with."
        )
    if task == "panoptic":
        return _named_objects(objects, metadata.stuff_classes, ~objects.masks.any(dim=0))
    return _named_objects(objects, metadata.thing_classes, _crowd(sample))


def _segments_of_labels(
    labels: Tensor, metadata: Metadata, ignore: Tensor | None = None
) -> ImageSegments:
    """One segment per class with pixels; labels of no class have none."""
    names = list(metadata.stuff_classes)
    things = set(metadata.get("thing_classes", None) or ())
    present = [k for k in labels.unique().tolist() if 0 <= k < len(names)]
    masks = [labels == class_id for class_id in present]
    return ImageSegments(
        torch.stack(masks) if masks else torch.zeros(0, *labels.shape, dtype=torch.bool),
        [names[class_id] for class_id in present],
        present,
        [names[class_id] in things for class_id in present],
        [None] * len(present),
        ignore,
    )


def _segments_of_instances(instances: Any, score_threshold: float) -> ImageSegments:
    shown = instances[instances.scores >= score_threshold]
    return ImageSegments(
        shown.pred_masks.bool(),
        list(shown.pred_category_names),
        shown.pred_classes.tolist(),
        [True] * len(shown),
        shown.scores.tolist(),
        name_scores=shown.name_scores.tolist() if shown.has("name_scores") else [],
    )


def _segments_of_panoptic(panoptic_seg: Tensor, segments_info: Sequence[dict]) -> ImageSegments:
    masks = [panoptic_seg == segment["id"] for segment in segments_info]
    return ImageSegments(
        torch.stack(masks) if masks else torch.zeros(0, *panoptic_seg.shape, dtype=torch.bool),
        [segment["category_name"] for segment in segments_info],
        [segment["category_id"] for segment in segments_info],
        [bool(segment["isthing"]) for segment in segments_info],
        [segment.get("score") for segment in segments_info],
        name_scores=[segment.get("name_score") for segment in segments_info],
    )


def _named_objects(
    objects: GroundTruthObjects, class_names: Sequence[str], ignore: Tensor | None
) -> ImageSegments:
    return ImageSegments(
        objects.masks,
        [class_names[class_id] for class_id in objects.classes],
        objects.classes,
        [not is_stuff for is_stuff in objects.is_stuff],
        [None] * len(objects),
        ignore,
    )


def _crowd(sample: Mapping[str, Any]) -> Tensor | None:
    size = sample["height"], sample["width"]
    crowd = [a for a in sample.get("annotations", ()) if a.get("iscrowd", 0)]
    masks = [decode_segmentation(annotation, *size) for annotation in crowd]
    return torch.stack(masks).any(dim=0) if masks else None


class WrongName(NamedTuple):
    """A mask that is right under a name that is not.

    Attributes:
        predicted: the name it has.
        true: the class it should have.
    """

    predicted: str
    true: str


@dataclass(frozen=True)
class ImageScore:
    """What became of one image.

    Attributes:
        score: in [0, 1], see the module.
        summary: the counts behind the score in words.
        wrong_names: in the order of the predicted segments.
    """

    score: float
    summary: str
    wrong_names: list[WrongName]


class _Overlaps(NamedTuple):
    """Pixels of K predicted and N true segments without those that are ignored.

    Attributes:
        intersections: (K, N).
        predicted: (K,) areas.
        true: (N,) areas.
        mostly_ignored: (K,) whether more than half of a predicted segment is ignored.
    """

    intersections: Tensor
    predicted: Tensor
    true: Tensor
    mostly_ignored: Tensor

    @property
    def ious(self) -> Tensor:
        """(K, N) IoU, 0 of two empty segments."""
        unions = self.predicted[:, None] + self.true[None, :] - self.intersections
        return self.intersections.double() / unions.clamp(min=1)


def score_image(task: str, predicted: ImageSegments, true: ImageSegments) -> ImageScore:
    """Score one image.

    Args:
        task: semantic, instance, panoptic or referring.
        predicted: of the image's size.
        true: with the pixels to ignore.

    Raises:
        ValueError: the two are of different sizes.
    """
    if predicted.masks.shape[1:] != true.masks.shape[1:]:
        raise ValueError(
            f"The prediction has the size {tuple(predicted.masks.shape[1:])} but the annotation "
            f"{tuple(true.masks.shape[1:])} (height, width); name the dataset the predictions "
            "were made on."
        )
    return _SCORERS[task](predicted, true, _overlaps(predicted, true))


def _overlaps(predicted: ImageSegments, true: ImageSegments) -> _Overlaps:
    masks, targets = predicted.masks, true.masks
    areas = mask_areas(masks)
    if true.ignore is not None:
        masks, targets = masks & ~true.ignore, targets & ~true.ignore
    counted = mask_areas(masks)
    return _Overlaps(
        pairwise_intersection(masks, targets).long(),
        counted,
        mask_areas(targets),
        2 * counted < areas,
    )


def _score_semantic(
    predicted: ImageSegments, true: ImageSegments, overlaps: _Overlaps
) -> ImageScore:
    # A class whose pixels are all ignored is neither predicted nor annotated.
    predicted_ids = _with_pixels(predicted.classes, overlaps.predicted)
    true_ids = _with_pixels(true.classes, overlaps.true)
    ious = []
    for class_id in sorted(predicted_ids.keys() | true_ids.keys()):
        if class_id in predicted_ids and class_id in true_ids:
            pair = predicted_ids[class_id], true_ids[class_id]
            ious.append(float(overlaps.ious[pair]))
        else:
            ious.append(0.0)
    wrong = []
    for row in predicted_ids.values():
        best = int(overlaps.intersections[row].argmax()) if len(true) else -1
        is_most = best >= 0 and 2 * overlaps.intersections[row, best] > overlaps.predicted[row]
        if is_most and true.classes[best] != predicted.classes[row]:
            wrong.append(WrongName(predicted.names[row], true.names[best]))
    extra = len(predicted_ids.keys() - true_ids.keys())
    missed = len(true_ids.keys() - predicted_ids.keys())
    both = len(predicted_ids.keys() & true_ids.keys())
    summary = f"{both} of {len(true_ids)} classes present, {missed} missed, {extra} not there"
    return ImageScore(_mean(ious), summary, wrong)


def _score_instance(
    predicted: ImageSegments, true: ImageSegments, overlaps: _Overlaps
) -> ImageScore:
    order = sorted(range(len(predicted)), key=lambda i: -(predicted.scores[i] or 0.0))
    found: set[int] = set()
    false = 0
    for row in order:
        right = [k for k in range(len(true)) if true.classes[k] == predicted.classes[row]]
        match = _best_free(overlaps.ious[row], right, found)
        if match is not None:
            found.add(match)
        elif not overlaps.mostly_ignored[row]:
            false += 1
    missed = len(true) - len(found)
    whole = 2 * len(found) + false + missed
    summary = f"{len(found)} of {len(true)} found, {false} false"
    score = 2 * len(found) / whole if whole else 1.0
    return ImageScore(score, summary, _wrong_names(predicted, true, overlaps.ious))


def _score_panoptic(
    predicted: ImageSegments, true: ImageSegments, overlaps: _Overlaps
) -> ImageScore:
    qualities, found, false = [], 0, 0
    true_rows = {k for k in range(len(true)) if overlaps.true[k] > 0}
    for class_id in sorted({true.classes[k] for k in true_rows} | set(predicted.classes) - {-1}):
        columns = [k for k in sorted(true_rows) if true.classes[k] == class_id]
        rows = [k for k in range(len(predicted)) if predicted.classes[k] == class_id]
        matched: set[int] = set()
        quality, mistakes = 0.0, 0
        for row in rows:
            match = _best_free(overlaps.ious[row], columns, matched, at_least=False)
            if match is not None:
                matched.add(match)
                quality += float(overlaps.ious[row, match])
            elif not overlaps.mostly_ignored[row]:
                mistakes += 1
        missed = len(columns) - len(matched)
        if matched or mistakes or missed:
            qualities.append(quality / (len(matched) + mistakes / 2 + missed / 2))
        found, false = found + len(matched), false + mistakes
    summary = f"{found} of {len(true_rows)} segments found, {false} false"
    return ImageScore(_mean(qualities), summary, _wrong_names(predicted, true, overlaps.ious))


def _score_referring(
    predicted: ImageSegments, true: ImageSegments, overlaps: _Overlaps
) -> ImageScore:
    shared, answer, target = (
        int(overlaps.intersections.sum()),
        int(overlaps.predicted.sum()),
        int(overlaps.true.sum()),
    )
    union = answer + target - shared
    summary = f"answer of {answer} pixels, target of {target}, {shared} in common"
    return ImageScore(shared / union if union else 1.0, summary, [])


_SCORERS: dict[str, Callable[[ImageSegments, ImageSegments, _Overlaps], ImageScore]] = {
    "semantic": _score_semantic,
    "instance": _score_instance,
    "panoptic": _score_panoptic,
    "referring": _score_referring,
}


def _best_free(
    ious: Tensor, candidates: list[int], taken: set[int], *, at_least: bool = True
) -> int | None:
    """Candidate of the highest IoU that is free; it must reach 0.5, or exceed it."""
    free = [k for k in candidates if k not in taken]
    if not free:
        return None
    best = max(free, key=lambda k: float(ious[k]))
    iou = float(ious[best])
    return best if iou > 0.5 or (at_least and iou == 0.5) else None


def _wrong_names(predicted: ImageSegments, true: ImageSegments, ious: Tensor) -> list[WrongName]:
    """Segments that cover an annotated one with an IoU of at least 0.5 under another class."""
    if not len(true):
        return []
    wrong = []
    for row in range(len(predicted)):
        best = int(ious[row].argmax())
        if ious[row, best] >= 0.5 and predicted.classes[row] != true.classes[best]:
            wrong.append(WrongName(predicted.names[row], true.names[best]))
    return wrong


def _with_pixels(classes: list[int], areas: Tensor) -> dict[int, int]:
    """Class id -> its segment, for those with pixels that count."""
    return {class_id: k for k, class_id in enumerate(classes) if areas[k] > 0}


def _mean(values: list[float]) -> float:
    return float(torch.tensor(values, dtype=torch.float64).mean()) if values else 1.0


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
        if TASKS[self.task].takes_expression:
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
