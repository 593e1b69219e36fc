"""What a run depends on, as hashes: configs, predictions, files; and the versions of libraries."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode, get_cfg

from rose_d2.config.defaults import add_rose_config

_GROUPS = ("MODEL", "TEST", "INPUT")
# Keys that say where and how a run happens, not what is computed.
_PLACE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "MODEL.SIGLIP_TEXT.CACHE_DIR",
    "DATALOADER.NUM_WORKERS",
    "INPUT.MAX_PIXELS",
    "TEST.SAVE_PREDICTIONS",
)
# Keys that change how a model is loaded or its answers are scored, but not the answers.
_SCORING_KEYS = (
    "MODEL.ALLOW_MISSING_KEYS",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.OPEN_METRICS",
    "TEST.RANK_BY_NAME",
)
# Keys that saved predictions of version 0.1.0 do not know: of training alone, and those that count
# only where they ask for something else than it did.
_NEW_TRAINING_KEYS = (
    "INPUT.REFINEMENT.TARGET_BOX_PROB",
    "INPUT.REFINEMENT.BOX_JITTER",
    "MODEL.ROSE.LOSS_WEIGHT.QUALITY",
    "MODEL.ROSE.PAIRS_PER_OBJECT",
)
_NEW_KEYS = {
    "INPUT.DEFAULT_TASK": "panoptic",
    "MODEL.LMM.IMAGE_NEWLINE": False,
    "MODEL.LMM.QUANTIZE": "none",
    "MODEL.MASK_HEAD.REGION_PROMPT": "none",
    "MODEL.REFINEMENT.BOX_AS_MASK": False,
    "MODEL.ROSE.SEGS_PER_TARGET": 3,
    "TEST.MAX_RESPONSE_TOKENS": 512,
    "TEST.NUM_SAMPLES": 0,
    "TEST.REFINEMENT.BOX": "prior",
    "TEST.REFINEMENT.CHANGE_MARGIN": 0.0,
    "TEST.REFINEMENT.KEEP_BETTER": False,
}
_PACKAGES = (
    "rose_d2",
    "torch",
    "torchvision",
    "transformers",
    "peft",
    "segment-anything",
    "numpy",
    "pycocotools",
    "faster-coco-eval",
    "nltk",
)


def prediction_fingerprint(
    cfg: CfgNode, dataset_name: str, num_samples: int, checkpoint_sha256: str
) -> dict[str, Any]:
    """Describe what a `PredictionStore` of a run depends on.

    Args:
        cfg: the config of the run.
        dataset_name: a registered dataset.
        num_samples: how many items it is evaluated on.
        checkpoint_sha256: of the weights.

    Returns:
        JSON values by name: `dataset`, `num_samples`, `checkpoint_sha256`, `config_hash` (of the
        settings that change predictions, not of the whole config) and those of these settings
        that are not ROSE's defaults.
    """
    settings = prediction_settings(cfg)
    plain = get_cfg()
    add_rose_config(plain)
    defaults = prediction_settings(plain)
    changed = {key: value for key, value in settings.items() if defaults.get(key) != value}
    return {
        "dataset": dataset_name,
        "num_samples": num_samples,
        "checkpoint_sha256": checkpoint_sha256,
        **changed,
        "config_hash": _hash(settings),
    }


def prediction_settings(cfg: CfgNode) -> dict[str, Any]:
    """The keys of a config that change what a model with given weights answers, by dotted name."""
    plain = yaml.safe_load(cfg.dump())
    groups = {name: plain[name] for name in _GROUPS}
    without = {*_PLACE_KEYS, *_SCORING_KEYS, *_NEW_TRAINING_KEYS}
    if not cfg.TEST.REFINEMENT.ENABLED:
        without |= {key for key in _NEW_KEYS if key.startswith("TEST.REFINEMENT.")}
    return {
        key: value
        for key, value in _leaves(groups)
        if key not in without and (key not in _NEW_KEYS or value != _NEW_KEYS[key])
    }


def _hash(settings: Mapping[str, Any]) -> str:
    """The first 16 hex digits of a SHA-256."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def config_hash(cfg: CfgNode) -> str:
    """Hash a config; equal for two runs that differ only in folders, device or workers.

    A key that came later and asks for nothing new does not change it.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    # Not the YAML text: it marks values that are one object, which a config read back has not.
    settings = dict(_leaves(yaml.safe_load(cfg.dump())))
    for key, value in _NEW_KEYS.items():
        if settings[key] == value:
            del settings[key]
    for key in _PLACE_KEYS:
        del settings[key]
    return _hash(settings)


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of rose_d2, of Python and of the libraries the numbers depend on."""
    # A detectron2 need not have been installed under its own name.
    versions = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions
