"""What a number or a weight file came from: config hash, checksums, versions, results.json."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

# Keys that say where and how a run happens, not what is computed.
_PLACE_KEYS = ("OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATALOADER.NUM_WORKERS")
_PACKAGES = ("torch", "torchvision", "transformers", "peft", "segment-anything", "numpy")


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
    return hashlib.sha256(cfg.dump().encode()).hexdigest()[:16]


def file_sha256(path: str) -> str:
    """Return the SHA-256 of a file as hex digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed libraries the numbers depend on."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def write_results(cfg: CfgNode, results: Mapping[str, Any], weights_file: str) -> str:
    """Write `results.json` into `OUTPUT_DIR`.

    Args:
        cfg: the config of the run.
        results: dataset name -> task -> metric -> number. NaN and infinity become null.
        weights_file: the safetensors file the model was loaded from.

    Returns:
        The path of the file.
    """
    report = {
        "results": _finite(results),
        "config_hash": config_hash(cfg),
        "checkpoint": {"path": weights_file, "sha256": file_sha256(weights_file)},
        "dataset_sizes": {name: len(DatasetCatalog.get(name)) for name in results},
        "versions": library_versions(),
    }
    path = os.path.join(cfg.OUTPUT_DIR, "results.json")
    partial = path + ".partial"
    with open(partial, "w") as file:
        json.dump(report, file, indent=2)
        file.write("\n")
    os.replace(partial, path)
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    number = float(value)
    return number if math.isfinite(number) else None
