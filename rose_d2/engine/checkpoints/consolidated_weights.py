"""Weights that DeepSpeed's `zero_to_fp32.py` has put together from ZeRO shards.

A run of rose_d2 writes whole weights itself. Shards come from `DeepSpeedEngine.save_checkpoint`;
reading them means unpickling whatever is in them, which is left to DeepSpeed's own script.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from rose_d2.engine.checkpoints.weights import compare_keys, save_weights

SCRIPT_NAME = "zero_to_fp32.py"
_PATTERN = "pytorch_model*.bin"


def is_consolidated(folder: Path) -> bool:
    """Whether a folder is what `zero_to_fp32.py` writes."""
    return folder.is_dir() and any(folder.glob(_PATTERN))


def refuse_shards(folder: Path) -> None:
    """Say what to do with shards.

    Raises:
        ValueError: the folder holds ZeRO shards, and no weights that can be read.
    """
    if (folder / SCRIPT_NAME).is_file() and not (folder / "model.safetensors").is_file():
        raise ValueError(
            f"{folder} holds ZeRO shards that DeepSpeed wrote, not rose_d2: if you trust them, "
            f"run python {folder / SCRIPT_NAME} {folder} NEW_FOLDER and give NEW_FOLDER."
        )


def consolidated_to_safetensors(model: nn.Module, folder: Path, path: Path) -> None:
    """Load what `zero_to_fp32.py` wrote and save what was trained as rose_d2 does.

    Args:
        model: a ROSE model of the training's config; its weights are replaced.
        folder: with pytorch_model.bin, or its numbered parts. They are read without running code.
        path: safetensors file to write.

    Raises:
        ValueError: a key is missing, unexpected or of another shape; every such key is listed.
    """
    state: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob(_PATTERN)):
        state |= torch.load(file, map_location="cpu", weights_only=True)
    problems = compare_keys(model, state)
    if problems:
        raise ValueError(
            f"{folder} does not fit the model:\n  " + "\n  ".join(problems) + "\n"
            "Use the config it was trained with."
        )
    model.load_state_dict(state, strict=False)
    save_weights(model, str(path))
