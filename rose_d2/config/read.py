"""Reading a config: from a file, from the command line, and from an exported model.

An exported model is one folder with its own language model, SAM file and the rest.

    folder/lmm/               Hugging Face LLaVA-OneVision, adapters merged
    folder/sam.pth            Segment Anything
    folder/model.safetensors  heads, mask decoder, the patch embedding with its mask channel
    folder/config.yaml, README.md

`MODEL.WEIGHTS folder` loads all of it, for inference or to train on from there; so does
`MODEL.WEIGHTS folder/lmm`. An `lmm` without the rest is a language model to train from.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from rose_d2.config.defaults import add_rose_config
from rose_d2.config.ranges import check_ranges
from rose_d2.config.released import find_config, released_weights

logger = logging.getLogger(__name__)

_BASE = "_BASE_"
_MOST_VALUES = 100_000
LMM_FOLDER = "lmm"
SAM_FILE = "sam.pth"
_LMM_CONFIG = "config.json"
# What yacs and detectron2 raise for a wrong key or value.
_MISTAKES = (AssertionError, KeyError, ValueError)


def read_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Make ROSE's config with the values of a file and of the command line.

    If MODEL.WEIGHTS is an exported folder, the pretrained bases are taken from it as well.

    Args:
        config_file: a YAML file, or the name of a released one (`released.find_config`); nothing
            in it is executed.
        opts: KEY VALUE pairs, one after the other.

    Returns:
        The config, not frozen.

    Raises:
        ValueError: the file is missing, a key is unknown, or a value has another type or is out of
            its range (`config.ranges`).
    """
    config_file = find_config(config_file)
    cfg = get_cfg()
    add_rose_config(cfg)
    _check_files(config_file)
    # What yacs and detectron2 raise does not say where the key stands.
    try:
        cfg.merge_from_file(config_file, allow_unsafe=False)
    except (*_MISTAKES, AttributeError, TypeError, OSError, yaml.YAMLError) as error:
        raise ValueError(f"In {config_file}: {_reason(error)}") from error
    try:
        cfg.merge_from_list(list(opts))
    except _MISTAKES as error:
        raise ValueError(
            f"In the KEY VALUE pairs that change the config ({' '.join(map(str, opts))}): "
            f"{_reason(error)}"
        ) from error
    check_ranges(cfg)
    if "DATASETS.TRAIN" in opts and "DATASETS.TRAIN_WEIGHTS" not in opts:
        if cfg.DATASETS.TRAIN_WEIGHTS:
            logger.warning("DATASETS.TRAIN without DATASETS.TRAIN_WEIGHTS: all weigh the same.")
        cfg.DATASETS.TRAIN_WEIGHTS = ()
    use_exported_folder(cfg)
    return cfg


def _check_files(config_file: str) -> None:
    """Look at a config file and those it builds on, before anything is merged.

    Raises:
        ValueError: one cannot be read, holds no keys, is not on this machine, builds on itself, or
            is short but unfolds to something huge.
    """
    chain = [config_file]
    while True:
        file = chain[-1]
        try:
            content = yaml.safe_load(Path(file).read_text(encoding="utf-8-sig"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            named = _reason(error).replace("<unicode string>", file)
            raise ValueError(f"In {file}: {named}") from error
        if not isinstance(content, dict):
            what = "is empty" if content is None else f"holds a {type(content).__name__}"
            raise ValueError(f"In {file}: it {what}; a config has KEY: value lines.")
        if _unfolded(content, {}) > _MOST_VALUES:
            raise ValueError(f"In {file}: its aliases unfold to more than {_MOST_VALUES} values.")
        if _BASE not in content:
            return
        base = content[_BASE]
        if not isinstance(base, str) or "://" in base:
            raise ValueError(
                f"In {file}: {_BASE} is {base!r}; give the path of one config file on this machine."
            )
        base = os.path.expanduser(base)
        chain.append(os.path.normpath(os.path.join(os.path.dirname(file), base)))
        if chain[-1] in chain[:-1]:
            raise ValueError(f"In {file}: {_BASE} leads back to {chain[-1]}.")


def _unfolded(value: Any, known: dict[int, int]) -> int:
    """How many values something has once all that is shared in it is copied."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) not in known:
        known[id(value)] = _MOST_VALUES  # an alias of what is around it has no end
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(_unfolded(part, known) for part in parts)
    return known[id(value)]


def _reason(error: Exception) -> str:
    """What an exception says, in one line."""
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def read_released_config(
    config_file: str, opts: Sequence[str] = (), *, min_score: float | None = None
) -> CfgNode:
    """Do `read_config` for using a model: where no weights are named, with the released ones.

    Args:
        config_file: a YAML file.
        opts: KEY VALUE pairs, one after the other.
        min_score: takes the place of the score thresholds of instances and panoptic segments.

    Returns:
        The config, frozen.

    Raises:
        ValueError: see `read_config`.
    """
    cfg = read_config(config_file, opts)
    weights = released_weights(config_file)
    if "MODEL.WEIGHTS" not in opts and weights is not None:
        cfg.MODEL.WEIGHTS = weights
    if min_score is not None:
        cfg.TEST.SCORE_THRESH = cfg.TEST.PANOPTIC.SCORE_THRESH = min_score
    cfg.freeze()
    return cfg


def use_exported_folder(cfg: CfgNode) -> None:
    """If MODEL.WEIGHTS is an exported folder, let its files be the pretrained bases, in place.

    Args:
        cfg: not frozen; MODEL.LMM.PRETRAINED, MODEL.LMM.TOKENIZER and
            MODEL.MASK_HEAD.SAM_CHECKPOINT are replaced. Where MODEL.WEIGHTS is the language model
            of such a folder, it becomes the folder; where it is one alone, it becomes empty.
    """
    if not cfg.MODEL.WEIGHTS or "://" in cfg.MODEL.WEIGHTS:
        return
    folder = Path(cfg.MODEL.WEIGHTS).expanduser()
    if folder.suffix == ".safetensors":
        folder = folder.parent
    if (folder / _LMM_CONFIG).is_file():
        whole = folder.absolute().parent
        if folder.name != LMM_FOLDER or not (whole / "model.safetensors").is_file():
            logger.warning(
                "MODEL.WEIGHTS %s is a language model alone: a training starts from it, but to "
                "segment takes the whole exported folder, with model.safetensors and %s.",
                folder,
                SAM_FILE,
            )
            cfg.MODEL.LMM.PRETRAINED, cfg.MODEL.LMM.TOKENIZER = str(folder), ""
            cfg.MODEL.WEIGHTS = ""
            return
        folder = whole
        cfg.MODEL.WEIGHTS = str(folder)
    if not (folder / LMM_FOLDER / _LMM_CONFIG).is_file():
        return
    cfg.MODEL.LMM.PRETRAINED = str(folder / LMM_FOLDER)
    cfg.MODEL.LMM.TOKENIZER = ""
    cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = str(folder / SAM_FILE)
    logger.info("%s is an exported model: its own language model and SAM are used.", folder)
