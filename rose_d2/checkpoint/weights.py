"""Model weights in safetensors files: what is kept, and the strict check when loading."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rose_d2.config.read import LMM_FOLDER, SAM_FILE

logger = logging.getLogger(__name__)

SCRIPT_NAME = "zero_to_fp32.py"
_PATTERN = "pytorch_model*.bin"
# Submodule -> what beside the weights of an exported model holds the rest of its weights.
_BASES = {"backbone.model": LMM_FOLDER, "mask_head": SAM_FILE}
_BASES_KEY = "bases_beside"


def keys_to_save(model: nn.Module) -> list[str]:
    """List the state-dict keys a checkpoint of this model holds.

    Frozen parameters of a pretrained base are left out, and the scales beside quantised ones.
    Frozen ones that started from random numbers are kept, for they have no other place, and so
    are all persistent buffers.

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
    known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    scales = {name for name in model.state_dict() if name.startswith(bases) and name not in known}
    return [name for name in model.state_dict() if name not in left_out | scales]


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
    refuse_non_finite(tensors, path)
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
    saved_bases = _dict_of(metadata, "base_revisions", path)
    if not beside and saved_bases != model.base_revisions():
        logger.warning(
            "%s was trained on the frozen bases %s, this model uses %s.",
            path,
            saved_bases,
            model.base_revisions(),
        )
    own = model.state_dict()
    fitting = {k: v for k, v in state.items() if k in own and v.shape == own[k].shape}
    refuse_non_finite(fitting, path)
    model.load_state_dict(fitting, strict=False)


def _dict_of(metadata: Mapping[str, str], key: str, path: str) -> dict[str, str]:
    """An entry of a file's metadata, which is JSON; {} without it.

    Raises:
        ValueError: it is something else.
    """
    try:
        value = json.loads(metadata.get(key, "{}"))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(v, str) for v in value.values()):
        raise ValueError(f"The metadata of {path} have no dict of text in {key}: it is damaged.")
    return value


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
        elif tensor.is_floating_point() != own[name].is_floating_point() or tensor.is_complex():
            problems.append(
                f"mismatched: {name} is {tensor.dtype} in the file, {own[name].dtype} in the model"
            )
    for name, first in tied.items():
        if name in state and first in state and not torch.equal(state[name], state[first]):
            problems.append(f"mismatched: {name} and {first} are tied here, not in the file")
    return problems


def refuse_non_finite(state: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights of which nothing can come.

    Args:
        state: tensors by name.
        source: what they are, for the message.

    Raises:
        ValueError: one has a NaN or an infinite number; names the first ones.
    """
    broken = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all()
    ]
    if broken:
        raise ValueError(
            f"{source}: {len(broken)} of {len(state)} weights have NaN or infinite numbers, first "
            f"{', '.join(broken[:3])}; the training diverged: take an earlier checkpoint, or train "
            "with a lower SOLVER.BASE_LR."
        )


def read_torch_file(path: str | Path, *, mmap: bool = False) -> dict[str, Any]:
    """Read a dict that `torch.save` wrote, without running code.

    Args:
        path: the file.
        mmap: map it, so that the processes of a machine share one copy in memory.

    Raises:
        ValueError: it is damaged, of another format, holds no dict, or asks for code.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except FileNotFoundError:
        raise
    except Exception as error:  # PyTorch reports foreign files with whatever its parsers meet
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"{path} is no file that PyTorch can read without running code from it "
            f"({first[:150]!r}): it is damaged or of another format."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; a dict of tensors is needed.")
    return content


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
        state |= read_torch_file(file)
    strange = [name for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise ValueError(f"{folder} holds more than tensors, first {strange[0]!r}.")
    refuse_non_finite(state, str(folder))
    problems = compare_keys(model, state)
    if problems:
        raise ValueError(
            f"{folder} does not fit the model:\n  " + "\n  ".join(problems) + "\n"
            "Use the config it was trained with."
        )
    model.load_state_dict(state, strict=False)
    save_weights(model, str(path))


def bases_metadata() -> dict[str, str]:
    """Entry for the metadata of `model.safetensors`: further weights are in files beside it."""
    return {_BASES_KEY: json.dumps(_BASES)}


def modules_beside(
    weights_file: str, metadata: Mapping[str, str], base_revisions: Mapping[str, str]
) -> tuple[str, ...]:
    """List the submodules of which a weights file holds a part and files beside it the rest.

    Args:
        weights_file: path of a safetensors file.
        metadata: its metadata.
        base_revisions: of the model that is to take it, see `ROSE.base_revisions`.

    Returns:
        Prefixes of parameter names; none for an ordinary checkpoint.

    Raises:
        ValueError: the model was not built from the files beside the weights.
    """
    expected = _dict_of(metadata, _BASES_KEY, weights_file)
    folder = Path(weights_file).parent
    for module, name in expected.items():
        base = base_revisions.get(module, "nothing").removesuffix("@local")
        # SAM's file is known by its name only.
        place = Path(name) if name == SAM_FILE else (folder / name).resolve()
        if (Path(base) if name == SAM_FILE else Path(base).resolve()) != place:
            raise ValueError(
                f"{weights_file} belongs to the language model {folder / LMM_FOLDER} and to "
                f"{folder / SAM_FILE}, but the model's {module} was made from {base}: set "
                "MODEL.LMM.PRETRAINED and MODEL.MASK_HEAD.SAM_CHECKPOINT to them, which "
                "rose_d2.config.read.read_config does by itself for MODEL.WEIGHTS."
            )
    return tuple(f"{module}." for module in expected)
