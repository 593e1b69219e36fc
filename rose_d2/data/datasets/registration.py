"""How a dataset enters detectron2's catalogs, and what a user hears when its files are missing."""

from __future__ import annotations

import colorsys
import contextlib
import logging
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

logger = logging.getLogger(__name__)

_ENTRIES: dict[str, DatasetEntry] = {}
_STRICT: ContextVar[bool] = ContextVar("strict_annotations", default=False)
_LEFT_OUT: ContextVar[list[tuple[str, str, str]] | None] = ContextVar("left_out", default=None)
_REPORTED: set[str] = set()
_GOLDEN_ANGLE = 0.618034


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


def check_files(name: str) -> None:
    """Refuse a dataset whose files are not all there; one that others registered is not known.

    Args:
        name: of a dataset.

    Raises:
        FileNotFoundError: a file is missing; the message says how to get it.
    """
    entry = _ENTRIES.get(name)
    if entry is not None and entry.missing_files():
        entry.load_dicts()  # raises


def _is_present(path: Path) -> bool:
    return next(path.iterdir(), None) is not None if path.is_dir() else path.exists()


@contextlib.contextmanager
def strict_annotations(on: bool = True) -> Iterator[None]:
    """Within this context a broken annotation raises ValueError instead of being counted.

    Args:
        on: False counts again, whatever the context around says.
    """
    token = _STRICT.set(on)
    try:
        yield
    finally:
        _STRICT.reset(token)


@contextlib.contextmanager
def recorded_left_out() -> Iterator[list[tuple[str, str, str]]]:
    """Within this context all that loaders leave out is listed: (file, reason, which one)."""
    rows: list[tuple[str, str, str]] = []
    token = _LEFT_OUT.set(rows)
    try:
        yield rows
    finally:
        _LEFT_OUT.reset(token)


class BrokenAnnotations:
    """Counts what a loader had to leave out of one file.

    Args:
        source: the annotation file, for messages.
    """

    def __init__(self, source: str | Path) -> None:
        self.source = source
        self.counts: dict[str, int] = {}
        self._examples: dict[str, str] = {}
        self._notes: list[str] = []

    def add(self, reason: str, example: str) -> None:
        """Count one annotation that is left out.

        Args:
            reason: what is wrong, in the plural, e.g. "annotations without a polygon".
            example: which one it is, e.g. "annotation 17 of image 5".

        Raises:
            ValueError: within `strict_annotations`.
        """
        if _STRICT.get():
            raise ValueError(
                f"{self.source}: {reason}, first {example}; repair the file, or leave strict mode "
                "to skip such annotations."
            )
        self.counts[reason] = self.counts.get(reason, 0) + 1
        self._examples.setdefault(reason, example)
        rows = _LEFT_OUT.get()
        if rows is not None:
            rows.append((str(self.source), reason, example))

    def note(self, sentence: str) -> None:
        """Report something strange of the whole file beside what is left out."""
        self._notes.append(sentence)

    def parts(self) -> list[str]:
        """What to say of the file: the notes, then the counts by reason."""
        counts = [
            f"{count} {reason} (first: {self._examples[reason]})"
            for reason, count in self.counts.items()
        ]
        return [*self._notes, *([f"left out {counts[0]}", *counts[1:]] if counts else [])]

    def report(self) -> None:
        """Log one warning with all counts, once a process; nothing when everything was sound."""
        if not self.parts():
            return
        sentence = f"{self.source}: {'; '.join(self.parts())}."
        # A run reads its files several times: to train, to evaluate, to score.
        logger.log(logging.DEBUG if sentence in _REPORTED else logging.WARNING, sentence)
        _REPORTED.add(sentence)


def distinct_colors(count: int) -> list[list[int]]:
    """One RGB colour per class, 0 to 255; neighbours in the list differ by the golden angle in hue.

    Args:
        count: number of classes.
    """
    hues = [index * _GOLDEN_ANGLE % 1 for index in range(count)]
    return [[round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.7, 0.95)] for hue in hues]
