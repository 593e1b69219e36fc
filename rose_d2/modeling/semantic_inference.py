"""From mask candidates to a semantic segmentation, at all levels of name mapping."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor

from rose_d2.modeling.mask_candidates import classes_at, pixel_scores

MERGES = ("max", "sum")


class SemanticScores:
    """Class scores of every pixel, with one more class for "no object" (paper section 6.3).

    Only the classes that occur take memory: large vocabularies have hundreds, an image a few.
    """

    def __init__(
        self,
        size: tuple[int, int],
        num_classes: int,
        non_object_score: float,
        merge: str = "max",
        device: torch.device | None = None,
    ) -> None:
        """
        Args:
            size: (H, W).
            num_classes: C.
            non_object_score: constant score of "no object".
            merge: "max" or "sum" of the candidates of a class.
            device: of the scores.

        Raises:
            ValueError: if `merge` is unknown.
        """
        if merge not in MERGES:
            raise ValueError(
                f"Got TEST.SEMANTIC.MERGE {merge!r}; use {' or '.join(map(repr, MERGES))}."
            )
        self.size = size
        self.num_classes = num_classes
        self.non_object_score = non_object_score
        self._combine = torch.maximum if merge == "max" else torch.add
        self._device = device
        self._channels: dict[int, Tensor] = {}

    def add(self, class_id: int, scores: Tensor) -> None:
        """Add one candidate.

        Args:
            class_id: its class, 0 to C - 1.
            scores: non-negative (H, W), objectness times mask probability.
        """
        known = self._channels.get(class_id)
        self._channels[class_id] = scores if known is None else self._combine(known, scores)

    def dense(self) -> Tensor:
        """All channels.

        Returns:
            float32 (C + 1, H, W); the last channel is "no object".
        """
        sem_seg = torch.zeros((self.num_classes + 1, *self.size), device=self._device)
        sem_seg[self.num_classes] = self.non_object_score
        for class_id, scores in self._channels.items():
            sem_seg[class_id] = scores
        return sem_seg

    def labels(self) -> Tensor:
        """The class of the highest score per pixel, the smaller id where scores are equal.

        Returns:
            int16 (H, W), C where "no object" wins.
        """
        best = torch.full(self.size, self.non_object_score, device=self._device)
        labels = torch.full(self.size, self.num_classes, dtype=torch.int16, device=self._device)
        # Descending, so that the smallest of the classes that tie comes last and stays.
        for class_id in sorted(self._channels, reverse=True):
            wins = self._channels[class_id] >= best
            best = torch.where(wins, self._channels[class_id], best)
            labels[wins] = class_id
        return labels


def semantic_inference(
    candidates: Instances,
    levels: Sequence[str],
    headline_level: str,
    num_classes: int,
    non_object_score: float,
    merge: str = "max",
) -> dict:
    """Semantic segmentation at every level of name mapping.

    Levels only ever map more candidates, so each candidate is added once.

    Args:
        candidates: see `mask_candidates`; those unmapped at a level take no part in it.
        levels: the vocabulary's, in order.
        headline_level: one of them.
        num_classes: C.
        non_object_score: constant score of "no object".
        merge: "max" or "sum" of the candidates of a class.

    Returns:
        sem_seg: float32 (C + 1, H, W) scores at the headline level, the last channel "no object".
        levels: level -> {"sem_seg_labels": int16 (H, W), C = no object}, one and the same dict
            for consecutive levels that map no further candidate.

    Raises:
        ValueError: if `merge` is unknown.
    """
    device = candidates.scores.device
    scores = SemanticScores(candidates.image_size, num_classes, non_object_score, merge, device)
    added = torch.zeros(len(candidates), dtype=torch.bool, device=device)
    outputs: dict = {"levels": {}}
    for level in levels:
        classes = classes_at(candidates, level)
        further = (classes >= 0) & ~added
        for index in further.nonzero().flatten().tolist():
            scores.add(int(classes[index]), pixel_scores(candidates, index))
        if not outputs["levels"] or further.any():
            labels = {"sem_seg_labels": scores.labels()}
        outputs["levels"][level] = labels
        added |= further
        if level == headline_level:
            outputs["sem_seg"] = scores.dense()
    return outputs
