"""The text response to an instruction, written after the prompt."""

from __future__ import annotations

import torch
from transformers import DynamicCache, PreTrainedTokenizerBase

from rose_d2.modeling.backbone.lmm import LMMBackbone
from rose_d2.prompts.conversation import EncodedPrompt


class ResponseDecoder:
    """Greedy generation of the counting sentence (paper section 3.5), one image at a time.

    The response is an auxiliary task of training and changes no mask or name; it is written only
    when TEST.GENERATE_RESPONSE asks for it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_tokens: int = 128) -> None:
        """
        Args:
            tokenizer: the LMM's.
            max_tokens: longest response.
        """
        self.tokenizer = tokenizer
        self.max_tokens = max_tokens

    @torch.no_grad()
    def __call__(
        self,
        backbone: LMMBackbone,
        images: torch.Tensor,
        prior_masks: torch.Tensor,
        prompts: list[EncodedPrompt],
    ) -> list[str]:
        """Responses to B prompts.

        Args:
            backbone: the LMM.
            images: (B, 3, I, I), RGB in 0..255.
            prior_masks: (B, 1, I, I), 0 or 1.
            prompts: B prompts; their responses, if any, are not shown to the model.
        """
        return [
            self._respond(backbone, image[None], mask[None], prompt)
            for image, mask, prompt in zip(images, prior_masks, prompts, strict=True)
        ]

    def _respond(
        self,
        backbone: LMMBackbone,
        image: torch.Tensor,
        prior_mask: torch.Tensor,
        prompt: EncodedPrompt,
    ) -> str:
        cache = DynamicCache()
        state = backbone.read_prompt(image, prior_mask, prompt, cache)  # (1, 1, D)
        tokens: list[int] = []
        while len(tokens) < self.max_tokens:
            token = backbone.logits(state).argmax(dim=-1)  # (1, 1)
            if int(token) == self.tokenizer.eos_token_id:
                break
            tokens.append(int(token))
            state = backbone.run_text(backbone.embed_tokens(token), cache)
        return self.tokenizer.decode(tokens, skip_special_tokens=True).strip()
