"""COCO-Stuff 164k as detectron2 datasets: the 80 things of COCO and 91 kinds of stuff.

Its label list counts 0 "unlabeled", 1 to 91 things, 92 to 182 stuff. The label maps of the
download hold the label minus 1, and 255 where nothing is labelled. Eleven of the 91 things were
never annotated, so 171 classes are evaluated: in contiguous order COCO's 80 things, then the
stuff. `datasets/prepare_coco_stuff.py` makes what is loaded here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

from rose_d2.data.datasets.class_names import clean_class_names
from rose_d2.data.datasets.coco import (
    COCO_COLORS,
    COCO_NUM_IMAGES,
    COCO_THING_IDS,
    IMAGE_SOURCE,
    NUM_THINGS,
    CocoPaths,
)
from rose_d2.data.datasets.colors import distinct_colors
from rose_d2.data.datasets.panoptic import load_coco_panoptic
from rose_d2.data.datasets.registration import DatasetEntry, register

HOW_TO_GET = (
    "Get the annotations of COCO and COCO-Stuff (`python datasets/download.py coco`), then run "
    "`python datasets/prepare_coco_stuff.py`."
)
IGNORE_LABEL = 255
FIRST_STUFF_ID = 92
# fmt: off
STUFF_LABELS = (
    "banner", "blanket", "branch", "bridge", "building-other", "bush", "cabinet", "cage",
    "cardboard", "carpet", "ceiling-other", "ceiling-tile", "cloth", "clothes", "clouds",
    "counter", "cupboard", "curtain", "desk-stuff", "dirt", "door-stuff", "fence", "floor-marble",
    "floor-other", "floor-stone", "floor-tile", "floor-wood", "flower", "fog", "food-other",
    "fruit", "furniture-other", "grass", "gravel", "ground-other", "hill", "house", "leaves",
    "light", "mat", "metal", "mirror-stuff", "moss", "mountain", "mud", "napkin", "net", "paper",
    "pavement", "pillow", "plant-other", "plastic", "platform", "playingfield", "railing",
    "railroad", "river", "road", "rock", "roof", "rug", "salad", "sand", "sea", "shelf",
    "sky-other", "skyscraper", "snow", "solid-other", "stairs", "stone", "straw",
    "structural-other", "table", "tent", "textile-other", "towel", "tree", "vegetable",
    "wall-brick", "wall-concrete", "wall-other", "wall-panel", "wall-stone", "wall-tile",
    "wall-wood", "water-other", "waterdrops", "window-blind", "window-other", "wood",
)
# fmt: on
"""The 91 kinds of stuff as the label list spells them, of the ids 92 to 182."""

CLASS_OF_STUFF_LABEL = {FIRST_STUFF_ID + k: NUM_THINGS + k for k in range(len(STUFF_LABELS))}
CLASS_OF_LABEL: dict[int, int] = COCO_THING_IDS | CLASS_OF_STUFF_LABEL
"""Label -> contiguous class, 0 to 170; the gaps are the eleven things without any mask."""


COCO_STUFF_CLASSES, COCO_STUFF_SYNONYMS = clean_class_names(
    [*(category["name"] for category in COCO_CATEGORIES[:NUM_THINGS]), *STUFF_LABELS], "coco"
)
COCO_STUFF_COLORS = [*COCO_COLORS[:NUM_THINGS], *distinct_colors(len(STUFF_LABELS))]


@dataclass(frozen=True)
class CocoStuffPaths(CocoPaths):
    """Where the files of one split lie: COCO's, the download's and those that are made."""

    @property
    def stuff_thing_maps(self) -> Path:
        """Folder of the download's label maps."""
        return self.root / "coco" / "stuffthingmaps" / f"{self.split}2017"

    @property
    def joined_json(self) -> Path:
        """Made: the stuff of the label maps joined with COCO's instances."""
        return self.root / "coco" / "annotations" / f"cocostuff_panoptic_{self.split}2017.json"

    @property
    def joined_root(self) -> Path:
        """Made: the PNGs of `joined_json`."""
        return self.root / "coco" / f"cocostuff_panoptic_{self.split}2017"

    @property
    def sem_seg_root(self) -> Path:
        """Made: the label maps with contiguous classes."""
        return self.root / "coco" / f"cocostuff_sem_seg_{self.split}2017"


def contiguous_labels(label_map: np.ndarray, source: str | Path) -> np.ndarray:
    """Brings a label map of the download to contiguous classes.

    Args:
        label_map: uint8 (H, W), label minus 1; 255 is unlabelled.
        source: its file, for the message.

    Returns:
        uint8 (H, W), 0 to 170 and 255.

    Raises:
        ValueError: a value is no label of COCO-Stuff.
    """
    table = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for label, class_id in CLASS_OF_LABEL.items():
        table[label - 1] = class_id
    known = {*(label - 1 for label in CLASS_OF_LABEL), IGNORE_LABEL}
    strange = sorted(set(np.unique(label_map).tolist()) - known)
    if strange:
        raise ValueError(
            f"The label map {source} has the values {strange}, which are no labels of COCO-Stuff "
            "(label minus 1, 255 for unlabelled); unpack stuffthingmaps_trainval2017.zip again."
        )
    return table[label_map]


def _load(paths: CocoStuffPaths) -> list[dict[str, Any]]:
    records = load_coco_panoptic(
        paths.joined_json, paths.image_root, paths.joined_root, COCO_THING_IDS, CLASS_OF_STUFF_LABEL
    )
    for record in records:
        label_file = paths.sem_seg_root / f"{Path(record['file_name']).stem}.png"
        record["sem_seg_file_name"] = str(label_file)
    return records


def _metadata(paths: CocoStuffPaths) -> dict[str, Any]:
    return {
        "task": "semantic",
        "evaluator_type": "sem_seg",
        "thing_classes": COCO_STUFF_CLASSES[:NUM_THINGS],
        "thing_colors": COCO_STUFF_COLORS[:NUM_THINGS],
        "thing_dataset_id_to_contiguous_id": dict(COCO_THING_IDS),
        "stuff_classes": list(COCO_STUFF_CLASSES),
        "stuff_colors": list(COCO_STUFF_COLORS),
        "stuff_dataset_id_to_contiguous_id": dict(CLASS_OF_LABEL),
        "class_synonyms": list(COCO_STUFF_SYNONYMS),
        "ignore_label": IGNORE_LABEL,
        "label_divisor": 1000,
        "image_root": str(paths.image_root),
        "image_source": IMAGE_SOURCE,
        "sem_seg_root": str(paths.sem_seg_root),
        "panoptic_json": str(paths.joined_json),
        "panoptic_root": str(paths.joined_root),
    }


def register_coco_stuff(root: str | Path) -> None:
    """Registers coco_2017_{train,val}_stuff_sem_seg; nothing is read.

    Args:
        root: the datasets folder, the parent of `coco`; `~` is expanded.
    """
    for split, num_images in COCO_NUM_IMAGES.items():
        paths = CocoStuffPaths(Path(root).expanduser(), split)
        entry = DatasetEntry(
            name=f"coco_2017_{split}_stuff_sem_seg",
            load=lambda paths=paths: _load(paths),
            metadata=_metadata(paths),
            files=(paths.image_root, paths.joined_json, paths.joined_root, paths.sem_seg_root),
            how_to_get=HOW_TO_GET,
            num_images=num_images,
        )
        register(entry)
