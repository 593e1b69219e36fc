"""Metrics that grant a wrong class as much as it resembles the right one.

Open mIoU, Open AP and Open PQ of Zhou et al., "Rethinking Evaluation Metrics of Open-Vocabulary
Segmentation" (TPAMI 2025, arXiv 2311.03352). With s(p, t) in [0, 1] the similarity of a predicted
class p and the annotated class t, a prediction of p on an object of t is a true positive of t by
s and a false positive of p by 1 - s; the object is missed by 1 - s. A name that fits no class, and
"no object", resemble nothing. With s = 1 for p = t and 0 otherwise they are mIoU, AP and PQ.

The formulas are those of the authors' code (github.com/qqlu/Entity, folder Open-Metrics, a beta).
Ours, where that code does not settle the matter or would not reduce to the ordinary metric:

* Open mIoU averages over the classes that are annotated, as detectron2's mIoU does; theirs also
  counts classes that are only predicted.
* Open AP first matches predictions with objects of their own class exactly as COCO does, and then
  what is left, best score first, with the left objects of other classes. Theirs matches once
  without regard to classes, where a wrong class of a high score takes the object from the right
  one. So ours is never below AP, and crowds stay a matter of their own class.
* Open AP is given over all areas only.
* Open PQ is theirs: segments overlap by more than half their union, whatever their classes, and
  things do not resemble stuff.
"""

from __future__ import annotations

import numpy as np


def open_mean_iou(confusion: np.ndarray, similarity: np.ndarray) -> float:
    """Open mIoU, see the module.

    Args:
        confusion: (C + 1, C) pixel counts, predicted class (the last row is "no object") by
            annotated class.
        similarity: (C, C) in [0, 1], predicted by annotated class, ones on the diagonal.

    Returns:
        Percentage; NaN without annotated pixels.

    Raises:
        ValueError: the two do not fit together.
    """
    check_similarity(similarity, confusion.shape[1])
    credit = similarity * confusion[:-1]
    hits = credit.sum(axis=0)
    false = (confusion[:-1] - credit).sum(axis=1)
    annotated = confusion.sum(axis=0)
    present = annotated > 0
    if not present.any():
        return float("nan")
    return float(100 * (hits[present] / (annotated + false)[present]).mean())


def check_similarity(similarity: np.ndarray, num_classes: int) -> None:
    """Refuse a matrix that is not (C, C) with ones on the diagonal and values in [0, 1].

    Raises:
        ValueError: it is not.
    """
    if similarity.shape != (num_classes, num_classes):
        raise ValueError(
            f"Got a class similarity matrix of shape {similarity.shape} for {num_classes} classes; "
            "it needs one row and one column per class."
        )
    if not (np.all(similarity >= 0) and np.all(similarity <= 1)):
        raise ValueError("A class similarity matrix has values from 0 to 1 only.")
    if not np.all(similarity.diagonal() == 1):
        raise ValueError("A class similarity matrix has ones on its diagonal.")
