"""What ROSE asks of a large multimodal model."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import nn
from transformers import Cache, PreTrainedTokenizerBase

from rose_d2.prompts.conversation import EncodedPrompt
from rose_d2.structures.patches import PatchGrid


@dataclass
class LMMOutput:
    """What the LMM says about a batch of images and prompts.

    Attributes:
        patch_features: (B, P, D) last-layer states at the image patches.
        response_logits: (T, V) logits that predict the T response tokens of the whole batch.
        response_labels: (T,) long, those tokens.
        response_images: (T,) long, which image of the batch each belongs to.
        response_states: (T, D) last-layer states at those tokens.
    """

    patch_features: torch.Tensor
    response_logits: torch.Tensor
    response_labels: torch.Tensor
    response_images: torch.Tensor
    response_states: torch.Tensor


class LMMBackbone(Backbone):
    """A detectron2 backbone that also reads and writes text.

    detectron2's contract is image -> dict of features; this one takes prompts beside the images
    and returns `LMMOutput`. `output_shape()` has the single entry "patch_features".
    """

    tokenizer: PreTrainedTokenizerBase
    grid: PatchGrid
    hidden_size: int

    @abstractmethod
    def forward(
        self,
        images: torch.Tensor,
        prior_masks: torch.Tensor,
        prompts: list[EncodedPrompt],
        patches: torch.Tensor | None = None,
    ) -> LMMOutput:
        """Run images and prompts.

        Args:
            images: (B, 3, I, I), RGB in 0..255.
            prior_masks: (B, 1, I, I), 0 or 1.
            prompts: B encoded prompts, with responses where they are to be learnt.
            patches: (B, P, D), what `encode_image` made of the images and prior masks before;
                None encodes them now.
        """

    @abstractmethod
    def encode_image(self, images: torch.Tensor, prior_masks: torch.Tensor) -> torch.Tensor:
        """Pixels to the language model's width, before any words.

        Args:
            images: (B, 3, I, I), RGB in 0..255.
            prior_masks: (B, 1, I, I), 0 or 1.

        Returns:
            (B, P, D).
        """

    @abstractmethod
    def read_prompt(
        self, image: torch.Tensor, prior_mask: torch.Tensor, prompt: EncodedPrompt, cache: Cache
    ) -> torch.Tensor:
        """Fill a cache with one image's prompt (its response is not read).

        Args:
            image: (1, 3, I, I), RGB in 0..255.
            prior_mask: (1, 1, I, I), 0 or 1.
            prompt: the encoded prompt.
            cache: an empty cache.

        Returns:
            (1, 1, D), the state that predicts the first token of the response.
        """

    @abstractmethod
    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (...) -> embeddings (..., D)."""

    @abstractmethod
    def add_tokens(self, tokens: Sequence[str]) -> None:
        """Let tokenizer, embedding and output layer know special tokens, before weights load."""

    @abstractmethod
    def run_text(self, embeddings: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """Causal pass over text embeddings (K, L, D), continuing a cache -> states (K, L, D)."""

    @abstractmethod
    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """States (..., D) -> logits (..., V)."""

    @abstractmethod
    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """Named parameters by part, trainable or not; unused ones are left out."""

    def output_shape(self) -> dict[str, ShapeSpec]:
        """One entry, in detectron2's form."""
        return {
            "patch_features": ShapeSpec(
                channels=self.hidden_size,
                height=self.grid.side,
                width=self.grid.side,
                stride=self.grid.patch_size,
            )
        }
