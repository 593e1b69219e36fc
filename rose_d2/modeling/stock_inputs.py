"""Inputs of detectron2's own mapper, predictor and tools, completed to what ROSE takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor

from rose_d2.layers.views import model_views
from rose_d2.prompts.conversation import Conversation
from rose_d2.prompts.instructions import build_instruction
from rose_d2.prompts.tasks import get_task
from rose_d2.vocabulary.vocabulary import class_lists


@dataclass(frozen=True)
class StockInputs:
    """Asks a question about images that come without one.

    `DefaultPredictor`, detectron2's mapper and `tools/analyze_model.py` give an image alone, and
    take the answer for one in the classes of the first test dataset.

    Attributes:
        task: INPUT.DEFAULT_TASK, what is asked.
        dataset_name: the first of DATASETS.TEST, "" for none.
        is_bgr: whether such images have their channels in this order (INPUT.FORMAT).
        lmm_size: side of the language model's view.
        sam_size: longest side of SAM's view.
    """

    task: str
    dataset_name: str
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
            next(iter(cfg.DATASETS.TEST), ""),
            cfg.INPUT.FORMAT == "BGR",
            cfg.MODEL.LMM.IMAGE_SIZE,
            cfg.MODEL.MASK_HEAD.IMAGE_SIZE,
        )

    def complete(self, item: dict[str, Any]) -> dict[str, Any]:
        """Add what is missing of `ROSE.forward`'s inputs.

        Args:
            item: `image` (3, H, W) in 0..255; height and width of the answer, the image's where
                they are missing. What detectron2's mapper passes on of a dataset is kept.

        Returns:
            Another dict, or the item itself where nothing is missing.
        """
        if "conversation" in item:
            return item
        height, width = map(int, item["image"].shape[-2:])  # a traced call has tensors there
        task = item.get("task", self.task)
        completed = {"height": height, "width": width, **item, "task": task}
        if "dataset_name" not in item and _has_classes(self.dataset_name):
            completed["dataset_name"] = self.dataset_name
        instruction = build_instruction(task, description=item.get("sentence"))
        completed["conversation"] = Conversation(instruction)
        if "sam_image" not in item:
            pixels = self._rgb(item["image"])
            completed["image"], completed["sam_image"] = model_views(
                pixels, self.lmm_size, self.sam_size
            )
        return completed

    def _rgb(self, image: Tensor) -> np.ndarray:
        pixels = image.detach().cpu().clamp(0, 255).byte().permute(1, 2, 0).numpy()
        return np.ascontiguousarray(pixels[:, :, ::-1] if self.is_bgr else pixels)


def _has_classes(dataset_name: str) -> bool:
    if dataset_name not in MetadataCatalog:
        return False
    try:
        return len(class_lists(MetadataCatalog.get(dataset_name)).names) > 0
    except ValueError:  # of a kind that rose_d2 does not evaluate
        return False


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
