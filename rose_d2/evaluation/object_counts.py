"""How answers and their cost change with the number of objects in an image."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from detectron2.structures import Instances
from tqdm import tqdm

from rose_d2.evaluation.ground_truth import GroundTruthObjects, load_objects
from rose_d2.layers.masks import pairwise_mask_iou
from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.modeling.meta_arch.rose import ROSE
from rose_d2.structures.segments import found_instances

# Language-model passes that wait for the one before.
_PASSES = ("forward", "read_prompt", "run_text")


@dataclass(frozen=True)
class ImageScore:
    """What became of one image.

    Attributes:
        objects: annotated ones, N.
        iou: mean over them of the best IoU with any of the N best scored predictions, 0 to 1.
        name_exact: share whose best prediction overlaps by 0.5 and has their name, letter by
            letter.
        passes: of the language model, one behind the other.
        seconds: for the whole answer.
    """

    objects: int
    iou: float
    name_exact: float
    passes: int
    seconds: float


@torch.no_grad()
def score_by_count(
    model: ROSE,
    dataset_dicts: Sequence[dict],
    mapper: Callable[[dict], dict],
    class_names: Sequence[str],
) -> list[ImageScore]:
    """Answer every image on its own, and score it by its own objects.

    As many predictions count as there are objects, so that nobody gains by answering more.

    Args:
        model: in evaluation mode.
        dataset_dicts: of a dataset with masks of objects; images without one are left out.
        mapper: the test mapper.
        class_names: by contiguous class.
    """
    scores = []
    for record in tqdm(dataset_dicts, desc="by number of objects", unit="image"):
        objects = load_objects(record)
        if objects is None or not len(objects):
            continue
        item = mapper(record)
        with counted_passes(model.backbone) as passes:
            start = time.perf_counter()
            (output,) = model([item])
            seconds = time.perf_counter() - start
        iou, exact = _score(found_instances(output), objects, class_names)
        scores.append(ImageScore(len(objects), iou, exact, len(passes), seconds))
    return scores


def means_by_count(scores: Sequence[ImageScore]) -> list[dict[str, float]]:
    """Means over the images with equally many objects, in ascending number of objects.

    Returns:
        The fields of `ImageScore`, and `images`: how many there are.
    """
    means = []
    for count in sorted({score.objects for score in scores}):
        images = [asdict(score) for score in scores if score.objects == count]
        fields = {name: statistics.fmean(image[name] for image in images) for name in images[0]}
        means.append({**fields, "objects": count, "images": len(images)})
    return means


def _score(
    instances: Instances, objects: GroundTruthObjects, class_names: Sequence[str]
) -> tuple[float, float]:
    """Mean IoU and share of exact names."""
    best = instances.scores.argsort(descending=True, stable=True)[: len(objects)]
    chosen = instances[best]
    if not len(chosen):
        return 0.0, 0.0
    ious, rows = pairwise_mask_iou(
        objects.masks.to(chosen.pred_masks.device), chosen.pred_masks
    ).max(1)
    names = [chosen.pred_category_names[row] for row in rows.tolist()]
    exact = [
        iou >= 0.5 and name == class_names[class_id]
        for iou, name, class_id in zip(ious.tolist(), names, objects.classes, strict=True)
    ]
    return float(ious.mean()), sum(exact) / len(exact)


@contextmanager
def counted_passes(lmm: LMMBackbone) -> Iterator[list[str]]:
    """Note every pass of a language model while the block runs."""
    passes: list[str] = []

    def noted(name: str) -> Callable:
        run = getattr(lmm, name)

        def call(*args, **kwargs):  # type: ignore[no-untyped-def]
            passes.append(name)
            return run(*args, **kwargs)

        return call

    for name in _PASSES:
        setattr(lmm, name, noted(name))
    try:
        yield passes
    finally:
        for name in _PASSES:
            delattr(lmm, name)
