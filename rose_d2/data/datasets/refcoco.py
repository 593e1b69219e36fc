"""RefCOCO, RefCOCO+, RefCOCOg, RefCLEF and gRefCOCO as detectron2 datasets, with every split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rose_d2.data.datasets.coco import (
    COCO_CLASSES,
    COCO_COLORS,
    COCO_SYNONYMS,
    COCO_THING_IDS,
    IMAGE_SOURCE,
    NUM_THINGS,
)
from rose_d2.data.datasets.refer_files import load_refer_splits, references_file
from rose_d2.data.datasets.registration import DatasetEntry, register
from rose_d2.prompts.tasks import TASKS

SAIAPR_SOURCE = "saiapr"


class SplitSize(NamedTuple):
    """Published size of a split; None where nobody gives the number.

    Attributes:
        references: objects that are referred to.
        images: images with a reference.
        sentences: expressions.
        is_sourced: False where the number of sentences is only widely quoted. All of these add
            up to the published totals.
    """

    references: int | None = None
    images: int | None = None
    sentences: int | None = None
    is_sourced: bool = True


REFER_SPLITS: dict[tuple[str, str], dict[str, SplitSize]] = {
    ("refcoco", "unc"): {
        "train": SplitSize(42404, 16994, 120624),
        "val": SplitSize(3811, 1500, 10834),
        "testA": SplitSize(1975, 750, 5657),
        "testB": SplitSize(1810, 750, 5095),
    },
    ("refcoco", "google"): {
        "train": SplitSize(40000, 19213),
        "val": SplitSize(5000, 4559),
        "test": SplitSize(5000, 4527),
    },
    ("refcoco+", "unc"): {
        "train": SplitSize(42278, 16992, 120191, is_sourced=False),
        "val": SplitSize(3805, 1500, 10758, is_sourced=False),
        "testA": SplitSize(1975, 750, 5726, is_sourced=False),
        "testB": SplitSize(1798, 750, 4889, is_sourced=False),
    },
    ("refcocog", "umd"): {
        "train": SplitSize(42226, 21899, 80512, is_sourced=False),
        "val": SplitSize(2573, 1300, 4896, is_sourced=False),
        "test": SplitSize(5023, 2600, 9602, is_sourced=False),
    },
    ("refcocog", "google"): {
        "train": SplitSize(44822, 24698),
        "val": SplitSize(5000, 4650),
    },
    ("refclef", "unc"): {
        split: SplitSize() for split in ("train", "val", "testA", "testB", "testC")
    },
    ("refclef", "berkeley"): {split: SplitSize() for split in ("train", "val", "test")},
    ("grefcoco", "unc"): {
        "train": SplitSize(),
        "val": SplitSize(images=1500),
        "testA": SplitSize(images=750),
        "testB": SplitSize(images=750),
    },
}


"""Dataset and split-by -> split -> size. Google's splits part objects, the others part images."""


class ImageRoot(NamedTuple):
    """A place where the images of a dataset may lie.

    Attributes:
        folder: relative to the datasets folder.
        name_image: from `file_name` in instances.json to the path in that folder.
    """

    folder: str
    name_image: Callable[[str], str] = str


def _name_in_train2017(file_name: str) -> str:
    """COCO_train2014_000000000009.jpg is called 000000000009.jpg since 2017."""
    return file_name.rsplit("_", 1)[-1]


# Every image of train2014 is in train2017.
COCO_IMAGE_ROOTS = (
    ImageRoot("coco/train2014"),
    ImageRoot("images/train2014"),
    ImageRoot("images/mscoco/images/train2014"),
    ImageRoot("coco/train2017", _name_in_train2017),
)


SAIAPR_IMAGE_ROOTS = (ImageRoot("saiapr_tc-12"), ImageRoot("images/saiapr_tc-12"))


HOW_TO_GET_REFER = (
    "Run `python datasets/download.py {dataset}` and check with `python "
    "datasets/prepare_refcoco.py`, which also finds files laid out for other projects."
)


HOW_TO_GET_GREFCOCO = (
    "Get instances.json and grefs(unc).json from https://github.com/henghuiding/gRefCOCO, and the "
    "images with `python datasets/download.py refcoco`; check with `python "
    "datasets/prepare_refcoco.py --datasets grefcoco`."
)


