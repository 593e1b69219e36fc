"""Checkpoints: one folder with weights, training state and manifest, written atomically."""

from __future__ import annotations

import json
import logging
import math
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from safetensors import SafetensorError
from torch import nn

from rose_d2.checkpoint.weights import load_weights, read_torch_file, save_weights
from rose_d2.config.fingerprint import file_sha256
from rose_d2.files import (
    hide_folder,
    new_folder,
    publish_folder,
    published_path,
    remove_hidden,
    write_text,
)

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
TRAINING_STATE_NAME = "training_state.pth"
_PERIODIC_NAME = re.compile(r"model_\d{7}")
MANIFEST_NAME = "manifest.json"
_FORMAT = 1


class RoseCheckpointer(Checkpointer):
    """Saves what was trained as safetensors, beside optimizer, schedule and random states.

    A folder `OUTPUT_DIR/model_0000499` appears whole or not at all, and `last_checkpoint` names
    only whole ones, so a run may be killed at any moment. Checksums in the folder's manifest
    tell later damage: resuming then takes the checkpoint before. All ranks have to call `save`
    and `resume_or_load`, and see the same files; only the main process writes.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        keep: int = 0,
        allow_missing_keys: bool = False,
        config_hash: str = "",
        gathered_parameters: Callable[[], AbstractContextManager] = nullcontext,
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: a ROSE model, possibly wrapped for data parallelism.
            save_dir: where `save` writes.
            keep: periodic checkpoints of this run that are kept, newest first; 0 keeps all.
            allow_missing_keys: only warn where weights and model do not fit.
            config_hash: written into the manifest and the metadata of the weights.
            gathered_parameters: makes a context, entered by all ranks, in which the model's
                parameters are whole in the main process, and written back if they change.
            checkpointables: objects with `state_dict` and `load_state_dict`, for resuming; all
                ranks call both.
        """
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.keep = keep
        self.allow_missing_keys = allow_missing_keys
        self.config_hash = config_hash
        self.gathered_parameters = gathered_parameters
        self._run = uuid.uuid4().hex
        self._checked = ""

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the checkpoint folder `name` and remember it as the last one.

        Args:
            name: folder name inside `save_dir`.
            kwargs: more numbers and tensors to keep in the training state; `iteration` also goes
                into the manifest.
        """
        state = {key: item.state_dict() for key, item in self.checkpointables.items()} | kwargs
        with self.gathered_parameters():
            if self.save_dir and self.save_to_disk:
                self._write(name, state)
        comm.synchronize()

    def _write(self, name: str, training_state: dict[str, Any]) -> None:
        folder = os.path.join(self.save_dir, name)
        logger.info("Saving checkpoint to %s", folder)
        hidden = new_folder(folder)
        try:
            self._fill(hidden, training_state)
        except (OSError, RuntimeError, SafetensorError) as error:
            # So safetensors and PyTorch report a full disk; what is half-written is in the way.
            free = shutil.disk_usage(self.save_dir).free
            shutil.rmtree(hidden, ignore_errors=True)
            raise ValueError(
                f"The checkpoint {folder} cannot be written, with {free / 1e6:.0f} MB free there "
                f"({' '.join(str(error).split())}): make room or take another OUTPUT_DIR, and "
                "--resume goes on from the last checkpoint, which is whole."
            ) from error
        publish_folder(hidden, folder)
        self.tag_last_checkpoint(name)
        self._remove_old()

    def _fill(self, hidden: str, training_state: dict[str, Any]) -> None:
        weights_file = os.path.join(hidden, WEIGHTS_NAME)
        save_weights(self.model, weights_file, {"config_hash": self.config_hash})
        torch.save(training_state, os.path.join(hidden, TRAINING_STATE_NAME))
        manifest = Manifest(
            run=self._run,
            iteration=training_state.get("iteration", -1),
            config_hash=self.config_hash,
            world_size=comm.get_world_size(),
        )
        write_manifest(hidden, manifest)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_text(
            os.path.join(self.save_dir, "last_checkpoint"), last_filename_basename, durable=True
        )

    def _remove_old(self) -> None:
        """Remove what is left of unfinished saves, and periodic checkpoints beyond `keep`."""
        own = [name for name in checkpoint_folders(self.save_dir) if self._wrote(name)]
        periodic = sorted(name for name in own if _PERIODIC_NAME.fullmatch(name))
        for name in periodic[: -self.keep] if self.keep else []:
            # First out of sight: a kill while its files go must not leave half of it there.
            hide_folder(os.path.join(self.save_dir, name))
        remove_hidden(self.save_dir)

    def _wrote(self, name: str) -> bool:
        try:
            return read_manifest(os.path.join(self.save_dir, name)).run == self._run
        except ValueError:
            return False

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights and, for the named checkpointables, the training state beside them.

        Args:
            path: a `.safetensors` file, a folder that holds `model.safetensors`, or an http(s)
                address of such a file; "" keeps the model as it is.
            checkpointables: names to restore; None: all this checkpointer has.

        Returns:
            What the training state holds besides the checkpointables.

        Raises:
            FileNotFoundError: there is no such file or folder.
            ValueError: the file is damaged, or keys or shapes do not fit and
                `allow_missing_keys` is off.
        """
        if not path:
            logger.info("MODEL.WEIGHTS is empty: the model keeps its initial weights.")
            return {}
        weights_file = self.find_weights(path)
        self._check_weights(weights_file)
        logger.info("Loading weights from %s", weights_file)
        with self.gathered_parameters():
            load_weights(self.model, weights_file, allow_missing_keys=self.allow_missing_keys)
        names = list(self.checkpointables) if checkpointables is None else checkpointables
        if not names:
            return {}
        folder = os.path.dirname(weights_file)
        state = _read_training_state(folder)
        missing = [name for name in names if name not in state]
        if missing:
            raise ValueError(
                f"Cannot resume from {folder}: its {TRAINING_STATE_NAME} lacks "
                f"{', '.join(missing)}, so it is not of such a training. To start anew from its "
                "weights, set MODEL.WEIGHTS to it and leave out --resume."
            )
        for name in names:
            self.checkpointables[name].load_state_dict(state.pop(name))
        return state

    def _check_weights(self, weights_file: str) -> None:
        """Compare weights with the manifest beside them, where there is one."""
        folder, name = os.path.split(weights_file)
        checked = os.path.abspath(folder) == self._checked
        if checked or not os.path.isfile(os.path.join(folder, MANIFEST_NAME)):
            return
        try:
            check_files(folder, read_manifest(folder), [name])
        except ValueError as error:
            raise ValueError(
                f"The checkpoint {folder} is damaged: {error}. Take another one, or remove its "
                f"{MANIFEST_NAME} if you changed the file on purpose."
            ) from error

    def find_weights(self, path: str) -> str:
        """Return the local safetensors file a `MODEL.WEIGHTS` value stands for.

        Args:
            path: the file, the folder it is in, or the OUTPUT_DIR of a training, whose newest
                checkpoint is meant.

        Raises:
            FileNotFoundError: there is none.
        """
        if "://" in path:
            path = self.path_manager.get_local_path(path)
        path = os.path.expanduser(path)
        last = os.path.join(path, "last_checkpoint")
        if os.path.isfile(last) and not os.path.isfile(os.path.join(path, WEIGHTS_NAME)):
            with open(last, encoding="utf-8") as named:
                path = os.path.join(path, named.read().strip())
        file = os.path.join(path, WEIGHTS_NAME) if os.path.isdir(path) else path
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"No weights at {file}: set MODEL.WEIGHTS to a .safetensors file or to a folder "
                f"that holds {WEIGHTS_NAME}."
            )
        return file

    def has_checkpoint(self) -> bool:
        return super().has_checkpoint() or bool(checkpoint_folders(self.save_dir))

    def get_checkpoint_file(self) -> str:
        """Return the newest whole checkpoint folder; all ranks call it and get the same.

        Raises:
            ValueError: there are checkpoints, but none is whole.
        """
        if not self.has_checkpoint():
            return ""
        folder = ""
        if comm.is_main_process():
            last = os.path.basename(super().get_checkpoint_file())
            folder = newest_whole(self.save_dir, last, [WEIGHTS_NAME, TRAINING_STATE_NAME])
        folder = comm.all_gather(folder)[0]
        self._checked = os.path.abspath(folder)
        return folder

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Continue from the newest whole checkpoint, or load only the weights at `path`.

        Raises:
            FileNotFoundError: there are no weights at `path`.
            ValueError: no checkpoint is whole, or the weights do not fit.
        """
        if not (resume and self.has_checkpoint()):
            if resume:
                logger.warning(
                    "Nothing to resume in %s: starting from MODEL.WEIGHTS.", self.save_dir
                )
            return self.load(path, checkpointables=[])
        folder = self._adopt(self.get_checkpoint_file())
        self._run = read_manifest(folder).run
        return self.load(folder)

    def _adopt(self, folder: str) -> str:
        """Give a whole checkpoint its name, if its save was stopped just before that."""
        place = published_path(folder)
        if comm.is_main_process() and place != folder:
            publish_folder(folder, place)
        comm.synchronize()
        self._checked = os.path.abspath(place)
        return place


def _read_training_state(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, TRAINING_STATE_NAME)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Cannot resume from {folder}: it has no {TRAINING_STATE_NAME}. To start anew from "
            "its weights, set MODEL.WEIGHTS to it and leave out --resume."
        )
    return read_torch_file(path, mmap=True)


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint folder says of itself.

    Attributes:
        run: the training run that wrote it; resuming continues a run, a new start is a new one.
        iteration: the last iteration done; -1 if it was not told.
        config_hash: of the config the model was trained with.
        world_size: processes that wrote it.
        saved_at: seconds since 1970.
        files: file name -> {"bytes": size, "sha256": hex digits}.
    """

    run: str
    iteration: int
    config_hash: str
    world_size: int
    saved_at: float = field(default_factory=time.time)
    files: dict[str, dict[str, int | str]] = field(default_factory=dict)


