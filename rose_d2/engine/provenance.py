"""What a number or a weight file came from: config hash, checksums, versions, results.json."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

import detectron2
import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from rose_d2.engine.protocol import dataset_protocol

# Keys that say where and how a run happens, not what is computed.
_PLACE_KEYS = (
    "OUTPUT_DIR",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "MODEL.SIGLIP_TEXT.CACHE_DIR",
    "DATALOADER.NUM_WORKERS",
    "TEST.SAVE_PREDICTIONS",
)
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


def config_hash(cfg: CfgNode) -> str:
    """Hash a config; equal for two runs that differ only in folders, device or workers.

    Returns:
        The first 16 hex digits of a SHA-256.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for key in _PLACE_KEYS:
        *parents, last = key.split(".")
        node = cfg
        for parent in parents:
            node = node[parent]
        node[last] = ""
    # Not the YAML text: it marks values that are one object, which a config read back has not.
    plain = json.dumps(yaml.safe_load(cfg.dump()), sort_keys=True)
    return hashlib.sha256(plain.encode()).hexdigest()[:16]


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


def run_record(
    cfg: CfgNode,
    results: Mapping[str, Any],
    weights_file: str | None = None,
    checkpoint_sha256: str | None = None,
) -> dict[str, Any]:
    """Everything results.json says; two runs of one thing give the same, there is no date in it.

    Args:
        cfg: the config of the run.
        results: dataset name -> task -> metric -> number. NaN and infinity become null.
        weights_file: the safetensors file the model was loaded from; None if it is not here.
        checkpoint_sha256: of the weights, where it is known already; None reads the file.

    Returns:
        The content of the file: `results`, `protocol` per dataset (see `dataset_protocol`),
        `config_hash`, `checkpoint`, `dataset_sizes` (images, or sentences) and `versions`.
    """
    if checkpoint_sha256 is None and weights_file is not None:
        checkpoint_sha256 = file_sha256(weights_file)
    return {
        "results": _finite(results),
        "protocol": {name: dataset_protocol(cfg, tasks) for name, tasks in results.items()},
        "config_hash": config_hash(cfg),
        "checkpoint": {"path": weights_file, "sha256": checkpoint_sha256},
        "dataset_sizes": {name: len(DatasetCatalog.get(name)) for name in results},
        "versions": library_versions(),
    }


def write_results(
    cfg: CfgNode, results: Mapping[str, Any], weights_file: str, folder: str | None = None
) -> str:
    """Write `results.json`, see `run_record`.

    Args:
        cfg: the config of the run.
        results: dataset name -> task -> metric -> number.
        weights_file: the safetensors file the model was loaded from.
        folder: where to; None is `OUTPUT_DIR`.

    Returns:
        The path of the file.
    """
    return write_record(run_record(cfg, results, weights_file), folder or cfg.OUTPUT_DIR)


def write_record(record: Mapping[str, Any], folder: str) -> str:
    """Write a `run_record` as `results.json` into a folder, at once or not at all.

    Returns:
        The path of the file.
    """
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "results.json")
    partial = path + ".partial"
    with open(partial, "w") as file:
        json.dump(record, file, indent=2)
        file.write("\n")
    os.replace(partial, path)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if value is None or not math.isfinite(value):
        return None
    return float(value)
