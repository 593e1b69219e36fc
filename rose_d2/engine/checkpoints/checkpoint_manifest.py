"""The manifest of a checkpoint folder: what it holds, with checksums, and which folder is whole.

A folder is whole if its `manifest.json` can be read and every file it lists has its size and
SHA-256. The manifest is written last, so nothing half-written or half-copied passes.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass, field

from rose_d2.engine.provenance import file_sha256

logger = logging.getLogger(__name__)

MANIFEST_NAME = "manifest.json"
_FORMAT = 1


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
        return Manifest(**content)
    except FileNotFoundError:
        raise ValueError(f"it has no {MANIFEST_NAME}, which is written last") from None
    except (AttributeError, KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its {MANIFEST_NAME} is not a whole one ({error})") from error


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
