"""What a model answered to one image, and what is annotated in it, in one common form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.utils.file_io import PathManager
from PIL import Image
from torch import Tensor

from rose_d2.evaluation.ground_truth import GroundTruthObjects, decode_segmentation, load_objects
from rose_d2.evaluation.referring_targets import ReferringTarget

TASKS_BY_EVALUATOR = {
    "coco": "instance",
    "sem_seg": "semantic",
    "coco_panoptic_seg": "panoptic",
    "refcoco": "referring",
}


@dataclass(frozen=True)
class ImageSegments:
    """N named masks of one image.

    Attributes:
        masks: bool (N, H, W).
        names: N names: generated ones, or of classes.
        classes: N contiguous class ids, -1 where no class fits.
        is_thing: N flags.
        scores: N scores, None where there is none.
        ignore: bool (H, W), pixels that do not count; None for none. Only of the truth.
    """

    masks: Tensor
    names: list[str]
    classes: list[int]
    is_thing: list[bool]
    scores: list[float | None] = field(default_factory=list)
    ignore: Tensor | None = None

    def __len__(self) -> int:
        return len(self.names)


def predicted_segments(
    output: Mapping[str, Any], task: str, metadata: Metadata, score_threshold: float
) -> ImageSegments:
    """The segments of an output as a user would see them.

    Args:
        output: of the model, or decoded from saved predictions.
        task: semantic (one segment per class), instance, panoptic or referring (one segment).
        metadata: of the dataset.
        score_threshold: instances below this objectness are left out.

    Raises:
        ValueError: the output is one of another task.
    """
    key = {"semantic": "sem_seg_labels", "instance": "instances", "panoptic": "panoptic_seg"}
    needed = key.get(task, "ref_seg")
    if needed not in output:
        raise ValueError(
            f"The predictions have no {needed!r}, only {', '.join(output)}; they were made for "
            f"another task than {task}. Name the dataset they were made on."
        )
    if task == "semantic":
        return _segments_of_labels(output["sem_seg_labels"], metadata)
    if task == "instance":
        return _segments_of_instances(output["instances"], score_threshold)
    if task == "panoptic":
        return _segments_of_panoptic(*output["panoptic_seg"])
    mask = output["ref_seg"].bool()[None]
    return ImageSegments(mask, ["answer"], [0], [True], [output.get("ref_score")])


def true_segments(sample: Mapping[str, Any], task: str, metadata: Metadata) -> ImageSegments:
    """The annotated segments of a dataset dict.

    Args:
        sample: the dataset dict.
        task: see `predicted_segments`.
        metadata: of the dataset.

    Raises:
        FileNotFoundError: an annotation file is missing.
    """
    if task == "referring":
        target = ReferringTarget(dict(sample))
        ignore = None if target.ignore is None else torch.from_numpy(target.ignore)
        mask = torch.from_numpy(target.mask)[None]
        return ImageSegments(mask, [sample["sentence"]], [0], [True], [None], ignore)
    if task == "semantic":
        labels = torch.from_numpy(_read_labels(sample["sem_seg_file_name"]))
        ignored = labels == metadata.get("ignore_label", 255)
        return _segments_of_labels(labels, metadata, ignored)
    objects = load_objects(dict(sample))
    if objects is None:
        raise ValueError(
            f"Image {sample['file_name']!r} has neither annotations nor panoptic segments; "
            "there is nothing to compare predictions with."
        )
    if task == "panoptic":
        return _named_objects(objects, metadata.stuff_classes, ~objects.masks.any(dim=0))
    return _named_objects(objects, metadata.thing_classes, _crowd(sample))


def _segments_of_labels(
    labels: Tensor, metadata: Metadata, ignore: Tensor | None = None
) -> ImageSegments:
    """One segment per class with pixels; labels of no class have none."""
    names = list(metadata.stuff_classes)
    things = set(metadata.get("thing_classes", None) or ())
    present = [k for k in labels.unique().tolist() if 0 <= k < len(names)]
    masks = [labels == class_id for class_id in present]
    return ImageSegments(
        torch.stack(masks) if masks else torch.zeros(0, *labels.shape, dtype=torch.bool),
        [names[class_id] for class_id in present],
        present,
        [names[class_id] in things for class_id in present],
        [None] * len(present),
        ignore,
    )


def _segments_of_instances(instances: Any, score_threshold: float) -> ImageSegments:
    shown = instances[instances.scores >= score_threshold]
    return ImageSegments(
        shown.pred_masks.bool(),
        list(shown.pred_category_names),
        shown.pred_classes.tolist(),
        [True] * len(shown),
        shown.scores.tolist(),
    )


def _segments_of_panoptic(panoptic_seg: Tensor, segments_info: Sequence[dict]) -> ImageSegments:
    masks = [panoptic_seg == segment["id"] for segment in segments_info]
    return ImageSegments(
        torch.stack(masks) if masks else torch.zeros(0, *panoptic_seg.shape, dtype=torch.bool),
        [segment["category_name"] for segment in segments_info],
        [segment["category_id"] for segment in segments_info],
        [bool(segment["isthing"]) for segment in segments_info],
        [segment.get("score") for segment in segments_info],
    )


def _named_objects(
    objects: GroundTruthObjects, class_names: Sequence[str], ignore: Tensor | None
) -> ImageSegments:
    return ImageSegments(
        objects.masks,
        [class_names[class_id] for class_id in objects.classes],
        objects.classes,
        [not is_stuff for is_stuff in objects.is_stuff],
        [None] * len(objects),
        ignore,
    )


def _crowd(sample: Mapping[str, Any]) -> Tensor | None:
    size = sample["height"], sample["width"]
    crowd = [a for a in sample.get("annotations", ()) if a.get("iscrowd", 0)]
    masks = [decode_segmentation(annotation, *size) for annotation in crowd]
    return torch.stack(masks).any(dim=0) if masks else None


def _read_labels(path: str) -> np.ndarray:
    with PathManager.open(path, "rb") as file:
        return np.array(Image.open(file), dtype=np.int64)
