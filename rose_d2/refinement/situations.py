"""What is refined, and in which situation: the paper's rules (section 6.1), with ground truth.

All functions are pure and know neither model nor dataset.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


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

    Only classes with pixels in the ground truth: there is nothing to refine towards for a class
    that is not in the image, its pixels are those of other classes. Classes without an error are
    not among them either.

    Args:
        matrix: (C + 1, C + 1), see `confusion_matrix`.
        count: most classes to return (the paper takes five).
    """
    wrong = union_minus_intersection(matrix)
    wrong = torch.where(matrix.sum(dim=0)[:-1] > 0, wrong, 0)
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
    its share is 0, so below the recall threshold it is "missed".

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
