"""One region of an answer that is to be refined, and how the model is asked to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.evaluation.ground_truth import GroundTruthObjects, ReferringTarget
from rose_d2.layers.masks import mask_coverage, masks_to_boxes, pairwise_mask_iou
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import (
    build_refinement_instruction,
    build_region_instruction,
    normalised_box,
)
from rose_d2.structures.segments import NormalisedBox, RefinementRequest, found_instances

TASK = "refinement"
# Whose box an instruction names: the target's, by the simulated person, or the prior's.
BOXES = ("target", "prior")
# What a second turn takes over from the first.
_PASSED_ON = (
    "image",
    "sam_image",
    "features",
    "height",
    "width",
    "file_name",
    "image_id",
    "dataset_name",
    "candidates",
    "ref_id",
    "sent_id",
)


@dataclass(frozen=True)
class RegionRefinement:
    """One turn about one region, chosen with ground truth.

    Attributes:
        situation: "mask", "category" or "missed".
        prior: bool (H, W) with at least one pixel, the mask to be repaired; None for "missed".
        target: bool (H, W), the region in the ground truth; empty where the prior touches none.
        position: what is refined in the answer: a class (semantic), a row of the instances
            (instance), 0 (referring).
        name: before refinement; "" for "missed".
        class_id: contiguous class before refinement, -1 for none.
        target_class: contiguous class of the target, -1 for none.
        expression: what the prior was asked for with; None if not by a referring expression.
        ignored: bool (H, W), pixels without ground truth; None for none.
    """

    situation: str
    prior: Tensor | None
    target: Tensor
    position: int = 0
    name: str = ""
    class_id: int = -1
    target_class: int = -1
    expression: str | None = None
    ignored: Tensor | None = None

    def box_of(self, wanted: str) -> str:
        """Which of `BOXES` the instruction names: the wanted one, if there is such a mask."""
        if self.prior is None:
            return "target"
        return wanted if self.target.any() else "prior"

    def box(self, side: int, wanted: str) -> NormalisedBox:
        """The box of the instruction in words.

        Args:
            side: of the square view.
            wanted: one of `BOXES`.
        """
        mask = self.target if self.box_of(wanted) == "target" else self.prior
        return normalised_box(mask_in_view(mask, side).numpy(), side)

    def iou(self, mask: Tensor | None) -> float:
        """IoU of a mask with the target; 0.0 for None.

        Args:
            mask: bool (H, W).
        """
        if mask is None:
            return 0.0
        known = torch.ones_like(self.target) if self.ignored is None else ~self.ignored
        mask, target = mask.to(self.target.device) & known, self.target & known
        union = int((mask | target).sum())
        return int((mask & target).sum()) / union if union else 0.0


def refinement_input(
    item: dict, region: RegionRefinement, *, box: str = "prior", within_box: bool = True
) -> dict:
    """The model's input for one refinement.

    Mask and box are made in the language model's view, as in training.

    Args:
        item: of the first turn, see `RoseDatasetMapper`; its features, if any, may only be SAM's.
        region: what to ask for.
        box: whose box the instruction names, one of `BOXES`.
        within_box: the answering patch must touch it. Not where it is the prior's and there is an
            expression, for then the prior may lie on another object.

    Returns:
        An item of `batched_inputs` of task "refinement", with the first wording of the situation.
    """
    side = item["image"].shape[-1]
    wrong_name = region.name if region.situation == "category" else None
    words = region.box(side, box)
    request = RefinementRequest(region.situation, words, wrong_name, region.expression)
    full = region.prior
    prior = torch.zeros(side, side) if full is None else mask_in_view(full, side)
    is_trusted = region.expression is None or region.box_of(box) == "target"
    return {
        **{key: item[key] for key in _PASSED_ON if key in item},
        "task": TASK,
        "conversation": Conversation(build_refinement_instruction(request)),
        "prior_mask": prior[None].float(),
        "named_box": words,
        **({} if full is None else {"full_prior": full}),
        **({"answer_box": words} if within_box and is_trusted else {}),
    }


def naming_input(item: dict, mask: Tensor, *, shown: str = "mask", within_box: bool = True) -> dict:
    """The model's input for naming one region.

    Args:
        item: of any turn about the image, see `RoseDatasetMapper`.
        mask: bool (H, W), the region, with at least one pixel.
        shown: how it is marked, by its "mask" or its "box".
        within_box: the answering patch must touch its box.

    Returns:
        An item of `batched_inputs` of task "region", with the first wording.
    """
    side = item["image"].shape[-1]
    view = mask_in_view(mask, side)
    box = normalised_box(view.numpy(), side)
    by_box = shown == "box"
    return {
        **{key: item[key] for key in _PASSED_ON if key in item},
        "task": "region",
        "conversation": Conversation(build_region_instruction(box if by_box else None)),
        "prior_mask": torch.zeros_like(view)[None].float() if by_box else view[None].float(),
        **({"named_box": box} if by_box else {}),
        **({"answer_box": box} if within_box else {}),
    }


def mask_in_view(mask: Tensor, side: int) -> Tensor:
    """Bring a mask to the language model's square view.

    Args:
        mask: bool (H, W) with at least one pixel.
        side: I.

    Returns:
        bool (I, I) on the CPU, with at least one pixel: a mask too thin for any pixel of the view
        to be half covered keeps the pixels it touches.
    """
    (coverage,) = mask_coverage(mask[None], (side, side)).cpu()
    view = coverage >= 0.5
    return view if view.any() else coverage >= coverage.max()


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
            region = _misnamed_region(matrix, predicted, truth, category, class_names)
        elif not target.any():
            region = _invented_region(matrix, predicted, truth, category, class_names)
        regions.append(replace(region, ignored=ignored))
    return regions


def _misnamed_region(
    matrix: Tensor, predicted: Tensor, truth: Tensor, category: int, class_names: Sequence[str]
) -> RegionRefinement:
    """The region that carries another name.

    Its parts are those that are mostly of the class. A small class within a larger region of
    another has none: there the person points at what carries the name inside the class's box.
    """
    under_name = matrix[:-1, category].clone()
    under_name[category] = 0
    wrong = int(under_name.argmax())
    labelled = (truth >= 0) & (truth < len(class_names))
    target = truth == category
    prior = parts_mostly_of(predicted == wrong, target, labelled)
    if 2 * int((prior & target).sum()) < int(under_name[wrong]):
        prior = (predicted == wrong) & _enclosing_box(target)
    return RegionRefinement(
        "category", prior, target, category, class_names[wrong], wrong, category
    )


def _invented_region(
    matrix: Tensor, predicted: Tensor, truth: Tensor, category: int, class_names: Sequence[str]
) -> RegionRefinement:
    """What carries the name of a class that is not in the image; it is most of its true class."""
    true_class = int(matrix[category].argmax())
    return RegionRefinement(
        "category",
        predicted == category,
        truth == true_class,
        category,
        class_names[category],
        category,
        true_class,
    )


def _enclosing_box(mask: Tensor) -> Tensor:
    """The smallest upright rectangle around a mask that has a pixel, bool (H, W)."""
    rows, columns = mask.any(dim=1), mask.any(dim=0)
    return _span(rows)[:, None] & _span(columns)[None, :]


def _span(line: Tensor) -> Tensor:
    """From the first to the last True of bool (N,)."""
    return (line.cumsum(0) > 0) & (line.flip(0).cumsum(0).flip(0) > 0)


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


def confusion_matrix(predicted: Tensor, truth: Tensor, num_classes: int) -> Tensor:
    """Count the pixels of each pair of predicted and true label.

    Args:
        predicted: long (H, W), 0 to C; C is "no object".
        truth: long (H, W), 0 to C - 1; anything else is unlabelled and not counted.
        num_classes: C.

    Returns:
        long (C + 1, C + 1): row m, column n counts pixels predicted as m that belong to n. The
        last row is "no object"; the last column is zero.
    """
    size = num_classes + 1
    labelled = (truth >= 0) & (truth < num_classes)
    pairs = size * predicted[labelled].long() + truth[labelled].long()
    return torch.bincount(pairs, minlength=size * size).reshape(size, size)


def class_recall(matrix: Tensor) -> Tensor:
    """Share of every class's pixels that were predicted as this class.

    Args:
        matrix: (C + 1, C + 1), see `confusion_matrix`.

    Returns:
        float64 (C + 1,) in [0, 1]; 0 for a class without pixels in the ground truth.
    """
    return matrix.diagonal().double() / matrix.sum(dim=0).clamp(min=1)


def union_minus_intersection(matrix: Tensor) -> Tensor:
    """UmI of every class: the pixels in which prediction and ground truth differ (equation 7).

    Args:
        matrix: (C + 1, C + 1), see `confusion_matrix`.

    Returns:
        long (C,).
    """
    predicted, truth, both = matrix.sum(dim=1), matrix.sum(dim=0), matrix.diagonal()
    return (predicted + truth - 2 * both)[:-1]


def worst_categories(matrix: Tensor, count: int) -> list[int]:
    """The classes of highest UmI, worst first; of equals the smaller id.

    A class that is not in the image has one too, all its pixels are wrong. Classes without an
    error are not among them.

    Args:
        matrix: (C + 1, C + 1), see `confusion_matrix`.
        count: most classes to return (the paper takes five).
    """
    wrong = union_minus_intersection(matrix)
    order = torch.argsort(wrong, descending=True, stable=True)[:count]
    return [index for index in order.tolist() if wrong[index] > 0]


def judge_situations(
    matrix: Tensor,
    recall: Sequence[float],
    categories: Sequence[int],
    *,
    recall_threshold: float = 0.2,
    confusion_share: float = 0.5,
) -> list[str]:
    """Algorithm 1 of the paper, "Judge Refinement Situation".

    `matrix[:, n]` are the pixels that belong to class n and `matrix[m, :]` the pixels predicted
    as class m. A category is "mask" from a recall of 0.2 on. Below it is "category" if one class,
    "no object" (the last row) left out, got more than half of its pixels, else "missed". As
    printed, the maximum runs over the class's own row too; below a recall of 0.2 that entry
    cannot exceed half. A class without pixels in the ground truth is 0 / 0 in the paper; here
    its share is 0, so below the recall threshold it is "missed" (`semantic_regions` then has
    nothing to look for, and asks for the name of what was found).

    Args:
        matrix: (C + 1, C + 1), see `confusion_matrix`.
        recall: one number in [0, 1] for each of `categories`.
        categories: classes to be refined.
        recall_threshold: the paper's 0.2.
        confusion_share: the paper's 0.5.

    Returns:
        "mask", "category" or "missed" for each of `categories`.
    """
    situations = []
    for category_recall, category in zip(recall, categories, strict=True):
        if category_recall >= recall_threshold:
            situations.append("mask")
            continue
        pixels = int(matrix[:, category].sum())
        largest = int(matrix[:-1, category].max())
        is_confused = pixels > 0 and largest / pixels > confusion_share
        situations.append("category" if is_confused else "missed")
    return situations


def match_by_iou(ious: Tensor) -> tuple[Tensor, Tensor]:
    """The ground-truth object of highest IoU for every prediction; several may share one.

    Args:
        ious: (N, M) of N predictions with M objects.

    Returns:
        The IoU (N,), and the object, long (N,), -1 for a prediction that touches none.
    """
    if ious.shape[1] == 0:
        return ious.new_zeros(len(ious)), torch.full((len(ious),), -1, device=ious.device)
    best, objects = ious.max(dim=1)
    return best, torch.where(best > 0, objects, -1)


def select_instances(
    scores: Tensor, best_ious: Tensor, *, count: int = 10, iou_threshold: float = 0.5
) -> list[int]:
    """Predictions to refine: those under the IoU threshold, in descending objectness.

    Args:
        scores: (N,) objectness.
        best_ious: (N,), see `match_by_iou`.
        count: most predictions to return (the paper takes ten).
        iou_threshold: the paper's "under 50 IoU".
    """
    order = torch.argsort(scores, descending=True, stable=True)
    return order[best_ious[order] < iou_threshold][:count].tolist()


def judge_instance(predicted_class: int, true_class: int | None) -> str:
    """The situation of one prediction, by the correctness of its class.

    Args:
        predicted_class: contiguous class, -1 where the name fits none.
        true_class: of the object it was matched with, None for a prediction that touches none:
            whatever it is called, nothing of that name is there.

    Returns:
        "mask" where the class is right, else "category".
    """
    return "mask" if predicted_class >= 0 and predicted_class == true_class else "category"


def keeps_better(cfg: CfgNode) -> bool:
    """Read TEST.REFINEMENT.KEEP_BETTER.

    Raises:
        ValueError: it is on for a model that has not learned to rate masks.
    """
    if cfg.TEST.REFINEMENT.KEEP_BETTER and not cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY > 0:
        raise ValueError(
            "TEST.REFINEMENT.KEEP_BETTER is True, but MODEL.ROSE.LOSS_WEIGHT.QUALITY is "
            f"{cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY}: the model has not learned to rate masks. Train "
            "it with a weight above 0, or leave KEEP_BETTER off."
        )
    return cfg.TEST.REFINEMENT.KEEP_BETTER


def better_of_both(answer: dict, prior: Tensor) -> dict:
    """The answer to a second turn, with the mask that was to be repaired where it is rated higher.

    Args:
        answer: the model's output for a question about one region.
        prior: bool (H, W), the mask to be repaired.

    Returns:
        The answer, or a copy of it with the prior's mask; its name stays.
    """
    instances = found_instances(answer)
    if not len(instances) or not bool((instances.prior_quality > instances.mask_quality)[0]):
        return answer
    masks = prior[None].to(instances.pred_masks.device)
    fields = {**instances.get_fields(), "pred_masks": masks, "pred_boxes": masks_to_boxes(masks)}
    better = Instances(instances.image_size, **fields)
    # "instances" is empty where the answer's name is no class of the dataset.
    keys = [k for k in ("instances", "open_instances") if len(answer.get(k, ()))]
    return {**answer, "ref_seg": masks[0], **dict.fromkeys(keys, better)}


@dataclass(frozen=True)
class RefinementSettings:
    """How much is refined, and the thresholds of the paper's rules; see `config/defaults.py`.

    Raises:
        ValueError: fewer than one round, or a box of neither.
    """

    rounds: int = 1
    box: str = "target"
    within_box: bool = True
    keep_better: bool = False
    worst_classes: int = 5
    recall_threshold: float = 0.2
    confusion_share: float = 0.5
    max_instances: int = 10
    iou_threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(
                f"TEST.REFINEMENT.ROUNDS is {self.rounds}; give at least 1, or set "
                "TEST.REFINEMENT.ENABLED to False."
            )

        if self.box not in BOXES:
            raise ValueError(
                f"TEST.REFINEMENT.BOX is {self.box!r}; give 'target' for the box of a person who "
                "knows the target, as the paper seems to, or 'prior' for that of the answer."
            )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> RefinementSettings:
        """Read the group."""
        refinement = cfg.TEST.REFINEMENT
        return cls(
            rounds=refinement.ROUNDS,
            box=refinement.BOX,
            within_box=refinement.WITHIN_BOX,
            keep_better=keeps_better(cfg),
            worst_classes=refinement.WORST_CLASSES,
            recall_threshold=refinement.RECALL_THRESH,
            confusion_share=refinement.CONFUSION_SHARE,
            max_instances=refinement.MAX_INSTANCES,
            iou_threshold=refinement.IOU_THRESH,
        )
