"""The model as one session asks it: about one image, with each encoder run once per input."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rose_d2.prompts.conversation import Conversation
from rose_d2.refinement.region_refinement import mask_in_view
from rose_d2.structures.image_features import ImageFeatures
from rose_d2.structures.refinement_request import NormalisedBox

# Prior masks whose features are kept; at 7B one costs 16 MB in bfloat16.
_KEPT_PRIORS = 8


class SessionFeatures:
    """Runs a model's image encoders only on what they have not seen yet."""

    def __init__(self, model: nn.Module) -> None:
        """
        Args:
            model: has `encode`, see `ROSE.encode`.
        """
        self._model = model
        self._by_prior: OrderedDict[bytes, ImageFeatures] = OrderedDict()

    def of(self, item: dict[str, Any]) -> ImageFeatures:
        """Features of the session's image under the item's prior mask.

        Args:
            item: one of `batched_inputs`, always of the same image.
        """
        prior = item.get("prior_mask")
        key = b"" if prior is None else np.packbits(prior.numpy() > 0).tobytes()
        if key not in self._by_prior:
            known = next(iter(self._by_prior.values()), None)
            with torch.no_grad():
                self._by_prior[key] = self._model.encode(item, known)
        self._by_prior.move_to_end(key)
        while len(self._by_prior) > _KEPT_PRIORS:
            self._by_prior.popitem(last=False)
        return self._by_prior[key]


class SessionModel:
    """Answers questions about one image."""

    def __init__(self, model: nn.Module, views: dict[str, Any], *, within_box: bool) -> None:
        """
        Args:
            model: a ROSE in evaluation mode.
            views: of the image, see `RosePredictor.image_input`.
            within_box: TEST.REFINEMENT.WITHIN_BOX.
        """
        self._model = model
        self._views = views
        self._features = SessionFeatures(model)
        self._within_box = within_box

    def view(self, mask: np.ndarray) -> Tensor:
        """A mask (H, W) in the language model's view, bool (I, I)."""
        # A copy, since a mask that stands in the session cannot be written.
        return mask_in_view(torch.from_numpy(mask.copy()), self._views["image"].shape[-1])

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """The model's output for the image.

        Args:
            question: what an item of `batched_inputs` has besides the views.
        """
        item = self._views | question
        item["features"] = self._features.of(item)
        with torch.no_grad():
            (output,) = self._model([item])
        return output

    def ask_about_region(
        self, task: str, words: str, box: NormalisedBox | None, prior: Tensor | None = None
    ) -> dict[str, Any]:
        """The model's output for a question about one region.

        Args:
            task: "refinement" or "region".
            words: the instruction.
            box: where the answer lies; None where it may lie anywhere.
            prior: bool (I, I), the mask to be repaired or named.
        """
        question: dict[str, Any] = {"task": task, "conversation": Conversation(words)}
        if box is not None and self._within_box:
            question["answer_box"] = box
        if prior is not None:
            question["prior_mask"] = prior[None].float()
        return self.ask(question)
