"""How a dataset enters detectron2's catalogs, and what a user hears when its files are missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog


@dataclass(frozen=True)
class DatasetEntry:
    """One registered dataset.

    Attributes:
        name: in detectron2's catalogs, e.g. "ade20k_sem_seg_train".
        load: reads the annotation files and returns detectron2 dataset dicts.
        metadata: for MetadataCatalog, with at least `task` and `evaluator_type`.
        files: every file and folder it needs, in the order in which a user gets or makes them.
        how_to_get: one or two sentences with the commands that bring these files about.
        num_images: published number of images of the split, or None.
        num_items: published number of items, where it is another one (sentences), or None.
    """

    name: str
    load: Callable[[], list[dict[str, Any]]]
    metadata: dict[str, Any]
    files: tuple[Path, ...]
    how_to_get: str
    num_images: int | None = None
    num_items: int | None = None

    def missing_files(self) -> list[Path]:
        """Those of `files` that do not exist, or are empty folders."""
        return [path for path in self.files if not _is_present(path)]

    def load_dicts(self) -> list[dict[str, Any]]:
        """Load the dataset; every dict knows its dataset and its task.

        Raises:
            FileNotFoundError: a file is missing; the message says how to get it.
            ValueError: an annotation file is damaged.
        """
        missing = self.missing_files()
        if missing:
            raise FileNotFoundError(
                f"The dataset {self.name!r} is not complete: {missing[0]} is missing. "
                f"{self.how_to_get} `python tools/check_data.py` shows what is there; to look in "
                "another folder set DETECTRON2_DATASETS before starting Python."
            )
        dicts = self.load()
        for record in dicts:
            record["dataset_name"] = self.name
            record["task"] = self.metadata["task"]
        return dicts


_ENTRIES: dict[str, DatasetEntry] = {}


def register(entry: DatasetEntry) -> None:
    """Put a dataset into detectron2's catalogs; one of the same name is replaced.

    No file is opened.

    Args:
        entry: what to register.
    """
    unregister(entry.name)
    DatasetCatalog.register(entry.name, entry.load_dicts)
    MetadataCatalog.get(entry.name).set(**entry.metadata)
    _ENTRIES[entry.name] = entry


def unregister(name: str) -> None:
    """Take a dataset out of the catalogs; nothing happens when it is not there.

    Args:
        name: of a dataset, also one that detectron2 itself registered.
    """
    if name in DatasetCatalog.list():
        DatasetCatalog.remove(name)
    MetadataCatalog.pop(name, None)
    _ENTRIES.pop(name, None)


def registered_entries() -> dict[str, DatasetEntry]:
    """What `register` was called with, by name, in order."""
    return dict(_ENTRIES)


def _is_present(path: Path) -> bool:
    return next(path.iterdir(), None) is not None if path.is_dir() else path.exists()
