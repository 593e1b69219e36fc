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

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from rose_d2.evaluation.image_segments import ImageSegments
from rose_d2.layers.mask_ops import mask_areas, pairwise_intersection


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
