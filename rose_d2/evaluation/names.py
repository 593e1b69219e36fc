"""How good masks and generated names are before any benchmark's own metric is applied."""

from __future__ import annotations

import itertools
import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.logger import create_small_table

from rose_d2.evaluation.ground_truth import GroundTruthObjects, load_objects
from rose_d2.layers.masks import mask_areas, pairwise_intersection
from rose_d2.modeling.patch_analyzer import ROLES, STUFF_ROLE
from rose_d2.structures.segments import found_instances
from rose_d2.vocabulary.vocabulary import MAPPING_RULES, UNMAPPED, CategoryVocabulary, counts_at

logger = logging.getLogger(__name__)

_UNMAPPED_INDEX = MAPPING_RULES.index(UNMAPPED)
_SIZES = ROLES[: STUFF_ROLE + 1]  # small, medium, large, stuff


class CategoryNameEvaluator(DatasetEvaluator):
    """Mask quality, recall and name accuracy of matched predictions, and how names were mapped.

    Annotated objects and predictions are paired greedily by descending mask IoU, one to one and
    whatever their names; an object is found if its pair has an IoU of at least 0.5.

    * IoU_found: mean IoU of the found objects; IoU_all: of all objects, 0 without a pair;
    * recall, and recall-{size}: share of objects found. Sizes are those of the super-patch roles:
      stuff, or sqrt(area) in the model's square view against the scale bounds;
    * name_exact, name_normalised: share of found objects whose prediction has the right name, or
      has it up to normalisation; name_class: the right class, as the headline numbers count it;
    * name_similarity: mean cosine, times 100, of the text embeddings of the generated name and of
      the class's name over the found objects;
    * rule-{rule}: share of all predictions that each rule of `CategoryVocabulary` mapped;
    * in the group "names_levels": name_class at every level of the vocabulary.

    All but the similarity are percentages; without annotated objects only the rules are reported.
    """

    def __init__(
        self,
        dataset_name: str,
        *,
        view_size: int,
        scale_bounds: Sequence[float],
        levels: Sequence[str] = (),
        embed_names: Callable[[tuple[str, ...]], torch.Tensor] | None = None,
        distributed: bool = True,
    ) -> None:
        """
        Args:
            dataset_name: registered dataset with annotations or panoptic segments.
            view_size: side of the model's square view in pixels.
            scale_bounds: sqrt(area) at which small and medium end, in pixels of that view.
            levels: levels of the vocabulary to report, where the predictions name their rule.
            embed_names: maps K names to (K, d) embeddings, called once at the end on the main
                process; None leaves name_similarity out.
            distributed: gather the counts of all processes.
        """
        self._vocabulary = CategoryVocabulary.from_metadata(MetadataCatalog.get(dataset_name))
        self._samples = {sample["image_id"]: sample for sample in DatasetCatalog.get(dataset_name)}
        self._view_size = view_size
        self._scale_bounds = tuple(scale_bounds)
        self._levels = tuple(levels)
        self._embed_names = embed_names
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._matches: list[ObjectMatch] = []
        self._rule_counts: Counter[int] = Counter()
        self._name_pairs: Counter[tuple[str, str]] = Counter()  # of found objects
        self._has_rules = False

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """
        Args:
            inputs: with "image_id".
            outputs: see `found_instances`, at original size; `mapped_classes` and `mapping_rules`,
                where there are any, are those of the most generous level.
        """
        for sample_input, output in zip(inputs, outputs, strict=True):
            instances = found_instances(output)
            classes, rules = self._mapping(instances)
            self._rule_counts.update(rules)
            objects = load_objects(self._samples[sample_input["image_id"]])
            if objects is not None:
                self._match(objects, instances, classes, rules)

    def evaluate(self) -> OrderedDict:
        """
        Returns:
            {"names": metrics, "names_levels": share per level}; empty on all but the main process.
        """
        state = self._matches, self._rule_counts, self._name_pairs, self._has_rules
        parts = comm.gather(state, dst=0) if self._distributed else [state]
        if self._distributed and not comm.is_main_process():
            return OrderedDict()
        gathered, counted, named, has_rules = zip(*parts, strict=True)
        matches = list(itertools.chain(*gathered))
        rule_counts, name_pairs = sum(counted, Counter()), sum(named, Counter())
        metrics = name_metrics(matches) if matches else {}
        if self._embed_names is not None and matches:
            metrics |= self._name_similarity(name_pairs)
        for index, rule in enumerate(MAPPING_RULES):
            metrics[f"rule-{rule}"] = percent(rule_counts[index], rule_counts.total())
        logger.info("Mask and name results:\n%s", create_small_table(metrics))
        results = OrderedDict(names=metrics)
        if self._levels and matches and any(has_rules):
            results["names_levels"] = {
                level: share_of_right_classes(matches, level) for level in self._levels
            }
        return results

    def _mapping(self, instances: Instances) -> tuple[list[int], list[int]]:
        """Class of each prediction by any rule and the rule's index."""
        if instances.has("mapping_rules"):
            self._has_rules = True
            return instances.mapped_classes.tolist(), instances.mapping_rules.tolist()
        classes = instances.pred_classes.tolist()
        rules = self._vocabulary.map_names(list(instances.pred_category_names)).rules
        # What the vocabulary at hand does not know was the similarity rule.
        named = [
            "similarity" if rule == UNMAPPED and class_id >= 0 else rule
            for rule, class_id in zip(rules, classes, strict=True)
        ]
        return classes, [MAPPING_RULES.index(rule) for rule in named]

    def _match(
        self,
        objects: GroundTruthObjects,
        instances: Instances,
        classes: Sequence[int],
        rules: Sequence[int],
    ) -> None:
        pred_masks = instances.pred_masks
        intersections = pairwise_intersection(objects.masks.to(pred_masks.device), pred_masks).cpu()
        object_areas = mask_areas(objects.masks)
        pred_areas = mask_areas(pred_masks).cpu()
        unions = object_areas[:, None] + pred_areas[None, :] - intersections  # (N, K)
        partner = _pair_greedily(intersections, unions)
        headline = instances.pred_classes.tolist()
        for index, class_id in enumerate(objects.classes):
            area = int(object_areas[index])
            size = self._size_index(area, objects, index)
            pred = partner.get(index)
            if pred is None:
                self._matches.append(ObjectMatch(0, area, size, _UNMAPPED_INDEX, 0))
                continue
            rule = rules[pred] if classes[pred] == class_id else _UNMAPPED_INDEX
            counts = int(intersections[index, pred]), int(unions[index, pred])
            match = ObjectMatch(*counts, size, rule, int(headline[pred] == class_id))
            self._matches.append(match)
            if match.found and self._embed_names is not None:
                name = instances.pred_category_names[pred]
                self._name_pairs[name, self._vocabulary.class_names[class_id]] += 1

    def _size_index(self, area: int, objects: GroundTruthObjects, index: int) -> int:
        if objects.is_stuff[index]:
            return STUFF_ROLE
        height, width = objects.masks.shape[1:]
        scale = math.sqrt(area / (height * width)) * self._view_size
        return sum(scale >= bound for bound in self._scale_bounds)

    def _name_similarity(self, name_pairs: Counter[tuple[str, str]]) -> dict[str, float]:
        if not name_pairs:
            return {"name_similarity": math.nan}
        try:
            return {"name_similarity": mean_name_similarity(name_pairs, self._embed_names)}
        except OSError as error:  # a text tower that is not on this machine
            logger.warning("name_similarity is left out, names cannot be embedded: %s", error)
            return {}


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
