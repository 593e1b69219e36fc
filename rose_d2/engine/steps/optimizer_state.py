"""AdamW's state by parameter name: the form in which every step engine saves and resumes it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)


def trained_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """List the parameters that train, each shared one once, in the model's order."""
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


def check_optimizer_state(model: nn.Module, states: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse an optimizer state that belongs to other parameters.

    Args:
        model: unwrapped.
        states: see `StepEngine.state_dict`; empty before the first step.

    Raises:
        ValueError: a name or a shape does not fit the parameters that train.
    """
    if "param_groups" in states:
        raise ValueError(
            "This checkpoint's optimizer state is of an earlier version, which numbered the "
            "parameters: set MODEL.WEIGHTS to the checkpoint and leave out --resume."
        )
    trained = dict(trained_parameters(model))
    problems = [f"unexpected: {name}" for name in states if name not in trained]
    for name, parameter in trained.items():
        shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves it empty
        if name in states and states[name]["exp_avg"].shape != shape:
            saved = tuple(states[name]["exp_avg"].shape)
            problems.append(f"mismatched: {name} is {saved} there and {tuple(shape)} here")
    if problems:
        raise ValueError(
            "The checkpoint's optimizer state does not fit the parameters that train:\n  "
            + "\n  ".join(problems)
            + "\nResume with the config of the run, or set MODEL.WEIGHTS to the checkpoint and "
            "leave out --resume."
        )
    missing = [name for name in trained if name not in states]
    if states and missing:
        logger.warning("The optimizer starts anew for %d parameters: %s", len(missing), missing[:5])
