"""Candidates for segmentation, before any of them is chosen."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class QueryProposals:
    """What a query proposer returns for a batch.

    Attributes:
        features: (B, P, D) one vector per candidate.
        objectness_logits: (B, P) logits of "an object of interest is here".
        roles: (P,) long role of each candidate, or None for candidates without a location.
    """

    features: torch.Tensor
    objectness_logits: torch.Tensor
    roles: torch.Tensor | None
