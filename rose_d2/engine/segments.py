"""From a model output to a plain list of named segments, whatever the task."""

import math
from typing import Any

import numpy as np
from detectron2.structures import Instances

from rose_d2.modeling.patch_analyzer.super_patch import STUFF_ROLE
from rose_d2.structures.segment import Segment


def segments_from_output(
    output: dict[str, Any], task: str, min_score: float = 0.0
) -> list[Segment]:
    """List what a model found in one image, best first.

    Semantic segments are the instances of one name merged, with every pixel given to the best
    scored name; panoptic segments do not overlap either.

    Args:
        output: one item of the model's list of outputs.
        task: the task it was asked for: semantic, instance, panoptic or referring.
        min_score: segments with a lower objectness are left out. Referring ignores it: its
            answer is the best mask, however sure the model is.

    Returns:
        Segments with at least one pixel.

    Raises:
        ValueError: if the task is unknown.
    """
    if task == "panoptic":
        segments = _panoptic_segments(output)
    elif task in ("semantic", "instance", "referring"):
        segments = _instance_segments(output["instances"])
    else:
        raise ValueError(
            f"Got task {task!r}; segments exist for semantic, instance, panoptic and referring."
        )
    if task != "referring":
        segments = [segment for segment in segments if segment.score >= min_score]
    return merge_by_name(segments) if task == "semantic" else segments


def merge_by_name(segments: list[Segment]) -> list[Segment]:
    """One segment a name, without overlap: a pixel belongs to the best scored segment on it.

    Args:
        segments: any number of segments of one image.

    Returns:
        Segments by descending score; names that keep no pixel are dropped. Score, name score and
        kind are those of the best segment of the name.
    """
    best_first = sorted(segments, key=lambda segment: -segment.score)
    best: dict[str, Segment] = {}
    for segment in best_first:
        best.setdefault(segment.category_name, segment)
    if not best:
        return []
    names = list(best)
    owner = np.full(best_first[0].mask.shape, -1)
    for segment in reversed(best_first):
        owner[segment.mask] = names.index(segment.category_name)
    return [
        Segment(owner == i, name, best[name].score, best[name].name_score, best[name].is_thing)
        for i, name in enumerate(names)
        if (owner == i).any()
    ]


def _instance_segments(instances: Instances) -> list[Segment]:
    fields = zip(
        instances.pred_masks.cpu().numpy(),
        instances.pred_category_names,
        instances.scores.tolist(),
        instances.name_scores.tolist(),
        instances.pred_roles.tolist(),
        strict=True,
    )
    return [
        Segment(mask, name, score, math.exp(log_probability), role != STUFF_ROLE)
        for mask, name, score, log_probability, role in fields
        if mask.any()
    ]


def _panoptic_segments(output: dict[str, Any]) -> list[Segment]:
    panoptic_seg, segments_info = output["panoptic_seg"]
    ids = panoptic_seg.cpu().numpy()
    segments = []
    for info in segments_info:
        mask = ids == info["id"]
        if mask.any():
            name_score = math.exp(info["name_score"])
            segments.append(
                Segment(mask, info["category_name"], info["score"], name_score, info["isthing"])
            )
    return segments
