"""Checkpoints: one folder with `model.safetensors` and `training_state.pth`, written atomically."""

import logging
import os
import re
import shutil
from typing import Any

import torch
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from rose_d2.engine.weights import load_weights, save_weights

logger = logging.getLogger(__name__)

WEIGHTS_NAME = "model.safetensors"
TRAINING_STATE_NAME = "training_state.pth"
_PARTIAL_PREFIX = ".partial-"
_PERIODIC_NAME = re.compile(r"model_\d{7}")


class RoseCheckpointer(Checkpointer):
    """Saves what was trained as safetensors, beside optimizer, schedule and random states.

    A folder `OUTPUT_DIR/model_0000499` appears whole or not at all, and `last_checkpoint` names
    only whole ones, so a run may be killed at any moment. All ranks have to call `save`.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        keep: int = 0,
        allow_missing_keys: bool = False,
        config_hash: str = "",
        **checkpointables: Any,
    ) -> None:
        """
        Args:
            model: a ROSE model, possibly wrapped for data parallelism.
            save_dir: where `save` writes.
            keep: periodic checkpoints kept, newest first; 0 keeps all.
            allow_missing_keys: only warn where weights and model do not fit.
            config_hash: written into the metadata of the weights.
            checkpointables: objects with `state_dict` and `load_state_dict`, for resuming.
        """
        super().__init__(model, save_dir, save_to_disk=comm.is_main_process(), **checkpointables)
        self.keep = keep
        self.allow_missing_keys = allow_missing_keys
        self.config_hash = config_hash

    def save(self, name: str, **kwargs: Any) -> None:
        """Write the checkpoint folder `name` and remember it as the last one.

        Args:
            name: folder name inside `save_dir`.
            kwargs: more numbers and tensors to keep in the training state.
        """
        state = {key: item.state_dict() for key, item in self.checkpointables.items()} | kwargs
        if self.save_dir and self.save_to_disk:
            self._write(name, state)
        comm.synchronize()

    def _write(self, name: str, training_state: dict[str, Any]) -> None:
        folder = os.path.join(self.save_dir, name)
        partial = os.path.join(self.save_dir, _PARTIAL_PREFIX + name)
        logger.info("Saving checkpoint to %s", folder)
        shutil.rmtree(partial, ignore_errors=True)
        os.makedirs(partial)
        weights_file = os.path.join(partial, WEIGHTS_NAME)
        save_weights(self.model, weights_file, {"config_hash": self.config_hash})
        torch.save(training_state, os.path.join(partial, TRAINING_STATE_NAME))
        for file_name in os.listdir(partial):
            _flush_to_disk(os.path.join(partial, file_name))
        _move_folder(partial, folder)
        self.tag_last_checkpoint(name)
        self._remove_old()

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        path = os.path.join(self.save_dir, "last_checkpoint")
        with open(path + ".partial", "w") as file:
            file.write(last_filename_basename)
        _flush_to_disk(path + ".partial")
        os.replace(path + ".partial", path)

    def _remove_old(self) -> None:
        names = sorted(os.listdir(self.save_dir))
        periodic = [name for name in names if _PERIODIC_NAME.fullmatch(name)]
        old = periodic[: -self.keep] if self.keep else []
        old += [name for name in names if name.startswith(_PARTIAL_PREFIX)]
        for name in old:
            shutil.rmtree(os.path.join(self.save_dir, name))

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
            ValueError: keys or shapes do not fit and `allow_missing_keys` is off.
        """
        if not path:
            logger.info("MODEL.WEIGHTS is empty: the model keeps its initial weights.")
            return {}
        weights_file = self.find_weights(path)
        logger.info("Loading weights from %s", weights_file)
        load_weights(self.model, weights_file, allow_missing_keys=self.allow_missing_keys)
        names = list(self.checkpointables) if checkpointables is None else checkpointables
        if not names:
            return {}
        state = _read_training_state(os.path.dirname(weights_file))
        for name in names:
            self.checkpointables[name].load_state_dict(state.pop(name))
        return state

    def find_weights(self, path: str) -> str:
        """Return the local safetensors file a `MODEL.WEIGHTS` value stands for."""
        if "://" in path:
            path = self.path_manager.get_local_path(path)
        path = os.path.expanduser(path)
        file = os.path.join(path, WEIGHTS_NAME) if os.path.isdir(path) else path
        if not os.path.isfile(file):
            raise FileNotFoundError(
                f"No weights at {file}: set MODEL.WEIGHTS to a .safetensors file or to a folder "
                f"that holds {WEIGHTS_NAME}."
            )
        return file

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        if resume and not self.has_checkpoint():
            logger.warning("Nothing to resume in %s: starting from MODEL.WEIGHTS.", self.save_dir)
        return super().resume_or_load(path, resume=resume)


def _read_training_state(folder: str) -> dict[str, Any]:
    path = os.path.join(folder, TRAINING_STATE_NAME)
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f"Cannot resume from {folder}: it has no {TRAINING_STATE_NAME}. To start anew from "
            "its weights, set MODEL.WEIGHTS to it and leave out --resume."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def _move_folder(source: str, target: str) -> None:
    """Rename `source` to `target`, which may exist."""
    if os.path.isdir(target):
        replaced = source + ".old"
        shutil.rmtree(replaced, ignore_errors=True)
        os.replace(target, replaced)
    os.replace(source, target)


def _flush_to_disk(path: str) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
