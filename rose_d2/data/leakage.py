"""Keeps the images of referring benchmarks out of training.

The images of RefCOCO, RefCOCO+ and RefCOCOg come from COCO train2014, all of them in train2017,
and one benchmark's test images are another's training images. An image is known by its source
("coco", "saiapr") and its id there.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

from detectron2.data import Metadata

from rose_d2.data.datasets.refer_files import in_split, read_references
from rose_d2.data.datasets.registration import DatasetEntry, registered_entries

logger = logging.getLogger(__name__)


class Exclusion(NamedTuple):
    """What is left of a training dataset.

    Attributes:
        kept: the dicts that may be trained on, in their order.
        counts: evaluation dataset -> number of dicts that show one of its images. A dict may
            count for several.
    """

    kept: list[dict[str, Any]]
    counts: dict[str, int]


def exclude_evaluation_images(
    dicts: list[dict[str, Any]],
    metadata: Metadata,
    *,
    benchmarks: Collection[str] | None = None,
) -> Exclusion:
    """Leave out the images that a referring benchmark is evaluated on.

    Logs one line per dataset. Datasets without `image_source` in their metadata share no image
    with any benchmark and pass unchanged.

    Args:
        dicts: of the training dataset, with `image_id` as in its source.
        metadata: of the training dataset.
        benchmarks: names of the registered referring datasets to protect; by default every split
            but "train" whose annotations are on disk. Google's splits part objects, not images:
            protecting them costs their own training set about as many images as they have.

    Raises:
        ValueError: a benchmark's pickle is damaged, or `benchmarks` names an unknown dataset.
    """
    source = metadata.get("image_source", None)
    if source is None:
        return Exclusion(dicts, {})
    protected = evaluation_images(source, benchmarks)
    if not protected:
        logger.warning(
            "%s: referring evaluation images could not be excluded, for no referring annotations "
            "on %s images are on disk.",
            metadata.name,
            source,
        )
        return Exclusion(dicts, {})
    everything = frozenset().union(*protected.values())
    kept = [record for record in dicts if record["image_id"] not in everything]
    counts = {
        name: sum(record["image_id"] in image_ids for record in dicts)
        for name, image_ids in protected.items()
    }
    logger.info(
        "%s: left out %d of %d items, which show evaluation images of %s.",
        metadata.name,
        len(dicts) - len(kept),
        len(dicts),
        ", ".join(f"{name} ({count})" for name, count in counts.items()),
    )
    return Exclusion(kept, counts)


def benchmarks_split_by(split_bys: Collection[str]) -> list[str]:
    """The registered referring evaluation datasets whose splits these people made.

    Args:
        split_bys: of "unc", "google", "umd" and "berkeley".

    Raises:
        ValueError: nobody of that name made a registered split.
    """
    entries = registered_entries().items()
    makers = {name: entry.metadata["split_by"] for name, entry in entries if _is_benchmark(entry)}
    unknown = sorted(set(split_bys) - set(makers.values()))
    if unknown:
        raise ValueError(
            f"DATASETS.EXCLUDE_EVAL_SPLITS has {', '.join(map(repr, unknown))}; splits were made "
            f"by {', '.join(sorted(set(makers.values())))}. Give () to exclude nothing."
        )
    return [name for name, maker in makers.items() if maker in split_bys]


def _is_benchmark(entry: DatasetEntry) -> bool:
    return "refs_file" in entry.metadata and entry.metadata["split"] != "train"


def evaluation_images(
    source: str, benchmarks: Collection[str] | None = None
) -> dict[str, frozenset[int]]:
    """Image ids of the referring benchmarks on disk; only their pickles of references are read.

    Args:
        source: where the images come from, "coco" or "saiapr".
        benchmarks: see `exclude_evaluation_images`.

    Returns:
        Benchmark -> ids of its images.

    Raises:
        ValueError: as `exclude_evaluation_images`.
    """
    entries = {
        name: entry.metadata for name, entry in registered_entries().items() if _is_benchmark(entry)
    }
    unknown = sorted(set(benchmarks or ()) - set(entries))
    if unknown:
        raise ValueError(
            f"No referring evaluation dataset is called {', '.join(map(repr, unknown))}; there "
            f"are {', '.join(entries)}."
        )
    return {
        name: _images_in_split(metadata["refs_file"], metadata["split"])
        for name, metadata in entries.items()
        if metadata["image_source"] == source
        and (benchmarks is None or name in benchmarks)
        and Path(metadata["refs_file"]).is_file()
    }


def _images_in_split(refs_file: str, split: str) -> frozenset[int]:
    images = _images_by_label(refs_file, Path(refs_file).stat().st_mtime_ns)
    return frozenset().union(*(ids for label, ids in images.items() if in_split(label, split)))


@functools.lru_cache(maxsize=64)
def _images_by_label(refs_file: str, modified: int) -> dict[str, frozenset[int]]:
    """Split label -> image ids; `modified` makes a file that changed be read again."""
    images: dict[str, set[int]] = {}
    for reference in read_references(Path(refs_file)):
        images.setdefault(reference["split"], set()).add(reference["image_id"])
    return {label: frozenset(ids) for label, ids in images.items()}
