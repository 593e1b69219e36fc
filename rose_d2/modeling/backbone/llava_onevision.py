"""LLaVA-OneVision (SigLIP + Qwen2) as ROSE's backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn
from transformers import Cache, LlavaOnevisionForConditionalGeneration, PreTrainedTokenizerBase

from rose_d2.modeling.backbone.llava_builders import (
    PatchPositions,
    add_lora,
    build_llava,
    check_source,
    check_vocabulary,
    load_llava,
    vision_tower,
    widen_patch_embedding,
)
from rose_d2.modeling.backbone.lmm import LMMBackbone, LMMOutput
from rose_d2.prompts.conversation import EncodedPrompt
from rose_d2.prompts.tokenizer import build_tokenizer
from rose_d2.structures.patches import PatchGrid

# The kinds of layers for which transformers' Qwen2 takes masks.
_MASKS = ("full_attention", "sliding_attention")


@BACKBONE_REGISTRY.register()
class LlavaOneVisionBackbone(LMMBackbone):
    """Hugging Face's LLaVA-OneVision, unmodified but for a fourth input channel.

    One square view of the image goes through SigLIP with interpolated position embeddings, the
    states before its last layer norm go through the projector, and the language model reads
    them between the two halves of the prompt (paper section 3.2). `get_image_features` of
    transformers cannot take a single view of another size, so its steps are called one by one.
    """

    @configurable
    def __init__(
        self,
        *,
        model: LlavaOnevisionForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        grid: PatchGrid,
        pixel_mean: list[float],
        pixel_std: list[float],
        prompt_attention: str = "bidirectional",
        patch_positions: bool = False,
        image_newline: bool = False,
        gradient_checkpointing: bool = False,
        lora: CfgNode | None = None,
    ) -> None:
        """
        Args:
            model: LLaVA-OneVision with its weights and a three-channel patch embedding.
            tokenizer: its tokenizer, with a chat template.
            grid: patches of the square view.
            pixel_mean: SigLIP's mean per channel, RGB in 0..255.
            pixel_std: SigLIP's standard deviation per channel.
            prompt_attention: "bidirectional" (prefix-LM) or "causal".
            patch_positions: add `PatchPositions`, which train with the patch embedding.
            image_newline: the model's own end-of-view vector behind the patches, as Hugging Face
                appends it to a view.
            gradient_checkpointing: recompute activations in the backward pass.
            lora: MODEL.LORA, or None for no adapters.

        Raises:
            ValueError: for another `prompt_attention`, or a tokenizer larger than the embedding.
        """
        super().__init__()
        if prompt_attention not in ("bidirectional", "causal"):
            raise ValueError(
                f"MODEL.LMM.PROMPT_ATTENTION is {prompt_attention!r}; allowed are bidirectional "
                "and causal."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.grid = grid
        self.hidden_size = model.config.text_config.hidden_size
        self.prompt_attention = prompt_attention
        self.image_newline = image_newline
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(3, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(3, 1, 1), False)
        check_vocabulary(model, tokenizer)
        self.patch_positions: nn.Module = nn.Identity()
        if patch_positions:
            self.patch_positions = PatchPositions(grid.side, self.hidden_size).to(model.dtype)
        embeddings = self.vision_tower.embeddings
        embeddings.patch_embedding = widen_patch_embedding(embeddings.patch_embedding)
        if lora is not None:
            add_lora(model, lora)
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        lmm = cfg.MODEL.LMM
        check_source(cfg)
        tokenizer = build_tokenizer(lmm.TOKENIZER or lmm.PRETRAINED)
        return {
            "model": load_llava(cfg) if lmm.PRETRAINED else build_llava(cfg, tokenizer),
            "tokenizer": tokenizer,
            "grid": PatchGrid.from_image_size(lmm.IMAGE_SIZE, lmm.PATCH_SIZE),
            "pixel_mean": lmm.PIXEL_MEAN,
            "pixel_std": lmm.PIXEL_STD,
            "prompt_attention": lmm.PROMPT_ATTENTION,
            "patch_positions": lmm.PATCH_POSITIONS,
            "image_newline": lmm.IMAGE_NEWLINE,
            "gradient_checkpointing": lmm.GRADIENT_CHECKPOINTING,
            "lora": cfg.MODEL.LORA if cfg.MODEL.LORA.ENABLED else None,
        }

    @property
    def vision_tower(self) -> nn.Module:
        """SigLIP."""
        return vision_tower(self.model)

    def forward(
        self,
        images: torch.Tensor,
        prior_masks: torch.Tensor,
        prompts: list[EncodedPrompt],
        patches: torch.Tensor | None = None,
    ) -> LMMOutput:
        """See `LMMBackbone.forward`."""
        if patches is None:
            patches = self.encode_image(images, prior_masks)  # (B, P, D)
        inputs, prompt_lengths, lengths = self._join(patches, prompts)  # (B, L, D)
        states = self._run_joined(inputs, prompt_lengths, lengths)  # (B, L, D)
        starts = [len(prompt.before) for prompt in prompts]
        patch_features = torch.stack(
            [state[s : s + self.grid.num_patches] for state, s in zip(states, starts, strict=True)]
        )
        return LMMOutput(patch_features, *self._predict_responses(states, prompt_lengths, prompts))

    def encode_image(self, images: torch.Tensor, prior_masks: torch.Tensor) -> torch.Tensor:
        """See `LMMBackbone.encode_image`: projected states of SigLIP before its last norm."""
        normalised = (images.to(self.pixel_mean.dtype) - self.pixel_mean) / self.pixel_std
        pixels = torch.cat([normalised, prior_masks.to(normalised.dtype)], dim=1)  # (B, 4, I, I)
        dtype = self.vision_tower.embeddings.patch_embedding.weight.dtype
        hidden = self.model.model.vision_tower(
            pixels.to(dtype), interpolate_pos_encoding=True, output_hidden_states=True
        ).hidden_states[-1]
        return self.patch_positions(self.model.model.multi_modal_projector(hidden))

    def read_prompt(
        self, image: torch.Tensor, prior_mask: torch.Tensor, prompt: EncodedPrompt, cache: Cache
    ) -> torch.Tensor:
        """See `LMMBackbone.read_prompt`."""
        asked = EncodedPrompt(prompt.before, prompt.after)
        joined = self._join(self.encode_image(image, prior_mask), [asked])
        return self._run_joined(*joined, cache)[:, -1:]

    def embed_tokens(self, ids: torch.Tensor) -> torch.Tensor:
        """See `LMMBackbone.embed_tokens`."""
        return self.model.model.language_model.embed_tokens(ids)

    def add_tokens(self, tokens: Sequence[str]) -> None:
        """See `LMMBackbone.add_tokens`.

        Rows are added to the embedding and the output layer, tied or not, unless there is room:
        Qwen2's have more rows than its tokenizer has tokens.
        """
        self.tokenizer.add_tokens(list(tokens), special_tokens=True)
        if len(self.tokenizer) > self.model.config.text_config.vocab_size:
            # Not from the mean of all rows, which takes their covariance.
            self.model.resize_token_embeddings(len(self.tokenizer), mean_resizing=False)

    def run_text(self, embeddings: torch.Tensor, cache: Cache | None = None) -> torch.Tensor:
        """See `LMMBackbone.run_text`."""
        return self.model.model.language_model(
            inputs_embeds=embeddings, past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """See `LMMBackbone.logits`."""
        return self.model.lm_head(states)

    def parts(self) -> dict[str, list[tuple[str, nn.Parameter]]]:
        """See `LMMBackbone.parts`. A tied output layer belongs to embed_tokens only."""
        core = self.model.model
        tower = dict(self.vision_tower.named_parameters())
        is_patch = "embeddings.patch_embedding."
        # The states are taken before the last layer norm, and the pooling head is not run.
        unused = ("post_layernorm.", "head.")
        language = dict(core.language_model.named_parameters())
        positions = list(self.patch_positions.named_parameters())
        return {
            "patch_embed": [(n, p) for n, p in tower.items() if n.startswith(is_patch)] + positions,
            "vision_tower": [
                (n, p) for n, p in tower.items() if not n.startswith((is_patch, *unused))
            ],
            "projector": list(core.multi_modal_projector.named_parameters()),
            "embed_tokens": [(n, p) for n, p in language.items() if n.startswith("embed_tokens.")],
            "lora": [(n, p) for n, p in language.items() if "lora_" in n],
            "language_model": [
                (n, p)
                for n, p in language.items()
                if not n.startswith("embed_tokens.") and "lora_" not in n
            ],
            "lm_head": [] if self.is_tied else list(self.model.lm_head.named_parameters()),
        }

    @property
    def is_tied(self) -> bool:
        """Whether the output layer is the embedding itself (0.5B)."""
        return self.model.lm_head.weight is self.model.model.language_model.embed_tokens.weight

    def _join(
        self, patches: torch.Tensor, prompts: list[EncodedPrompt]
    ) -> tuple[torch.Tensor, list[int], list[int]]:
        """Splice patches into the token embeddings and pad on the right."""
        rows, prompt_lengths = [], []
        newline = self.model.model.image_newline[None].to(patches.dtype)  # (1, D)
        ends = [newline] if self.image_newline else []
        for image_patches, prompt in zip(patches, prompts, strict=True):
            ids = torch.tensor(
                prompt.before + prompt.after + prompt.response, device=patches.device
            )
            words = self.embed_tokens(ids).to(patches.dtype)
            before, after = words[: len(prompt.before)], words[len(prompt.before) :]
            rows.append(torch.cat([before, image_patches, *ends, after]))
            prompt_lengths.append(len(rows[-1]) - len(prompt.response))
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # (B, L, D)
        return inputs, prompt_lengths, [len(row) for row in rows]

    def _run_joined(
        self,
        inputs: torch.Tensor,
        prompt_lengths: list[int],
        lengths: list[int],
        cache: Cache | None = None,
    ) -> torch.Tensor:
        # Sequences are padded on the right only, so every token's position is its index.
        positions = torch.arange(inputs.shape[1], device=inputs.device)[None]
        return self.model.model.language_model(
            inputs_embeds=inputs,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
            **self._attention(inputs, prompt_lengths, lengths),
        ).last_hidden_state

    def _attention(
        self, inputs: torch.Tensor, prompt_lengths: list[int], lengths: list[int]
    ) -> dict[str, Any]:
        """Who attends to whom, in transformers' words; without a mask wherever none is needed.

        PyTorch's flash kernels take none.
        """
        if self.prompt_attention == "causal":
            return {}  # padding is behind all that is read
        if prompt_lengths == [inputs.shape[1]] * len(lengths):  # no response and no padding
            return {"attention_mask": dict.fromkeys(_MASKS), "is_causal": False}
        mask = prefix_attention_mask(
            torch.tensor(prompt_lengths, device=inputs.device),
            torch.tensor(lengths, device=inputs.device),
            inputs.shape[1],
        )
        if self.model.config.text_config._attn_implementation == "eager":  # which adds its mask
            lowest = torch.finfo(inputs.dtype).min
            mask = torch.zeros_like(mask, dtype=inputs.dtype).masked_fill(~mask, lowest)
        return {"attention_mask": mask}

    def _predict_responses(
        self, states: torch.Tensor, prompt_lengths: list[int], prompts: list[EncodedPrompt]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Logits where a label is, and only there; and the states there."""
        before_each, at_each, labels, images = [], [], [], []
        for index, (length, prompt) in enumerate(zip(prompt_lengths, prompts, strict=True)):
            end = length + len(prompt.response)
            before_each.append(states[index, length - 1 : end - 1])
            at_each.append(states[index, length:end])
            labels.extend(prompt.response)
            images.extend([index] * len(prompt.response))
        device = states.device
        return (
            self.logits(torch.cat(before_each)),
            torch.tensor(labels, dtype=torch.long, device=device),
            torch.tensor(images, dtype=torch.long, device=device),
            torch.cat(at_each),
        )


def prefix_attention_mask(
    prompt_lengths: torch.Tensor, lengths: torch.Tensor, max_length: int
) -> torch.Tensor:
    """Mask of right-padded sequences made of a prompt and a response (prefix-LM).

    Args:
        prompt_lengths: (B,) long, tokens of each prompt (image patches included).
        lengths: (B,) long, tokens of prompt and response, without padding.
        max_length: L, padded length.

    Returns:
        (B, 1, L, L) bool, True where the query (row) may attend to the key (column). Padding
        rows attend to themselves only, so that no row is empty.
    """
    position = torch.arange(max_length, device=lengths.device)
    allowed = position[None, :, None] >= position[None, None, :]  # causal (1, L, L)
    in_prompt = position[None, :] < prompt_lengths[:, None]  # (B, L)
    allowed = allowed | (in_prompt[:, :, None] & in_prompt[:, None, :])
    real = position[None, :] < lengths[:, None]  # (B, L)
    allowed = allowed & real[:, :, None] & real[:, None, :]
    allowed = allowed | torch.eye(max_length, dtype=torch.bool, device=lengths.device)
    return allowed[:, None]
