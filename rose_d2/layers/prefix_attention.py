"""Attention masks in which a prompt sees itself whole and a response sees only its past."""

from __future__ import annotations

import torch


def prefix_attention_mask(
    prompt_lengths: torch.Tensor, lengths: torch.Tensor, max_length: int, bidirectional: bool
) -> torch.Tensor:
    """Mask of right-padded sequences made of a prompt and a response.

    Args:
        prompt_lengths: (B,) long, tokens of each prompt (image patches included).
        lengths: (B,) long, tokens of prompt and response, without padding.
        max_length: L, padded length.
        bidirectional: whether all prompt tokens attend to each other (prefix-LM); else causal.

    Returns:
        (B, 1, L, L) bool, True where the query (row) may attend to the key (column). Padding
        rows attend to themselves only, so that no row is empty.
    """
    position = torch.arange(max_length, device=lengths.device)
    allowed = position[None, :, None] >= position[None, None, :]  # causal (1, L, L)
    if bidirectional:
        in_prompt = position[None, :] < prompt_lengths[:, None]  # (B, L)
        allowed = allowed | (in_prompt[:, :, None] & in_prompt[:, None, :])
    real = position[None, :] < lengths[:, None]  # (B, L)
    allowed = allowed & real[:, :, None] & real[:, None, :]
    allowed = allowed | torch.eye(max_length, dtype=torch.bool, device=lengths.device)
    return allowed[:, None]