def write_manifest(folder: str, manifest: Manifest) -> None:
    """Describe all files of a folder in its `manifest.json`.

    Args:
        folder: holds files only, all of them finished.
        manifest: its `files` are replaced by what is there.
    """
    files = {name: _describe_file(folder, name) for name in sorted(os.listdir(folder))}
    with open(os.path.join(folder, MANIFEST_NAME), "w") as file:
        json.dump({"format": _FORMAT, **asdict(manifest), "files": files}, file, indent=1)


def read_manifest(folder: str) -> Manifest:
    """Read a folder's manifest; the files are not looked at.

    Raises:
        ValueError: it is missing, cut off or of a later format.
    """
    path = os.path.join(folder, MANIFEST_NAME)
    try:
        with open(path) as file:
            content = json.load(file)
        if content.pop("format") != _FORMAT:
            raise ValueError(f"{path} has a format this version of rose_d2 does not know")
        manifest = Manifest(**content)
        _check_types(manifest)
        return manifest
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST_NAME}, which is written last") from None
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its {MANIFEST_NAME} is not a whole one ({error})") from error


def _check_types(manifest: Manifest) -> None:
    """Refuse a manifest that something else has written into.

    Raises:
        TypeError: a value is of another type.
    """
    known = {"run": str, "iteration": int, "config_hash": str, "world_size": int, "files": dict}
    for name, kind in known.items():
        if not isinstance(getattr(manifest, name), kind):
            raise TypeError(f"its {name} is {getattr(manifest, name)!r}")
    if not isinstance(manifest.saved_at, int | float) or not math.isfinite(manifest.saved_at):
        raise TypeError(f"its saved_at is {manifest.saved_at!r}")
    for name, entry in manifest.files.items():
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= set(entry):
            raise TypeError(f"it describes {name} by {entry!r}")