def image_roots(dataset: str) -> tuple[ImageRoot, ...]:
    """Where the images of a dataset may lie, the first existing folder counts.

    Args:
        dataset: one of `REFER_SPLITS`.
    """
    return SAIAPR_IMAGE_ROOTS if dataset == "refclef" else COCO_IMAGE_ROOTS


def find_image_root(root: Path, dataset: str) -> ImageRoot | None:
    """The folder that holds the images of a dataset, or None.

    Args:
        root: the datasets folder.
        dataset: one of `REFER_SPLITS`.
    """
    for candidate in image_roots(dataset):
        folder = root / candidate.folder
        if folder.is_dir() and any(folder.iterdir()):
            return candidate
    return None


@dataclass(frozen=True)
class ReferEntry(DatasetEntry):
    """A referring dataset, whose images may lie in one of several folders.

    The last of `files` is the preferred one of these folders.
    """

    root: Path = Path()
    dataset: str = ""

    def missing_files(self) -> list[Path]:
        """Those of `files` that do not exist; no image folder while any has the images."""
        missing = super().missing_files()
        if self.files[-1] in missing and find_image_root(self.root, self.dataset) is not None:
            missing.remove(self.files[-1])
        return missing


def load_splits(
    root: Path, dataset: str, split_by: str, splits: Sequence[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """Loads splits of one dataset, with the images wherever they are.

    Args:
        root: the datasets folder.
        dataset: one of `REFER_SPLITS`.
        split_by: who made the splits.
        splits: some of `REFER_SPLITS[dataset, split_by]`; by default all.

    Returns:
        Dataset dicts by split, see `load_refer`. Those of RefCLEF have class -1, for its objects
        have no usable names.

    Raises:
        ValueError: see `load_refer`.
    """
    images = find_image_root(root, dataset) or image_roots(dataset)[0]
    return load_refer_splits(
        root / dataset,
        split_by,
        splits or list(REFER_SPLITS[dataset, split_by]),
        root / images.folder,
        {} if dataset == "refclef" else COCO_THING_IDS,
        name_image=images.name_image,
    )


def _metadata(root: Path, dataset: str, split_by: str, split: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        **TASKS["referring"].metadata,
        "image_source": SAIAPR_SOURCE if dataset == "refclef" else IMAGE_SOURCE,
        "refs_file": str(references_file(root / dataset, split_by)),
        "split_by": split_by,
        "split": split,
    }
    if dataset == "refclef":
        return metadata
    return metadata | {
        "thing_classes": COCO_CLASSES[:NUM_THINGS],
        "thing_colors": COCO_COLORS[:NUM_THINGS],
        "thing_dataset_id_to_contiguous_id": dict(COCO_THING_IDS),
        "class_synonyms": COCO_SYNONYMS[:NUM_THINGS],
    }


def _entry(root: Path, dataset: str, split_by: str, split: str) -> ReferEntry:
    size = REFER_SPLITS[dataset, split_by][split]
    folder = root / dataset
    how_to_get = HOW_TO_GET_GREFCOCO if dataset == "grefcoco" else HOW_TO_GET_REFER
    return ReferEntry(
        name=f"{dataset}_{split_by}_{split}",
        load=lambda: load_splits(root, dataset, split_by, [split])[split],
        metadata=_metadata(root, dataset, split_by, split),
        files=(
            references_file(folder, split_by),
            folder / "instances.json",
            root / image_roots(dataset)[0].folder,
        ),
        how_to_get=how_to_get.format(dataset=dataset),
        num_images=size.images,
        num_items=size.sentences,
        root=root,
        dataset=dataset,
    )


def register_refer(root: str | Path) -> None:
    """Registers {dataset}_{split_by}_{split} for all of `REFER_SPLITS`; nothing is read.

    Args:
        root: the datasets folder, the parent of `refcoco`; `~` is expanded.
    """
    root = Path(root).expanduser()
    for (dataset, split_by), splits in REFER_SPLITS.items():
        for split in splits:
            register(_entry(root, dataset, split_by, split))
