"""How well a model answers about regions, apart from what its own first turn gives it.

First turns are made from the ground truth: a corrupted mask under the right name, one under a
wrong name, or nothing but a box. So models can be compared on equal priors. Besides, the region
itself is shown, by its true mask or its true box, to be named.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rose_d2.data.mask_corruption import IouRange, holes_and_patches, shrink_or_stretch
from rose_d2.evaluation.ground_truth import GroundTruthObjects, load_objects
from rose_d2.layers.masks import mask_areas
from rose_d2.refinement.regions import (
    RefinementSettings,
    RegionRefinement,
    better_of_both,
    naming_input,
    refinement_input,
)
from rose_d2.refinement.tasks import is_answered
from rose_d2.structures.segments import SITUATIONS, found_instances

# How much the priors overlap their objects.
PRIOR_IOU: IouRange = (0.5, 0.7)
# Regions that are shown to be named, by how they are shown.
NAMED = {"named by mask": "mask", "named by box": "box"}
QUESTIONS = (*SITUATIONS, *NAMED)


@dataclass(frozen=True)
class RefinedObject:
    """What became of one object.

    Attributes:
        situation: in which it was refined, or how it was shown; one of `QUESTIONS`.
        iou_before: of the prior with the object, 0.0 without one.
        iou_after: of the answer with the object.
        name_right: whether the generated name is the annotated one, letter by letter.
    """

    situation: str
    iou_before: float
    iou_after: float
    name_right: bool


def synthetic_region(
    situation: str,
    mask: Tensor,
    class_id: int,
    class_names: Sequence[str],
    wrong_classes: Sequence[int],
    rng: np.random.Generator,
) -> RegionRefinement:
    """A first turn that left one object in the given situation.

    Args:
        situation: "mask", "category" or "missed".
        mask: bool (H, W) with at least one pixel.
        class_id: of the object.
        class_names: by contiguous class.
        wrong_classes: to draw a wrong name from; the object's own class is left out.
        rng: draws the corruption, of either kind, and the wrong name.
    """
    region = RegionRefinement("missed", None, mask, target_class=class_id)
    if situation == "missed":
        return region
    corrupt = holes_and_patches if rng.random() < 0.5 else shrink_or_stretch
    prior = torch.from_numpy(corrupt(mask.numpy(), rng, PRIOR_IOU))
    named = class_id
    if situation == "category":
        named = int(rng.choice([other for other in wrong_classes if other != class_id]))
    return replace(
        region, situation=situation, prior=prior, name=class_names[named], class_id=named
    )


@torch.no_grad()
def refine_synthetic_turns(
    model: nn.Module,
    dataset_dicts: Sequence[dict],
    mapper: Callable[[dict], dict],
    class_names: Sequence[str],
    *,
    min_pixels: int,
    unseen: Sequence[str] = (),
    seed: int = 0,
    batch_size: int = 8,
    settings: RefinementSettings | None = None,
) -> list[RefinedObject]:
    """Refine one object of every image in every situation, and have it named.

    Args:
        model: a ROSE in evaluation mode.
        dataset_dicts: with masks of objects; images without one are left out.
        mapper: the test mapper.
        class_names: by contiguous class.
        min_pixels: smaller objects are not drawn, as in training (INPUT.REFINEMENT.MIN_PIXELS).
        unseen: names never given as wrong ones.
        seed: draws objects, corruptions and wrong names; each image has its own stream.
        batch_size: turns that go through the model at once.
        settings: what boxes mean, and whether a better prior stays; None: the answers' boxes.
    """
    settings = settings or RefinementSettings(box="prior")
    wrong = [index for index, name in enumerate(class_names) if name not in set(unseen)]
    results: list[RefinedObject] = []
    turns: list[tuple[dict, RegionRefinement]] = []
    for number, record in enumerate(tqdm(dataset_dicts, desc=f"seed {seed}", unit="image")):
        rng = np.random.default_rng([seed, number])
        drawn = _draw_object(load_objects(record), min_pixels, rng)
        if drawn is None:
            continue
        item = mapper(record)
        for situation in SITUATIONS:
            region = synthetic_region(situation, *drawn, class_names, wrong, rng)
            turn = refinement_input(item, region, box=settings.box, within_box=settings.within_box)
            turns.append((turn, region))
        turns += _naming_turns(item, *drawn, within_box=settings.within_box)
        while len(turns) >= batch_size:
            results += _answer(model, turns[:batch_size], class_names, settings)
            turns = turns[batch_size:]
    if turns:
        results += _answer(model, turns, class_names, settings)
    return results


def _naming_turns(
    item: dict, mask: Tensor, class_id: int, *, within_box: bool
) -> Iterator[tuple[dict, RegionRefinement]]:
    """The region itself, shown in every way."""
    for situation, shown in NAMED.items():
        prior = mask if shown == "mask" else None
        region = RegionRefinement(situation, prior, mask, target_class=class_id)
        yield naming_input(item, mask, shown=shown, within_box=within_box), region


def summarise(runs: Sequence[Sequence[RefinedObject]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Percentages by situation, over runs that differ in their seed.

    Args:
        runs: one list per seed.

    Returns:
        question -> metric -> (mean over seeds, standard deviation over seeds, 0 for one seed).
        Metrics: iou_before, iou_after, iou_gain; worse (a lower IoU than before); lost (IoU
        below 0.1, another object was drawn); name_exact; recovered (IoU at least 0.5);
        recovered_and_named.
    """
    table = {}
    for situation in QUESTIONS:
        per_run = [
            _percentages([entry for entry in run if entry.situation == situation]) for run in runs
        ]
        table[situation] = {
            metric: _mean_and_spread([run[metric] for run in per_run]) for metric in per_run[0]
        }
    return table


def _draw_object(
    objects: GroundTruthObjects | None, min_pixels: int, rng: np.random.Generator
) -> tuple[Tensor, int] | None:
    """Mask and class of one object; None where there is none of a fair size."""
    if objects is None or not len(objects):
        return None
    areas = mask_areas(objects.masks)
    drawable = (areas >= min_pixels).nonzero().flatten().tolist()
    if not drawable:
        return None
    index = int(rng.choice(drawable))
    return objects.masks[index], objects.classes[index]


def _answer(
    model: nn.Module,
    turns: Sequence[tuple[dict, RegionRefinement]],
    class_names: Sequence[str],
    settings: RefinementSettings,
) -> Iterator[RefinedObject]:
    outputs = model([turn for turn, _ in turns])
    for (_, region), output in zip(turns, outputs, strict=True):
        if settings.keep_better and region.prior is not None:
            output = better_of_both(output, region.prior)
        names = found_instances(output).pred_category_names if is_answered(output) else [""]
        yield RefinedObject(
            region.situation,
            region.iou(region.prior),
            region.iou(output["ref_seg"]),
            names[0] == class_names[region.target_class],
        )


def _percentages(entries: Sequence[RefinedObject]) -> dict[str, float]:
    columns = {
        "iou_before": [e.iou_before for e in entries],
        "iou_after": [e.iou_after for e in entries],
        "iou_gain": [e.iou_after - e.iou_before for e in entries],
        "worse": [e.iou_after < e.iou_before for e in entries],
        "lost": [e.iou_after < 0.1 for e in entries],
        "name_exact": [e.name_right for e in entries],
        "recovered": [e.iou_after >= 0.5 for e in entries],
        "recovered_and_named": [e.iou_after >= 0.5 and e.name_right for e in entries],
    }
    count = len(entries)
    return {k: 100 * math.fsum(v) / count if count else math.nan for k, v in columns.items()}


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0
