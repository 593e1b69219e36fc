"""Model weights in safetensors files: what is kept, and the strict check when loading."""

import json
import logging
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rose_d2.engine.export.exported_folder import modules_beside

logger = logging.getLogger(__name__)


def keys_to_save(model: nn.Module) -> list[str]:
    """List the state-dict keys a checkpoint of this model holds.

    Frozen parameters of a pretrained base are left out. Frozen ones that started from random
    numbers are kept, for they have no other place, and so are all persistent buffers.

    Args:
        model: its `base_revisions()` maps the name of each submodule that was loaded from a
            pretrained base to that base's name and revision.
    """
    bases = tuple(f"{module}." for module in model.base_revisions())
    left_out = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if name.startswith(bases) and not parameter.requires_grad
    }
    return [name for name in model.state_dict() if name not in left_out]


def tied_keys(model: nn.Module) -> dict[str, str]:
    """Map every further name of a shared parameter to its first name."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            tied[name] = first[id(parameter)]
    return tied


def save_weights(model: nn.Module, path: str, metadata: dict[str, str] | None = None) -> None:
    """Write what training changed as safetensors, each shared parameter once.

    Args:
        model: with `base_revisions()`; the bases go into the metadata.
        path: file to write.
        metadata: more entries for the metadata.
    """
    state, tied = model.state_dict(), tied_keys(model)
    tensors = {
        # A copy: safetensors refuses tensors that share memory.
        name: state[name].detach().to("cpu", copy=True).contiguous()
        for name in keys_to_save(model)
        if name not in tied
    }
    described = {
        "format": "pt",
        "base_revisions": json.dumps(model.base_revisions()),
        "tied": json.dumps(tied),
    }
    Path(path).touch()
    mode = os.stat(path).st_mode
    save_file(tensors, path, described | (metadata or {}))
    # save_file lets only the owner read; other files follow the user's umask.
    os.chmod(path, mode)


def load_weights(model: nn.Module, path: str, *, allow_missing_keys: bool = False) -> None:
    """Copy a safetensors file into a model, refusing anything that does not fit.

    Raises:
        ValueError: the file is damaged, or (unless `allow_missing_keys`) a key is missing,
            unexpected or of another shape; every such key is listed. Or it was exported together
            with bases that are not the model's.
    """
    state, metadata = read_safetensors(path)
    beside = modules_beside(path, metadata, model.base_revisions())
    problems = compare_keys(model, state, beside)
    if problems:
        report = f"{path} does not fit the model:\n  " + "\n  ".join(problems)
        if not allow_missing_keys:
            raise ValueError(
                report + "\nUse the config it was trained with, or set MODEL.ALLOW_MISSING_KEYS "
                "True to load what fits."
            )
        logger.warning(report)
    saved_bases = json.loads(metadata.get("base_revisions", "{}"))
    if not beside and saved_bases != model.base_revisions():
        logger.warning(
            "%s was trained on the frozen bases %s, this model uses %s.",
            path,
            saved_bases,
            model.base_revisions(),
        )
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    model.load_state_dict(fitting, strict=False)


def read_safetensors(path: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Raises:
        ValueError: the file is not a whole safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        return load_file(path), metadata
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a whole safetensors file ({error}): it is damaged or of another "
            "format; pickled weights (.pth, .bin) are not read."
        ) from error


def compare_keys(
    model: nn.Module, state: dict[str, torch.Tensor], elsewhere: tuple[str, ...] = ()
) -> list[str]:
    """Describe every key of `state` that does not fit the model, and every key it lacks.

    Args:
        model: see `keys_to_save`.
        state: what a file holds.
        elsewhere: beginnings of names that it need not hold.
    """
    own, tied = model.state_dict(), tied_keys(model)
    present = {tied.get(name, name) for name in state}
    needed = [name for name in keys_to_save(model) if not name.startswith(elsewhere)]
    missing = [name for name in needed if tied.get(name, name) not in present]
    problems = [f"missing: {name} {tuple(own[name].shape)}" for name in missing]
    for name, tensor in state.items():
        if name not in own:
            problems.append(f"unexpected: {name} {tuple(tensor.shape)}")
        elif tensor.shape != own[name].shape:
            problems.append(
                f"mismatched: {name} {tuple(tensor.shape)} in the file, "
                f"{tuple(own[name].shape)} in the model"
            )
    for name, first in tied.items():
        if name in state and first in state and not torch.equal(state[name], state[first]):
            problems.append(f"mismatched: {name} and {first} are tied here, not in the file")
    return problems
