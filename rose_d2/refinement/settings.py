"""The TEST.REFINEMENT keys."""

from __future__ import annotations

from dataclasses import dataclass

from detectron2.config import CfgNode


@dataclass(frozen=True)
class RefinementSettings:
    """How much is refined, and the thresholds of the paper's rules; see `config_inference.py`.

    Raises:
        ValueError: fewer than one round.
    """

    rounds: int = 1
    within_box: bool = True
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

    @classmethod
    def from_config(cls, cfg: CfgNode) -> RefinementSettings:
        """Read the group."""
        refinement = cfg.TEST.REFINEMENT
        return cls(
            rounds=refinement.ROUNDS,
            within_box=refinement.WITHIN_BOX,
            worst_classes=refinement.WORST_CLASSES,
            recall_threshold=refinement.RECALL_THRESH,
            confusion_share=refinement.CONFUSION_SHARE,
            max_instances=refinement.MAX_INSTANCES,
            iou_threshold=refinement.IOU_THRESH,
        )
