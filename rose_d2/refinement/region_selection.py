"""From an answer and its ground truth to the regions that are refined, task by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.evaluation.ground_truth import GroundTruthObjects
from rose_d2.evaluation.referring_targets import ReferringTarget
from rose_d2.layers.mask_ops import pairwise_mask_iou
from rose_d2.refinement.region_refinement import RegionRefinement
from rose_d2.refinement.settings import RefinementSettings
from rose_d2.refinement.situations import (
    class_recall,
    confusion_matrix,
    judge_instance,
    judge_situations,
    match_by_iou,
    select_instances,
    worst_categories,
)


def semantic_regions(
    predicted: Tensor, truth: Tensor, class_names: Sequence[str], settings: RefinementSettings
) -> list[RegionRefinement]:
    """The worst categories of one image, each as one region.

    Args:
        predicted: long (H, W), 0 to C; C is "no object".
        truth: long (H, W), 0 to C - 1, anything else where unlabelled.
        class_names: C names.
        settings: thresholds and counts.

    Returns:
        At most `settings.worst_classes` regions, worst first; `position` is the class.
    """
    matrix = confusion_matrix(predicted, truth, len(class_names))
    categories = worst_categories(matrix, settings.worst_classes)
    situations = judge_situations(
        matrix,
        class_recall(matrix)[categories].tolist(),
        categories,
        recall_threshold=settings.recall_threshold,
        confusion_share=settings.confusion_share,
    )
    ignored = (truth < 0) | (truth >= len(class_names))
    regions = []
    for category, situation in zip(categories, situations, strict=True):
        target = truth == category
        region = RegionRefinement("missed", None, target, category, target_class=category)
        if situation == "mask":
            name = class_names[category]
            prior = predicted == category
            region = RegionRefinement("mask", prior, target, category, name, category, category)
        elif situation == "category":
            region = _misnamed_region(matrix, predicted, truth, category, class_names) or region
        regions.append(replace(region, ignored=ignored))
    return regions


def _misnamed_region(
    matrix: Tensor, predicted: Tensor, truth: Tensor, category: int, class_names: Sequence[str]
) -> RegionRefinement | None:
    """The region that carries another name; None where the class has no region of its own."""
    under_name = matrix[:-1, category].clone()
    under_name[category] = 0
    wrong = int(under_name.argmax())
    labelled = (truth >= 0) & (truth < len(class_names))
    target = truth == category
    prior = parts_mostly_of(predicted == wrong, target, labelled)
    # A small class within a larger region of another has nothing that could be renamed.
    if 2 * int((prior & target).sum()) < int(under_name[wrong]):
        return None
    return RegionRefinement(
        "category", prior, target, category, class_names[wrong], wrong, category
    )


def parts_mostly_of(region: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
    """The connected parts of a region more than half of whose labelled pixels are a target's.

    Args:
        region: bool (H, W).
        target: bool (H, W).
        labelled: bool (H, W).

    Returns:
        bool (H, W).
    """
    count, parts = cv2.connectedComponents(region.cpu().numpy().astype(np.uint8))
    known = np.bincount(parts[labelled.cpu().numpy()], minlength=count)
    of_target = np.bincount(parts[target.cpu().numpy()], minlength=count)
    keep = 2 * of_target > known
    keep[0] = False  # outside the region
    return torch.from_numpy(keep[parts]).to(region.device)


def instance_regions(
    instances: Instances, objects: GroundTruthObjects, settings: RefinementSettings
) -> list[RegionRefinement]:
    """The predictions of one image that lie badly on their object.

    Args:
        instances: N predictions with pred_masks, scores, pred_classes, pred_category_names.
        objects: M objects of the image.
        settings: thresholds and counts.

    Returns:
        At most `settings.max_instances` regions in descending objectness; `position` is the row.
    """
    masks = instances.pred_masks
    truth = objects.masks.to(masks.device)
    best, matched = match_by_iou(pairwise_mask_iou(masks, truth))
    chosen = select_instances(
        instances.scores, best, count=settings.max_instances, iou_threshold=settings.iou_threshold
    )
    regions = []
    for row in chosen:
        number = int(matched[row])
        true_class = objects.classes[number] if number >= 0 else None
        class_id, name = int(instances.pred_classes[row]), instances.pred_category_names[row]
        situation = judge_instance(class_id, true_class)
        regions.append(
            RegionRefinement(
                # There is no name to call wrong where none was written.
                situation if name.strip() else "mask",
                masks[row],
                truth[number] if number >= 0 else torch.zeros_like(masks[row]),
                row,
                name,
                class_id,
                -1 if true_class is None else true_class,
            )
        )
    return [region for region in regions if region.prior.any()]


def referring_regions(
    answer: Tensor, truth: ReferringTarget, expression: str
) -> list[RegionRefinement]:
    """The answer to an expression, always as situation "mask"; none where it is empty.

    Args:
        answer: bool (H, W).
        truth: what the expression refers to.
        expression: for example "the dog on the left".
    """
    if not answer.any():
        return []
    target = torch.from_numpy(truth.mask).to(answer.device)
    ignored = None if truth.ignore is None else torch.from_numpy(truth.ignore).to(answer.device)
    return [RegionRefinement("mask", answer, target, expression=expression, ignored=ignored)]
