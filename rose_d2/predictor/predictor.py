"""RosePredictor: images and an instruction in, model outputs out."""

import logging
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.config.read import use_exported_folder
from rose_d2.predictor.questions import image_input, question_input, resolve_task
from rose_d2.predictor.session import RoseSession
from rose_d2.predictor.session_state import read_session

logger = logging.getLogger(__name__)


class RosePredictor:
    """A trained model, ready for images that belong to no dataset.

    detectron2's `DefaultPredictor` hands over the image alone; this one also says what to do
    with it. Names are free unless candidates are given; `pred_classes` count them, see "metadata"
    of `ROSE.forward`.

    Example:
        >>> predictor = RosePredictor(cfg)
        >>> predictor(image)["panoptic_seg"]
        >>> predictor(image, refer="the dog on the left")["ref_seg"]
        >>> predictor(image, task="instance", candidates=["dog", "cat"])["instances"]
        >>> session = predictor.open(image)  # for more than one question, see `RoseSession`
    """

    def __init__(self, cfg: CfgNode, model: nn.Module | None = None) -> None:
        """
        Args:
            cfg: a config with ROSE's keys; it is not modified. Without a GPU, "cuda" becomes
                "cpu"; where MODEL.WEIGHTS is an exported folder, its bases are taken too.
            model: a model that has its weights already, for example during training; None
                builds one and loads `MODEL.WEIGHTS`.

        Raises:
            FileNotFoundError: there are no weights at `MODEL.WEIGHTS`.
            ValueError: `MODEL.WEIGHTS` is empty, or the weights do not fit the config.
        """
        self.cfg = cfg.clone()
        if model is None:
            self.cfg.defrost()
            use_exported_folder(self.cfg)
            self.cfg.freeze()
            model = _load_model(self.cfg)
        self.model = model.eval()

    def __call__(
        self,
        image: np.ndarray,
        *,
        task: str | None = None,
        refer: str | None = None,
        candidates: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Segment one image; see `predict_batch`."""
        return self.predict_batch([image], task=task, refer=refer, candidates=candidates)[0]

    def predict_batch(
        self,
        images: Sequence[np.ndarray | dict[str, Any]],
        *,
        task: str | None = None,
        refer: str | None = None,
        candidates: Sequence[str] | None = None,
    ) -> list[dict[str, Any]]:
        """Segment images in one call of the model.

        Args:
            images: uint8 arrays (H, W, 3), RGB, of any sizes, or what `make_input` made of them.
            task: "semantic", "instance" or "panoptic" (the default); with `refer` leave it out.
            refer: a referring expression, for example "the red car on the left".
            candidates: class names to choose from; None lets the model name things freely.

        Returns:
            One output an image, masks at the image's size: "instances" and, by task,
            "panoptic_seg" or "ref_seg".

        Raises:
            ValueError: an image is not uint8 (H, W, 3), or the options contradict each other.
        """
        task = resolve_task(task, refer, candidates)
        if not images:
            return []
        inputs = [
            image
            if isinstance(image, dict)
            else self.make_input(image, task=task, refer=refer, candidates=candidates)
            for image in images
        ]
        with torch.no_grad():
            return self.model(inputs)

    def make_input(
        self,
        image: np.ndarray,
        *,
        task: str,
        refer: str | None = None,
        candidates: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Build an item of `batched_inputs`, as the test mapper does from a dataset dict.

        Args:
            image: uint8 (H, W, 3), RGB.
            task: one of the tasks of `build_instruction`.
            refer: the expression, for the task "referring".
            candidates: class names to choose from.

        Returns:
            `image` uint8 (3, I, I), `sam_image` uint8 (3, h, w), `height`, `width`, `task`,
            `conversation` and, if given, `candidates`.

        Raises:
            ValueError: the image is not uint8 (H, W, 3).
        """
        return image_input(self.cfg, image) | question_input(task, refer, candidates)

    def open(self, image: np.ndarray) -> RoseSession:
        """Begin a conversation about an image, in which results can be repaired.

        Args:
            image: uint8 (H, W, 3), RGB.

        Raises:
            ValueError: the image is not uint8 (H, W, 3).
        """
        return RoseSession(self.model, self.cfg, image)

    def reopen(self, folder: str | os.PathLike[str]) -> RoseSession:
        """Continue a conversation that `RoseSession.save` wrote.

        Args:
            folder: the one it was saved to. The predictor may have another model by now.

        Raises:
            FileNotFoundError: there is no session in the folder.
            ValueError: the session or its image is damaged.
        """
        image, state = read_session(folder, self.cfg)
        return RoseSession(self.model, self.cfg, image, state)


def find_weights(cfg: CfgNode) -> str:
    """The weights file a config names, found without building the model.

    Raises:
        FileNotFoundError: there is none at `MODEL.WEIGHTS`.
        ValueError: `MODEL.WEIGHTS` is empty.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "MODEL.WEIGHTS is empty (a language model alone counts as that) and an untrained model "
            "segments nothing; set it to a .safetensors file, a checkpoint or an exported folder."
        )
    return RoseCheckpointer(nn.Identity()).find_weights(cfg.MODEL.WEIGHTS)


def _load_model(cfg: CfgNode) -> nn.Module:
    weights = find_weights(cfg)
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        logger.warning("No GPU is available: MODEL.DEVICE %s becomes cpu.", cfg.MODEL.DEVICE)
        cfg.defrost()
        cfg.MODEL.DEVICE = "cpu"
        cfg.freeze()
    model = build_model(cfg)
    RoseCheckpointer(model, allow_missing_keys=cfg.MODEL.ALLOW_MISSING_KEYS).load(weights)
    return model
