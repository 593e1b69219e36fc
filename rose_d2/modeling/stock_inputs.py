"""Inputs of detectron2's own mapper, predictor and tools, completed to what ROSE takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from rose_d2.layers.views import model_views
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction
from rose_d2.prompts.tasks import get_task


@dataclass(frozen=True)
class StockInputs:
    """Asks a question about images that come without one.

    `DefaultPredictor`, detectron2's mapper and `tools/analyze_model.py` give an image alone.

    Attributes:
        task: INPUT.DEFAULT_TASK, what is asked.
        is_bgr: whether such images have their channels in this order (INPUT.FORMAT).
        lmm_size: side of the language model's view.
        sam_size: longest side of SAM's view.
    """

    task: str
    is_bgr: bool
    lmm_size: int
    sam_size: int

    @classmethod
    def from_config(cls, cfg: CfgNode) -> StockInputs:
        """Read INPUT and the sizes of the views.

        Raises:
            ValueError: INPUT.DEFAULT_TASK is not a question about a whole image.
        """
        task = get_task(cfg.INPUT.DEFAULT_TASK)
        if not task.wordings or task.takes_expression:
            raise ValueError(
                f"INPUT.DEFAULT_TASK is {task.name!r}, which needs words or a region of its own; "
                "use semantic, instance or panoptic."
            )
        return cls(
            task.name,
            cfg.INPUT.FORMAT == "BGR",
            cfg.MODEL.LMM.IMAGE_SIZE,
            cfg.MODEL.MASK_HEAD.IMAGE_SIZE,
        )

    def complete(self, item: dict[str, Any]) -> dict[str, Any]:
        """Add what is missing of `ROSE.forward`'s inputs.

        Args:
            item: `image` (3, H, W) in 0..255; height and width of the answer, the image's where
                they are missing.

        Returns:
            Another dict, or the item itself where nothing is missing.
        """
        if "conversation" in item:
            return item
        height, width = item["image"].shape[-2:]
        task = item.get("task", self.task)
        completed = {"height": height, "width": width, **item, "task": task}
        completed["conversation"] = Conversation(build_instruction(task))
        if "sam_image" not in item:
            pixels = self._rgb(item["image"])
            completed["image"], completed["sam_image"] = model_views(
                pixels, self.lmm_size, self.sam_size
            )
        return completed

    def _rgb(self, image: Tensor) -> np.ndarray:
        pixels = image.detach().cpu().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.is_bgr else pixels)


def check_training_inputs(batched_inputs: list[dict[str, Any]]) -> None:
    """Refuse a batch that detectron2's own mapper has made.

    Raises:
        ValueError: there is nothing to learn in it.
    """
    lacking = [k for k in ("conversation", "negative_points") if k not in batched_inputs[0]]
    if lacking:
        raise ValueError(
            f"A training batch has no {lacking[0]}: ROSE learns from what RoseDatasetMapper makes. "
            "Train with rose_d2's train_net.py, or give detectron2's loader "
            "mapper=RoseDatasetMapper(cfg)."
        )
