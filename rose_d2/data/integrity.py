"""What of a dataset is on disk, and whether it can be used."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog

from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.registration import DatasetEntry

PRESENT, PARTIAL, MISSING, DAMAGED = "present", "partial", "missing", "damaged"


@dataclass
class DatasetReport:
    """The state of one dataset.

    Attributes:
        entry: the dataset.
        status: "present", "partial" (some of its files), "missing" (none of them), or "damaged"
            (all files, but they cannot be read or an item cannot be used).
        missing: files and folders that are not there, in the order in which to get them.
        num_images: distinct images, None where the dataset was not loaded.
        num_items: items, likewise.
        problems: one sentence per thing that is wrong.
        num_opened: items that were opened and turned into targets.
    """

    entry: DatasetEntry
    status: str
    missing: list[Path] = field(default_factory=list)
    num_images: int | None = None
    num_items: int | None = None
    problems: list[str] = field(default_factory=list)
    num_opened: int = 0


def check_dataset(
    entry: DatasetEntry, mapper: RoseDatasetMapper, num_samples: int
) -> DatasetReport:
    """Look for a dataset's files, load its annotations and try some of its items.

    Args:
        entry: the dataset.
        mapper: in training mode; opens image and annotations and builds the targets.
        num_samples: items to try, spread evenly over the dataset.

    Returns:
        The report; what is wrong is in it, not raised.
    """
    missing = entry.missing_files()
    if missing:
        status = MISSING if len(missing) == len(entry.files) else PARTIAL
        return DatasetReport(entry, status, missing=missing)
    try:
        records = entry.load_dicts()
    except (ValueError, OSError, KeyError, AssertionError) as error:
        return DatasetReport(entry, DAMAGED, problems=[_sentence(error)])
    report = DatasetReport(
        entry,
        PRESENT,
        num_images=len({record["file_name"] for record in records}),
        num_items=len(records),
    )
    if not records:
        report.problems.append("its annotation files list no item")
    for index in np.unique(np.linspace(0, len(records) - 1, num_samples).astype(int)):
        if index >= 0 and records:
            _try_item(records[index], mapper, report)
    if report.problems:
        report.status = DAMAGED
    return report


def _try_item(record: dict[str, Any], mapper: RoseDatasetMapper, report: DatasetReport) -> None:
    try:
        mapped = mapper(record, np.random.default_rng(0))
        _check_classes(mapped, report.entry.name)
        report.num_opened += 1
    except (ValueError, OSError, KeyError, IndexError) as error:
        report.problems.append(f"item of {record['file_name']}: {_sentence(error)}")


def _check_classes(mapped: dict[str, Any], dataset_name: str) -> None:
    metadata = MetadataCatalog.get(dataset_name)
    names = set(metadata.get("thing_classes", ())) | set(metadata.get("stuff_classes", ()))
    unknown = {name for name in mapped["instances"].gt_category_names if name} - names
    if unknown:
        raise ValueError(f"it has names that are not in the metadata: {sorted(unknown)}")


def _sentence(error: Exception) -> str:
    detail = str(error).splitlines()[0] if str(error) else ""
    return detail if isinstance(error, ValueError | OSError) else f"{type(error).__name__} {detail}"
