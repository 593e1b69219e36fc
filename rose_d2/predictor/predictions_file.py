"""A COCO-format file of predictions that grows while a folder of images is being segmented."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util

from rose_d2.files import write_text
from rose_d2.structures.mask_codec import encode_mask
from rose_d2.structures.segments import Segment

# Rewriting the file may take up at most about this part of the time.
_WRITING_SHARE = 0.1


class PredictionsFile:
    """The images done so far and their segments, kept on disk as one COCO JSON object.

    The file is replaced as a whole, so a reader or an interruption never meets half of one.
    """

    def __init__(self, path: str | os.PathLike[str], info: dict[str, Any]) -> None:
        """
        Args:
            path: the file to write; it is not read here, see `open`.
            info: what the predictions were made with; becomes the file's "info".
        """
        self.path = Path(path)
        self.info = info
        self._images: dict[str, dict[str, Any]] = {}  # by file name
        self._annotations: dict[int, list[dict[str, Any]]] = {}  # by image id
        self._category_ids: dict[str, int] = {}  # by name
        self._next_image_id = self._next_annotation_id = 1
        self._saved_at, self._save_seconds = -float("inf"), 0.0

    @classmethod
    def open(
        cls, path: str | os.PathLike[str], info: dict[str, Any], *, overwrite: bool = False
    ) -> PredictionsFile:
        """Continue a file if there is one, else begin a new one.

        Args:
            path: where the file is or will be.
            info: what the predictions of this run are made with.
            overwrite: a file made with something else is given up instead of refused.

        Raises:
            ValueError: the file is damaged or was made with another `info`.
        """
        predictions = cls(path, info)
        if not predictions.path.exists():
            return predictions
        try:
            stored = json.loads(predictions.path.read_text(encoding="utf-8"))
            if stored["info"] == info:
                predictions._restore(stored)
                return predictions
            reason = f"was made with other settings ({_differences(stored['info'], info)})"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"is not a file of predictions ({error!r})"
        if not overwrite:
            raise ValueError(
                f"{path} {reason}; choose another output folder, or overwrite it (--overwrite)."
            )
        return cls(path, info)

    def __len__(self) -> int:
        return len(self._images)

    def find(self, file_name: str) -> dict[str, Any] | None:
        """Return the entry of an image that is done, or None."""
        return self._images.get(file_name)

    def images(self) -> list[dict[str, Any]]:
        """Return the entries of all images, in the order they were added."""
        return list(self._images.values())

    def add(
        self,
        file_name: str,
        size: tuple[int, int],
        segments: Sequence[Segment],
        **extra: Any,
    ) -> None:
        """Add one image and its segments; an earlier result of the same image is replaced.

        Args:
            file_name: identifies the image.
            size: (height, width).
            segments: what was found in it.
            extra: more keys of the image's entry.
        """
        earlier = self._images.pop(file_name, None)
        if earlier is not None:
            del self._annotations[earlier["id"]]
        image_id = self._next_image_id if earlier is None else earlier["id"]
        self._next_image_id = max(self._next_image_id, image_id + 1)
        self._images[file_name] = {
            "id": image_id,
            "file_name": file_name,
            "height": size[0],
            "width": size[1],
            **extra,
        }
        self._annotations[image_id] = [
            self._annotation(image_id, number, segment)
            for number, segment in enumerate(segments, start=1)
        ]

    def save(self, *, always: bool = True) -> None:
        """Write the file.

        Args:
            always: False may leave it for later: a very long file is not rewritten so often
                that writing would hold up the work.
        """
        started = time.monotonic()
        if not always and started - self._saved_at < self._save_seconds / _WRITING_SHARE:
            return
        write_text(self.path, json.dumps(self.content(), ensure_ascii=False) + "\n")
        self._saved_at = time.monotonic()
        self._save_seconds = self._saved_at - started

    def content(self) -> dict[str, Any]:
        """Return what `save` writes: COCO's "info", "images", "annotations", "categories"."""
        annotations = [a for entries in self._annotations.values() for a in entries]
        used = {annotation["category_name"] for annotation in annotations}
        return {
            "info": self.info,
            "images": self.images(),
            "annotations": annotations,
            "categories": [
                {"id": number, "name": name}
                for name, number in self._category_ids.items()
                if name in used
            ],
        }

    def _annotation(self, image_id: int, number: int, segment: Segment) -> dict[str, Any]:
        rle = encode_mask(segment.mask)
        name = segment.category_name
        annotation = {
            "id": self._next_annotation_id,
            "image_id": image_id,
            "segment_id": number,
            "category_id": self._category_ids.setdefault(name, len(self._category_ids) + 1),
            "category_name": name,
            "segmentation": rle,
            "bbox": [float(value) for value in mask_util.toBbox(rle)],
            "area": int(mask_util.area(rle)),
            "iscrowd": 0,
            "isthing": int(segment.is_thing),
            "score": round(segment.score, 5),
            "name_score": None if segment.name_score is None else round(segment.name_score, 5),
        }
        self._next_annotation_id += 1
        return annotation

    def _restore(self, stored: dict[str, Any]) -> None:
        for entry in stored["images"]:
            _check_image(entry)
        self._images = {image["file_name"]: image for image in stored["images"]}
        self._annotations = {image["id"]: [] for image in stored["images"]}
        for annotation in stored["annotations"]:
            self._annotations[annotation["image_id"]].append(annotation)
        self._category_ids = {entry["name"]: entry["id"] for entry in stored["categories"]}
        self._next_image_id = 1 + max(self._annotations, default=0)
        self._next_annotation_id = 1 + max((a["id"] for a in stored["annotations"]), default=0)


def _check_image(entry: dict[str, Any]) -> None:
    """Refuse what would lead out of the folder, or into an error much later.

    Raises:
        ValueError: an entry is not as `add` makes it.
    """
    name = entry.get("result_name", "image")
    if not isinstance(name, str) or not name.strip(". ") or set(name) & {"/", "\\", "\0"}:
        raise ValueError(f"the result_name {name!r} is no plain file name")
    numbers = [entry["id"], entry["height"], entry["width"]]
    if not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError(f"the image {entry['file_name']!r} has the id and size {numbers}")
    if not isinstance(entry["file_name"], str) or not isinstance(
        entry.get("refinements", []), list
    ):
        raise ValueError(f"the image {entry['id']} has no file_name or no list of refinements")


def _differences(stored: Any, wanted: dict[str, Any]) -> str:
    stored = stored if isinstance(stored, dict) else {}
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {stored.get(key)!r}, now {wanted.get(key)!r}" for key in keys)
