"""From a dataset dict to what the model should answer: one small class per task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata

from rose_d2.data.annotations import AnnotatedRegions, decode_dense, decode_objects, decode_segments
from rose_d2.data.region_targets import RefinementTargetBuilder, RegionTargetBuilder
from rose_d2.data.targets import TargetBuilder, Targets, names_of
from rose_d2.prompts.instructions import build_instruction
from rose_d2.prompts.tasks import TASKS, get_task

# Values of TEST.CANDIDATES.
CANDIDATE_MODES = ("", "prompt", "decode", "both")
# Share of lists of any length that have all names the image lacks, as evaluation lists them.
_WHOLE_LISTS = 0.25


@dataclass(kw_only=True)
class SceneTargetBuilder(TargetBuilder):
    """Targets of an instruction about the whole image.

    A task says how its annotations are decoded, which regions its instruction asks for and what
    the classes are called.

    Attributes:
        candidate_prob: share of samples whose instruction lists class candidates, if its task
            takes any.
        max_distractors: most names in such a list that are not in the image; -1 for all there are.
    """

    candidate_prob: float = 0.0
    max_distractors: int = 10

    @classmethod
    def settings(cls, cfg: CfgNode) -> dict[str, Any]:
        return {
            **super().settings(cfg),
            "candidate_prob": cfg.INPUT.CANDIDATE_PROB,
            "max_distractors": cfg.INPUT.CANDIDATE_MAX_DISTRACTORS,
        }

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        """All annotated regions of the image, asked for or not."""
        raise NotImplementedError

    def class_names(self, metadata: Metadata) -> list[str]:
        """Names by contiguous class."""
        return getattr(metadata, TASKS[self.task].classes_key)

    def asked_for(self, record: dict[str, Any], regions: AnnotatedRegions) -> np.ndarray:
        """Which regions the instruction asks for, bool (R,)."""
        return np.ones(len(regions), dtype=bool)

    def build(
        self,
        record: dict[str, Any],
        metadata: Metadata,
        rng: np.random.Generator,
        *,
        flip: bool = False,
    ) -> Targets:
        regions = self.decode(record, metadata)
        regions = regions.flipped() if flip else regions
        class_names = self.class_names(metadata)
        names = names_of(regions, class_names)
        asked = self.asked_for(record, regions) & regions.masks.any(axis=(1, 2))
        candidates = None
        takes_candidates = TASKS[self.task].takes_candidates
        if rng.random() < self.candidate_prob * takes_candidates:
            present = sorted({names[i] for i in np.flatnonzero(asked)})
            # What training must not name must not be offered to it either.
            unseen = set(metadata.get("unseen_classes", ()))
            known = [name for name in class_names if name not in unseen]
            candidates = draw_candidates(present, known, self.max_distractors, rng)
            asked &= np.asarray([name in candidates for name in names], dtype=bool)
        instruction = build_instruction(
            self.task, description=record.get("sentence"), candidates=candidates, rng=rng
        )
        return self._targets(regions, names, asked, instruction, candidates=candidates)


class SemanticTargetBuilder(SceneTargetBuilder):
    """Everything in the image: each thing by itself, each stuff category as one region.

    Instance-level supervision of things is the paper's (section 6.3). A data set with nothing but
    a label map gives one region per class.
    """

    task = "semantic"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return decode_dense(record, metadata, self.size)


class PanopticTargetBuilder(SceneTargetBuilder):
    """Everything in the image, from a COCO panoptic annotation."""

    task = "panoptic"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return decode_segments(record, self.size)


class InstanceTargetBuilder(SceneTargetBuilder):
    """Things only; stuff is negative wherever a panoptic annotation says where it is."""

    task = "instance"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return decode_objects(record, self.size)

    def asked_for(self, record: dict[str, Any], regions: AnnotatedRegions) -> np.ndarray:
        return ~regions.is_stuff


class ReferringTargetBuilder(SceneTargetBuilder):
    """The objects an expression describes; every other one is negative."""

    task = "referring"

    def decode(self, record: dict[str, Any], metadata: Metadata) -> AnnotatedRegions:
        return decode_objects(record, self.size)

    def class_names(self, metadata: Metadata) -> list[str]:
        # RefCLEF has none.
        return metadata.get("thing_classes", None) or []

    def asked_for(self, record: dict[str, Any], regions: AnnotatedRegions) -> np.ndarray:
        asked = np.zeros(len(regions), dtype=bool)
        asked[record["target_indices"]] = True
        return asked


TARGET_BUILDERS: dict[str, type[TargetBuilder]] = {
    builder.task: builder
    for builder in (
        SemanticTargetBuilder,
        InstanceTargetBuilder,
        PanopticTargetBuilder,
        ReferringTargetBuilder,
        RegionTargetBuilder,
        RefinementTargetBuilder,
    )
}


def check_candidate_mode(mode: str) -> str:
    """Return the mode.

    Raises:
        ValueError: it is not one of `CANDIDATE_MODES`.
    """
    if mode not in CANDIDATE_MODES:
        raise ValueError(
            f"TEST.CANDIDATES is {mode!r}; use 'prompt' to list a dataset's classes in the "
            "instruction, 'decode' to let names be spelled only along them, 'both', or '' for a "
            "free vocabulary."
        )
    return mode


def dataset_candidates(metadata: Metadata, task: str) -> list[str]:
    """All class names of a dataset, as class candidates.

    Args:
        metadata: with `thing_classes` for the instance task, else with all classes in
            `stuff_classes`.
        task: "semantic", "instance" or "panoptic".

    Returns:
        The names in the order of the classes, of "a, b" the first; equal ones once.

    Raises:
        ValueError: the dataset has no classes.
    """
    key = get_task(task).classes_key
    names = [name.split(",")[0].strip() for name in metadata.get(key, None) or ()]
    if not names:
        raise ValueError(
            f"Dataset {metadata.get('name', '?')!r} has no {key} in its metadata, which "
            "TEST.CANDIDATES offers as class candidates; set them where the dataset is "
            "registered, or leave TEST.CANDIDATES empty."
        )
    return list(dict.fromkeys(names))


def draw_candidates(
    present: list[str], vocabulary: list[str], max_distractors: int, rng: np.random.Generator
) -> list[str]:
    """Make a list of class candidates: names in the image plus distractors, in random order.

    Half of the lists hold all names of the image, the others a random part of them, so that the
    model learns to leave out what is not listed.

    Args:
        present: different names of the objects in the image; may be empty.
        vocabulary: all names of the data set.
        max_distractors: most names that are not in the image; -1 for all there are.
        rng: source of randomness.

    Returns:
        At least one name, all different.
    """
    kept = len(present)
    if kept > 1 and rng.random() < 0.5:
        kept = int(rng.integers(1, kept))
    absent = sorted(set(vocabulary) - set(present))
    fewest = 0 if present else 1
    most = len(absent) if max_distractors < 0 else max_distractors
    wanted = int(rng.integers(fewest, max(fewest, most) + 1))
    if max_distractors < 0 and rng.random() < _WHOLE_LISTS:
        wanted = len(absent)
    names = list(rng.permutation(present)[:kept]) + list(rng.permutation(absent)[:wanted])
    return [str(name) for name in rng.permutation(names)]
