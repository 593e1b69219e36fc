"""Numbers about masks and names, from what became of every annotated object."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

from rose_d2.modeling.patch_analyzer.super_patch import ROLES, STUFF_ROLE
from rose_d2.modeling.vocabulary import MAPPING_RULES, counts_at

_SIZES = ROLES[: STUFF_ROLE + 1]  # small, medium, large, stuff


class ObjectMatch(NamedTuple):
    """What became of one annotated object.

    Attributes:
        intersection: pixels it shares with its prediction, 0 without one.
        union: pixels of object or prediction.
        size: index into small, medium, large, stuff.
        rule: index into `MAPPING_RULES` of the rule that gave the prediction's name the object's
            class; that of "unmapped" if none did.
        right_class: 1 if the prediction counts as the object's class in the headline numbers.
    """

    intersection: int
    union: int
    size: int
    rule: int
    right_class: int

    @property
    def found(self) -> bool:
        """Whether a prediction covers it with an IoU of at least 0.5."""
        return self.intersection > 0 and 2 * self.intersection >= self.union

    @property
    def iou(self) -> float:
        """IoU with its prediction, 0 without one."""
        return self.intersection / self.union if self.union else 0.0


def name_metrics(matches: Sequence[ObjectMatch]) -> dict[str, float]:
    """Percentages of `CategoryNameEvaluator`, independent of the objects' order.

    Args:
        matches: one per annotated object.

    Returns:
        the metrics; NaN where there is nothing to average.
    """
    found = [match for match in matches if match.found]
    metrics = {
        "IoU_found": percent(math.fsum(match.iou for match in found), len(found)),
        "IoU_all": percent(math.fsum(match.iou for match in matches), len(matches)),
        "recall": percent(len(found), len(matches)),
    }
    for index, size in enumerate(_SIZES):
        of_size = [match for match in matches if match.size == index]
        metrics[f"recall-{size}"] = percent(sum(m.found for m in of_size), len(of_size))
    for name in ("exact", "normalised"):
        metrics[f"name_{name}"] = share_of_right_classes(matches, name)
    metrics["name_class"] = percent(sum(m.right_class for m in found), len(found))
    return metrics


def share_of_right_classes(matches: Sequence[ObjectMatch], level: str) -> float:
    """Percentage of the found objects whose prediction has the right class at a level.

    Args:
        matches: one per annotated object.
        level: of `vocabulary.LEVELS`.

    Returns:
        NaN where nothing was found.
    """
    counted = [counts_at(rule, level) for rule in MAPPING_RULES]
    found = [match for match in matches if match.found]
    return percent(sum(counted[match.rule] for match in found), len(found))


def mean_name_similarity(
    name_pairs: Counter[tuple[str, str]],
    embed_names: Callable[[tuple[str, ...]], torch.Tensor],
) -> float:
    """Mean cosine of the text embeddings of two names, the same in whatever order they came.

    Args:
        name_pairs: how often each pair (generated name, true name) occurred; at least one.
        embed_names: maps K names to (K, d) embeddings; called once.

    Returns:
        100 times the mean, in [-100, 100].
    """
    names = tuple(sorted({name for pair in name_pairs for name in pair}))
    embeddings = F.normalize(embed_names(names).double(), dim=-1)
    position = {name: index for index, name in enumerate(names)}
    total = 0.0
    for (generated, true), count in sorted(name_pairs.items()):
        cosine = embeddings[position[generated]] @ embeddings[position[true]]
        total += count * float(cosine)
    return percent(total, name_pairs.total())


def percent(part: float, whole: int) -> float:
    """Percentage, NaN of nothing."""
    return 100.0 * part / whole if whole else math.nan
