"""What is NaN or infinite in a training step: on which rank, in which terms, with which images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detectron2.utils import comm
from torch import nn

# A message names this many images and parameters.
_MOST_NAMES = 20
_MOST_PARAMETERS = 5


@dataclass(frozen=True)
class Finding:
    """One rank's part; picklable, because ranks exchange it.

    Attributes:
        rank: whose.
        terms: per broken micro-batch its loss terms that are not finite and its images.
        images: all images of this rank's step.
        parameters: some parameters whose gradient is not finite.
    """

    rank: int
    terms: tuple[tuple[dict[str, float], list[str]], ...]
    images: list[str]
    parameters: list[str]


def find_non_finite(
    model: nn.Module,
    micro_losses: Sequence[dict[str, float]],
    micro_batches: Sequence[list[dict[str, Any]]],
) -> Finding:
    """Look for what is not finite on this rank.

    Args:
        model: after the backward pass and before clipping.
        micro_losses: loss terms of each micro-batch.
        micro_batches: inputs of each micro-batch.
    """
    names = [image_names(batch) for batch in micro_batches]
    broken = []
    for losses, images in zip(micro_losses, names, strict=True):
        bad = {name: value for name, value in losses.items() if not math.isfinite(value)}
        if bad:
            broken.append((bad, images))
    parameters = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not parameter.grad.isfinite().all()
    ]
    return Finding(
        rank=comm.get_rank(),
        terms=tuple(broken),
        images=[name for images in names for name in images],
        parameters=parameters[:_MOST_PARAMETERS],
    )


def image_names(batched_inputs: Sequence[dict[str, Any]]) -> list[str]:
    """Name the images of a batch for an error message: file name, else image id."""
    return [str(item.get("file_name", item.get("image_id", "?"))) for item in batched_inputs]


def describe(findings: Sequence[Finding], iteration: int) -> str:
    """Say in one sentence what is not finite, on which ranks and with which images."""
    broken = [finding for finding in findings if finding.terms]
    if broken:
        ranks = "; ".join(_describe_losses(finding) for finding in broken)
        return f"The loss became NaN or infinite at iteration {iteration}: {ranks}."
    parameters = next((f.parameters for f in findings if f.parameters), [])
    where = f", in {', '.join(parameters)}" if parameters else ""
    images = [name for finding in findings for name in finding.images]
    return (
        f"The gradient became NaN or infinite at iteration {iteration} although every loss is "
        f"finite{where}. Images of this step: {_join(images)}."
    )


def _describe_losses(finding: Finding) -> str:
    terms = {name: value for bad, _ in finding.terms for name, value in bad.items()}
    images = [name for _, names in finding.terms for name in names]
    values = ", ".join(f"{name} = {value}" for name, value in terms.items())
    return f"{values} on rank {finding.rank}, images {_join(images)}"


def _join(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more