def check_files(folder: str, manifest: Manifest, names: list[str]) -> None:
    """Compare files of a folder with its manifest.

    Args:
        folder: a checkpoint.
        manifest: of this folder.
        names: files that have to be there.

    Raises:
        ValueError: one of them is missing or differs; says which and how.
    """
    for name in names:
        if name not in manifest.files:
            raise ValueError(f"its {MANIFEST_NAME} does not list {name}")
        expected, path = manifest.files[name], os.path.join(folder, name)
        if not os.path.isfile(path):
            raise ValueError(f"{name} is missing")
        size = os.path.getsize(path)
        if size != expected["bytes"]:
            raise ValueError(f"{name} has {size} bytes instead of {expected['bytes']}")
        if file_sha256(path) != expected["sha256"]:
            raise ValueError(f"{name} has another SHA-256 than when it was saved")


def newest_whole(save_dir: str, last: str, required: list[str]) -> str:
    """Return the folder to resume from: the last one, or the newest before it that is whole.

    Args:
        save_dir: OUTPUT_DIR of a run.
        last: name of the folder that counts as the last one; "" if that is not known.
        required: files a checkpoint needs for resuming.

    Raises:
        ValueError: there is a checkpoint, but none is whole.
    """
    damage = []
    for folder in _candidates(save_dir, last):
        try:
            manifest = read_manifest(folder)
            check_files(folder, manifest, sorted({*manifest.files, *required}))
        except ValueError as error:
            logger.warning("Skipping the damaged checkpoint %s: %s.", folder, error)
            damage.append(f"{folder}: {error}")
            continue
        return folder
    raise ValueError(
        f"Cannot resume, no checkpoint in {save_dir} is whole:\n  " + "\n  ".join(damage) + "\n"
        "Bring a whole one back, or start without --resume (with MODEL.WEIGHTS set to a "
        "model.safetensors, if one of them is still good)."
    )


def _candidates(save_dir: str, last: str) -> list[str]:
    """The last folder, and those of the same run from the newest to the oldest."""
    manifests: dict[str, Manifest] = {}
    for name in checkpoint_folders(save_dir):
        try:
            manifests[name] = read_manifest(os.path.join(save_dir, name))
        except ValueError:
            continue
    named = manifests.pop(last, None)
    if named is None and manifests:
        named = max(manifests.values(), key=lambda manifest: manifest.saved_at)
    others = [name for name, manifest in manifests.items() if named and manifest.run == named.run]
    others.sort(key=lambda name: (manifests[name].iteration, manifests[name].saved_at))
    names = ([last] if last else []) + others[::-1]
    return [os.path.join(save_dir, name) for name in names]


def checkpoint_folders(save_dir: str) -> list[str]:
    """List the names of the folders with a manifest, also those not yet at their final name."""
    if not os.path.isdir(save_dir):
        return []
    return sorted(
        name
        for name in os.listdir(save_dir)
        if os.path.isfile(os.path.join(save_dir, name, MANIFEST_NAME))
    )


def _describe_file(folder: str, name: str) -> dict[str, int | str]:
    path = os.path.join(folder, name)
    return {"bytes": os.path.getsize(path), "sha256": file_sha256(path)}
