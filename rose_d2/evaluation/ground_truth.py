"""What is annotated, decoded at the original size: objects of an image, the target of an
expression, and all that a dataset knows about a model's inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor

from rose_d2.data.annotations import load_labels, square_view
from rose_d2.data.build import sample_key
from rose_d2.data.datasets.refer_files import ALL_SENTENCES
from rose_d2.data.image_io import opened_image
from rose_d2.layers.masks import mask_centre
from rose_d2.structures.mask_codec import colours_to_ids, decode_mask
from rose_d2.structures.patches import PatchGrid


@dataclass(frozen=True)
class GroundTruthObjects:
    """N objects of one image; crowd regions are not objects.

    Attributes:
        masks: bool (N, H, W).
        classes: N contiguous class ids.
        is_stuff: N flags.
    """

    masks: Tensor
    classes: list[int]
    is_stuff: list[bool]

    def __len__(self) -> int:
        return len(self.classes)


def load_objects(dataset_dict: dict) -> GroundTruthObjects | None:
    """Decode the instances or the panoptic segments of a dataset dict.

    Args:
        dataset_dict: with height, width and either "annotations" (COCO style, contiguous
            categories) or "pan_seg_file_name" and "segments_info".

    Returns:
        The objects, all segments of one stuff class joined into one; None if the dict has neither.
    """
    if "annotations" in dataset_dict:
        return _load_annotations(dataset_dict)
    if "pan_seg_file_name" in dataset_dict:
        return _load_segments(dataset_dict)
    return None


def decode_segmentation(annotation: dict, height: int, width: int) -> Tensor:
    """Mask of one COCO-style annotation (polygons or any RLE), bool (H, W)."""
    mask = decode_mask(annotation.get("segmentation"), height, width)
    return torch.from_numpy(np.ascontiguousarray(mask))


def _load_annotations(dataset_dict: dict) -> GroundTruthObjects:
    size = dataset_dict["height"], dataset_dict["width"]
    objects = [a for a in dataset_dict["annotations"] if not a.get("iscrowd", 0)]
    masks = torch.zeros(len(objects), *size, dtype=torch.bool)
    for mask, annotation in zip(masks, objects, strict=True):
        mask.copy_(decode_segmentation(annotation, *size))
    return GroundTruthObjects(masks, [a["category_id"] for a in objects], [False] * len(objects))


def _load_segments(dataset_dict: dict) -> GroundTruthObjects:
    with opened_image(dataset_dict["pan_seg_file_name"]) as image:
        ids = torch.from_numpy(colours_to_ids(np.asarray(image)))  # (H, W)
    groups: dict[tuple, list[int]] = {}
    for segment in dataset_dict["segments_info"]:
        if segment.get("iscrowd", 0):
            continue
        is_stuff = not segment["isthing"]
        key = (is_stuff, segment["category_id"], None if is_stuff else segment["id"])
        groups.setdefault(key, []).append(segment["id"])
    masks = torch.zeros(len(groups), *ids.shape, dtype=torch.bool)
    for mask, segment_ids in zip(masks, groups.values(), strict=True):
        for segment_id in segment_ids:
            mask |= ids == segment_id
    return GroundTruthObjects(
        masks, [class_id for _, class_id, _ in groups], [is_stuff for is_stuff, _, _ in groups]
    )


class ReferringTarget:
    """The objects a referring sample is about.

    A crowd counts like any object: somebody described it. Pixels of "ignore_annotations" are left
    out of the score, whatever else covers them.
    """

    def __init__(self, sample: dict) -> None:
        """
        Args:
            sample: a referring dataset dict with height, width, "annotations", "target_indices"
                (positions in them, none or several) and, optionally, "ignore_annotations" (more
                COCO-style annotations, e.g. what ReasonSeg labels "ignore").
        """
        self._annotations = sample["annotations"]
        self._indices = list(sample["target_indices"])
        self._ignored = sample.get("ignore_annotations")
        self.size = int(sample["height"]), int(sample["width"])
        self._masks = [self._decode(self._annotations[index]) for index in self._indices]
        self.mask = self._union(self._masks)  # bool (H, W), of all objects
        ignored = [self._decode(annotation) for annotation in self._ignored or ()]
        self.ignore = self._union(ignored) if ignored else None  # bool (H, W) or None
        self._patches: dict[tuple[PatchGrid, int], frozenset[int]] = {}

    def __len__(self) -> int:
        """Number of objects."""
        return len(self._indices)

    def fits(self, sample: dict) -> bool:
        """Whether a sample has this target, as sentences of one reference do."""
        return (
            self._annotations is sample["annotations"]
            and self._indices == list(sample["target_indices"])
            and self._ignored is sample.get("ignore_annotations")
        )

    def window_patches(self, grid: PatchGrid, window: int) -> frozenset[int]:
        """Patches that may answer: the windows around the objects' centres, as in training.

        Args:
            grid: over the square view.
            window: side of a window in patches.
        """
        if (grid, window) not in self._patches:
            centres = [self._centre(mask, grid.image_size) for mask in self._masks if mask.any()]
            self._patches[grid, window] = frozenset(
                patch for centre in centres for patch in grid.window(centre, window).tolist()
            )
        return self._patches[grid, window]

    def _centre(self, mask: np.ndarray, side: int) -> tuple[float, float]:
        """(x, y) of a mask's centre in pixels of the square view."""
        view = square_view(mask, side)
        if not view.any():  # lost between the pixels of the view
            view = mask
        x, y = mask_centre(torch.from_numpy(view))
        return x / view.shape[1] * side, y / view.shape[0] * side

    def _decode(self, annotation: dict) -> np.ndarray:
        return decode_segmentation(annotation, *self.size).numpy()

    def _union(self, masks: list[np.ndarray]) -> np.ndarray:
        return np.any(masks, axis=0) if masks else np.zeros(self.size, dtype=bool)


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
        metadata = MetadataCatalog.get(self.dataset_name)
        labels = torch.from_numpy(load_labels(self._record(item), metadata))
        return torch.where(labels == metadata.ignore_label, -1, labels)

    def target(self, item: dict) -> ReferringTarget:
        """What an expression refers to."""
        return ReferringTarget(self._record(item))

    @property
    def class_names(self) -> list[str]:
        """Names by contiguous class of a semantic dataset, the first of a list of synonyms."""
        names = MetadataCatalog.get(self.dataset_name).stuff_classes
        return [name.split(",")[0].strip() for name in names]

    @cached_property
    def _records(self) -> dict[str, dict]:
        records: dict[str, dict] = {}
        for record in DatasetCatalog.get(self.dataset_name):
            records[sample_key(record)] = record
            if "ref_id" in record:
                # All sentences of a reference in one prompt have one target.
                records.setdefault(sample_key({**record, "sent_id": ALL_SENTENCES}), record)
        return records

    def _record(self, item: dict) -> dict:
        key = sample_key(item)
        if key not in self._records:
            raise ValueError(
                f"Dataset {self.dataset_name!r} has no item {key}; refine the items of the "
                "dataset's own test loader."
            )
        return self._records[key]
