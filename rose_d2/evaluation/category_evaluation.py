"""How good masks and generated names are before any benchmark's own metric is applied."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from rose_d2.evaluation.ground_truth import GroundTruthObjects, load_objects
from rose_d2.layers.mask_ops import pairwise_intersection
from rose_d2.modeling.patch_analyzer.super_patch import ROLES, STUFF_ROLE
from rose_d2.modeling.vocabulary import MAPPING_RULES, UNMAPPED, CategoryVocabulary

logger = logging.getLogger(__name__)

_SIZES = ROLES[: STUFF_ROLE + 1]  # small, medium, large, stuff


class ObjectMatch(NamedTuple):
    """What became of one annotated object.

    Attributes:
        intersection: pixels it shares with its prediction, 0 without one.
        union: pixels of object or prediction.
        size: index into small, medium, large, stuff.
        exact: 1 if the prediction's name is the class's name.
        normalised: 1 if it is, but for case, number, punctuation, hyphen or article.
        right_class: 1 if the prediction was mapped to the object's class by any rule.
    """

    intersection: int
    union: int
    size: int
    exact: int
    normalised: int
    right_class: int

    @property
    def found(self) -> bool:
        """Whether a prediction covers it with an IoU of at least 0.5."""
        return self.intersection > 0 and 2 * self.intersection >= self.union

    @property
    def iou(self) -> float:
        """IoU with its prediction, 0 without one."""
        return self.intersection / self.union if self.union else 0.0


class CategoryNameEvaluator(DatasetEvaluator):
    """Mask quality, recall and name accuracy of matched predictions, and how names were mapped.

    Annotated objects and predictions are paired greedily by descending mask IoU, one to one and
    whatever their names; an object is found if its pair has an IoU of at least 0.5.

    * IoU_found: mean IoU of the found objects; IoU_all: of all objects, 0 without a pair;
    * recall, and recall-{size}: share of objects found. Sizes are those of the super-patch roles:
      stuff, or sqrt(area) in the model's square view against the scale bounds;
    * name_exact, name_normalised, name_class: share of found objects whose prediction has the
      right name, the right name up to normalisation, the right class by any rule;
    * rule-{rule}: share of all predictions that each rule of `CategoryVocabulary` mapped.

    All are percentages; without annotated objects only the last line is reported.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        view_size: int,
        scale_bounds: Sequence[float],
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset with annotations or panoptic segments.
            view_size: side of the model's square view in pixels.
            scale_bounds: sqrt(area) at which small and medium end, in pixels of that view.
            distributed: gather the counts of all processes.
        """
        self._vocabulary = CategoryVocabulary.from_metadata(MetadataCatalog.get(dataset_name))
        self._samples = {sample["image_id"]: sample for sample in DatasetCatalog.get(dataset_name)}
        self._view_size = view_size
        self._scale_bounds = tuple(scale_bounds)
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._matches: list[ObjectMatch] = []
        self._rule_counts: Counter[str] = Counter()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id".
            outputs: with "instances" at original size.
        """
        for sample_input, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            rules = self._applied_rules(instances)
            self._rule_counts.update(rules)
            objects = load_objects(self._samples[sample_input["image_id"]])
            if objects is not None:
                self._matches.extend(self._match(objects, instances, rules))

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            {"names": metrics}; empty on all but the main process.
        """
        matches, rule_counts = self._matches, self._rule_counts
        if self._distributed:
            matches = list(itertools.chain(*comm.all_gather(matches)))
            rule_counts = sum(comm.all_gather(rule_counts), Counter())
            if not comm.is_main_process():
                return OrderedDict()
        metrics = name_metrics(matches) if matches else {}
        total = rule_counts.total()
        for rule in MAPPING_RULES:
            metrics[f"rule-{rule}"] = _percent(rule_counts[rule], total)
        logger.info("Mask and name results:\n%s", create_small_table(metrics))
        return OrderedDict(names=metrics)

    def _applied_rules(self, instances: Instances) -> list[str]:
        """Rule that mapped each prediction; what spelling cannot explain was similarity."""
        rules = self._vocabulary.map_names(list(instances.pred_category_names)).rules
        return [
            "similarity" if rule == UNMAPPED and class_id >= 0 else rule
            for rule, class_id in zip(rules, instances.pred_classes.tolist(), strict=True)
        ]

    def _match(
        self, objects: GroundTruthObjects, instances: Instances, rules: Sequence[str]
    ) -> list[ObjectMatch]:
        pred_masks = instances.pred_masks
        intersections = pairwise_intersection(objects.masks.to(pred_masks.device), pred_masks).cpu()
        object_areas = objects.masks.flatten(1).sum(dim=1)
        pred_areas = pred_masks.flatten(1).sum(dim=1).cpu()
        unions = object_areas[:, None] + pred_areas[None, :] - intersections  # (N, K)
        partner = _pair_greedily(intersections, unions)
        classes = instances.pred_classes.tolist()
        matches = []
        for index in range(len(objects)):
            area = int(object_areas[index])
            size = self._size_index(area, objects, index)
            pred = partner.get(index)
            if pred is None:
                matches.append(ObjectMatch(0, area, size, 0, 0, 0))
                continue
            right = classes[pred] == objects.classes[index]
            exact = right and rules[pred] == "exact"
            normalised = right and rules[pred] in ("exact", "normalised")
            counts = int(intersections[index, pred]), int(unions[index, pred])
            matches.append(ObjectMatch(*counts, size, int(exact), int(normalised), int(right)))
        return matches

    def _size_index(self, area: int, objects: GroundTruthObjects, index: int) -> int:
        if objects.is_stuff[index]:
            return STUFF_ROLE
        height, width = objects.masks.shape[1:]
        scale = math.sqrt(area / (height * width)) * self._view_size
        return sum(scale >= bound for bound in self._scale_bounds)


def name_metrics(matches: Sequence[ObjectMatch]) -> dict[str, float]:
    """Percentages of `CategoryNameEvaluator`, independent of the objects' order.

    Args:
        matches: one per annotated object.

    Returns:
        the metrics; NaN where there is nothing to average.
    """
    found = [match for match in matches if match.found]
    metrics = {
        "IoU_found": _percent(math.fsum(match.iou for match in found), len(found)),
        "IoU_all": _percent(math.fsum(match.iou for match in matches), len(matches)),
        "recall": _percent(len(found), len(matches)),
    }
    for index, size in enumerate(_SIZES):
        of_size = [match for match in matches if match.size == index]
        metrics[f"recall-{size}"] = _percent(sum(m.found for m in of_size), len(of_size))
    metrics["name_exact"] = _percent(sum(m.exact for m in found), len(found))
    metrics["name_normalised"] = _percent(sum(m.normalised for m in found), len(found))
    metrics["name_class"] = _percent(sum(m.right_class for m in found), len(found))
    return metrics


def _pair_greedily(intersections: torch.Tensor, unions: torch.Tensor) -> dict[int, int]:
    """Object -> prediction, best IoU first, each used once; ties go to the smaller indices."""
    ious = intersections.double() / unions.clamp(min=1)
    pairs = [(-ious[i, j].item(), i, j) for i, j in intersections.nonzero().tolist()]
    partner: dict[int, int] = {}
    taken: set[int] = set()
    for _, index, pred in sorted(pairs):
        if index not in partner and pred not in taken:
            partner[index] = pred
            taken.add(pred)
    return partner


def _percent(part: float, whole: int) -> float:
    return 100.0 * part / whole if whole else math.nan
