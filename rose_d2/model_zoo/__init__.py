"""Released configs and models by their names, with the functions of `detectron2.model_zoo`.

Example:
    >>> from rose_d2 import model_zoo
    >>> cfg = model_zoo.get_config("rose_tiny.yaml", trained=True)
    >>> model = model_zoo.get("rose_tiny.yaml", trained=True, device="cpu")
"""

from __future__ import annotations

from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.config.read import read_config
from rose_d2.config.released import find_config, released_weights

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file"]


def get_config_file(config_path: str) -> str:
    """The path of a released config.

    Args:
        config_path: its name relative to `configs/`, such as "rose_tiny.yaml".

    Raises:
        ValueError: there is none of this name; the message lists them.
    """
    return find_config(config_path)


def get_checkpoint_url(config_path: str) -> str:
    """The folder of the released weights of a config; all there are come with the package.

    Raises:
        ValueError: the config has no released weights.
    """
    weights = released_weights(config_path)
    if weights is None:
        raise ValueError(
            f"No weights of {config_path!r} have been released; set MODEL.WEIGHTS to your own, or "
            "take rose_tiny.yaml."
        )
    return weights


def get_config(config_path: str, trained: bool = False) -> CfgNode:
    """A released config, not frozen.

    Args:
        config_path: see `get_config_file`.
        trained: set MODEL.WEIGHTS to the released weights; without, it is what the file says.

    Raises:
        ValueError: there is no such config, or no weights of it.
    """
    opts = ["MODEL.WEIGHTS", get_checkpoint_url(config_path)] if trained else []
    return read_config(config_path, opts)


def get(config_path: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """A model of a released config.

    Args:
        config_path: see `get_config_file`.
        trained: load the released weights; without, weights are random or pretrained bases.
        device: takes the place of MODEL.DEVICE.

    Raises:
        ValueError: there is no such config, or no weights of it.
    """
    cfg = get_config(config_path, trained)
    if device is not None:
        cfg.MODEL.DEVICE = device
    model = build_model(cfg)
    if trained:
        RoseCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    return model
