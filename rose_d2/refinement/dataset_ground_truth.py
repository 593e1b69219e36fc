"""Ground truth of test images, found by what an input says about itself."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor

from rose_d2.data.referring_samples import ALL_SENTENCES
from rose_d2.evaluation.ground_truth import GroundTruthObjects, load_objects
from rose_d2.evaluation.referring_targets import ReferringTarget


class DatasetGroundTruth:
    """What a registered dataset knows about the inputs made of it."""

    def __init__(self, dataset_name: str) -> None:
        """
        Args:
            dataset_name: registered dataset.
        """
        self.dataset_name = dataset_name

    def objects(self, item: dict) -> GroundTruthObjects:
        """The annotated objects of an image.

        Raises:
            ValueError: the dataset has no masks of objects, or not this image.
        """
        objects = load_objects(self._record(item))
        if objects is None:
            raise ValueError(
                f"Dataset {self.dataset_name!r} has neither annotations nor panoptic segments, so "
                "its instances cannot be refined; set TEST.REFINEMENT.ENABLED to False for it."
            )
        return objects

    def labels(self, item: dict) -> Tensor:
        """The class of every pixel, long (H, W), -1 where unlabelled."""
        record = self._record(item)
        with PathManager.open(record["sem_seg_file_name"], "rb") as file:
            labels = torch.from_numpy(np.array(Image.open(file), dtype=np.int64))
        ignored = MetadataCatalog.get(self.dataset_name).ignore_label
        return torch.where(labels == ignored, -1, labels)

    def target(self, item: dict) -> ReferringTarget:
        """What an expression refers to."""
        return ReferringTarget(self._record(item))

    @property
    def class_names(self) -> list[str]:
        """Names by contiguous class of a semantic dataset, the first of a list of synonyms."""
        names = MetadataCatalog.get(self.dataset_name).stuff_classes
        return [name.split(",")[0].strip() for name in names]

    @cached_property
    def _records(self) -> dict[tuple, dict]:
        records: dict[tuple, dict] = {}
        for record in DatasetCatalog.get(self.dataset_name):
            records[_key(record)] = record
            if "ref_id" in record:
                # All sentences of a reference in one prompt have one target.
                records.setdefault(_key({**record, "sent_id": ALL_SENTENCES}), record)
        return records

    def _record(self, item: dict) -> dict:
        key = _key(item)
        if key not in self._records:
            raise ValueError(
                f"Dataset {self.dataset_name!r} has no item {key}; refine the items of the "
                "dataset's own test loader."
            )
        return self._records[key]


def _key(sample: dict) -> tuple:
    if "ref_id" in sample:
        return "expression", int(sample["ref_id"]), int(sample["sent_id"])
    return "image", sample["image_id"]
