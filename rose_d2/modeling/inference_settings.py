"""The TEST keys that inference reads."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode


@dataclass(frozen=True)
class InferenceSettings:
    """Thresholds and counts; `rose_d2/config_inference.py` explains each and names its source."""

    top_k: int
    top_k_stuff: int
    score_thresh: float
    nms_thresh: float
    nms_class_aware: bool
    nms_longest_side: int
    non_object_score: float
    semantic_merge: str
    panoptic_score_thresh: float
    panoptic_overlap_thresh: float
    multi_target: bool
    headline_level: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> InferenceSettings:
        """Read the TEST group."""
        test = cfg.TEST
        return cls(
            top_k=test.TOP_K,
            top_k_stuff=test.TOP_K_STUFF,
            score_thresh=test.SCORE_THRESH,
            nms_thresh=test.NMS.THRESH,
            nms_class_aware=test.NMS.CLASS_AWARE,
            nms_longest_side=test.NMS.LONGEST_SIDE,
            non_object_score=test.SEMANTIC.NON_OBJECT_SCORE,
            semantic_merge=test.SEMANTIC.MERGE,
            panoptic_score_thresh=test.PANOPTIC.SCORE_THRESH,
            panoptic_overlap_thresh=test.PANOPTIC.OVERLAP_THRESH,
            multi_target=test.REFERRING.MULTI_TARGET,
            headline_level=test.VOCABULARY.LEVEL,
        )

    def objectness_floor(self, task: str) -> float:
        """The objectness below which a candidate leaves no trace in the outputs of a task.

        Leaving such candidates out before masks are compared and names are decoded, which costs
        as much as the rest of the image, changes nothing: they only suppress or hide candidates
        of still lower objectness.

        Args:
            task: "semantic", "instance", "panoptic" or "referring".

        Returns:
            For instances their score threshold. A semantic candidate below the score of "no
            object" wins no pixel, unless candidates add up; a panoptic one has its own threshold.
            Both outputs come with instances.
        """
        if task == "semantic":
            hidden = self.non_object_score if self.semantic_merge == "max" else 0.0
            return min(self.score_thresh, hidden)
        if task == "panoptic":
            return min(self.score_thresh, self.panoptic_score_thresh)
        return self.score_thresh
