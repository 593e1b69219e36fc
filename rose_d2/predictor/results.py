"""Results: what was found in one image, as arrays, pictures, files and other libraries' objects."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from PIL import Image

from rose_d2.dependencies import require
from rose_d2.files import whole_file, write_text
from rose_d2.predictor.predictions_file import coco_object, image_record, number_records
from rose_d2.structures.mask_codec import decode_mask, ids_to_colours
from rose_d2.structures.segments import Segment
from rose_d2.visualization.visualizer import RoseVisualizer

_JPEG_QUALITY = 92


@dataclass(frozen=True, eq=False)
class Results(Sequence[Segment]):
    """The segments of one image, best first; a sequence of `Segment`.

    N is the number of segments, (H, W) the size of the image.

    Attributes:
        image: uint8 (H, W, 3), RGB.
        segments: what was found.
        task: what was asked: "semantic", "instance", "panoptic", "referring" or "region".
        path: file or address of the image; None for one in memory.
        expression: of the task "referring".

    Example:
        >>> results = rose("photo.jpg")
        >>> results.names, results.masks.shape
        >>> results.save("overlay.jpg")
        >>> [segment.category_name for segment in results if segment.is_thing]
    """

    image: np.ndarray
    segments: tuple[Segment, ...]
    task: str = "panoptic"
    path: str | None = None
    expression: str | None = None

    @overload
    def __getitem__(self, index: int) -> Segment: ...

    @overload
    def __getitem__(self, index: slice) -> Results: ...

    def __getitem__(self, index: int | slice) -> Segment | Results:
        if isinstance(index, slice):
            return self._with(self.segments[index])
        return self.segments[index]

    def __iter__(self) -> Iterator[Segment]:
        return iter(self.segments)

    def __len__(self) -> int:
        return len(self.segments)

    def __repr__(self) -> str:
        height, width = self.size
        found = ", ".join(self.names) or "nothing"
        return f"<Results of {self.path or 'an image'} ({width} x {height}), {self.task}: {found}>"

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def masks(self) -> np.ndarray:
        """Bool (N, H, W)."""
        if not self.segments:
            return np.zeros((0, *self.size), dtype=bool)
        return np.stack([segment.mask for segment in self.segments])

    @property
    def boxes(self) -> np.ndarray:
        """float32 (N, 4): (x1, y1, x2, y2) in pixels, right and bottom exclusive."""
        return np.array([_box(segment.mask) for segment in self], np.float32).reshape(-1, 4)

    @property
    def names(self) -> list[str]:
        """N generated names, or names of the vocabulary."""
        return [segment.category_name for segment in self.segments]

    @property
    def scores(self) -> np.ndarray:
        """float32 (N,): objectness in 0 to 1, how sure the model is that something is there."""
        return np.array([segment.score for segment in self.segments], np.float32)

    @property
    def name_scores(self) -> np.ndarray:
        """float32 (N,): probability of the name in 0 to 1; NaN where it was not generated."""
        values = [np.nan if s.name_score is None else s.name_score for s in self.segments]
        return np.array(values, np.float32)

    @property
    def is_thing(self) -> np.ndarray:
        """Bool (N,): a countable object, not stuff such as sky."""
        return np.array([segment.is_thing for segment in self.segments], bool)

    def filter(self, min_score: float = 0.0, min_name_score: float = 0.0) -> Results:
        """The results without segments of lower scores; a name without a score stays."""
        kept = [
            segment
            for segment in self.segments
            if segment.score >= min_score
            and (segment.name_score is None or segment.name_score >= min_name_score)
        ]
        return self._with(kept)

    def plot(self) -> np.ndarray:
        """Draw masks, names and the names' probabilities on the image.

        Returns:
            uint8 (h, w, 3), RGB; small images are drawn enlarged, very large ones reduced.
        """
        visualizer = RoseVisualizer(self.image)
        if self.task == "referring" and self.segments:
            mask = self.masks.any(axis=0)
            return visualizer.draw_referring(mask, self.expression or "").get_image()
        return visualizer.draw_segments(
            [segment.mask for segment in self.segments],
            [segment.category_name or "(no name)" for segment in self.segments],
            [segment.name_score for segment in self.segments],
            is_thing=[segment.is_thing for segment in self.segments],
        ).get_image()

    def save(self, path: str | Path) -> Path:
        """Write a picture (see `plot`) or, if the name ends in .json, `to_json`.

        Raises:
            ValueError: the suffix is of no picture format that can be written.
        """
        path = Path(path)
        if path.suffix.lower() == ".json":
            write_text(path, self.to_json() + "\n")
            return path
        if Image.registered_extensions().get(path.suffix.lower()) not in Image.SAVE:
            raise ValueError(f"{str(path)!r} ends in no picture format; try .jpg, .png or .json.")
        with whole_file(path) as partial:
            Image.fromarray(self.plot()).save(partial, quality=_JPEG_QUALITY)
        return path

    def to_dict(self) -> dict[str, Any]:
        """What `to_json` writes: size, task, and the segments with their masks as COCO's RLE."""
        kept = ("segmentation", "bbox", "area", "score", "name_score")
        return {
            "path": self.path,
            "height": self.size[0],
            "width": self.size[1],
            "task": self.task,
            "expression": self.expression,
            "segments": [
                {"name": entry["category_name"], "is_thing": bool(entry["isthing"])}
                | {key: entry[key] for key in kept}
                for entry in self.to_coco()["annotations"]
            ],
        }

    def to_json(self) -> str:
        """One line of JSON; `from_json` reads it."""
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | dict[str, Any], image: np.ndarray | None = None) -> Results:
        """Read what `to_json` or `to_dict` gave.

        Args:
            text: the JSON, or the object in it.
            image: uint8 (H, W, 3), RGB, to draw on; None is black.

        Raises:
            ValueError: it is not of this form, or masks have another size than the image.
        """
        try:
            content = json.loads(text) if isinstance(text, str) else text
            size = int(content["height"]), int(content["width"])
            segments = tuple(_segment(entry, size) for entry in content["segments"])
            rest = {key: content.get(key) for key in ("path", "expression")}
            task = content["task"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"This is no result of Results.to_json ({error!r}).") from error
        image = np.zeros((*size, 3), np.uint8) if image is None else image
        if image.shape[:2] != size:
            raise ValueError(
                f"The result is of an image of {size} (height, width), got {image.shape[:2]}."
            )
        return cls(image, segments, task, **rest)

    def to_coco(self) -> dict[str, Any]:
        """A COCO object with "images", "annotations" (RLE) and "categories" of this image."""
        record = image_record(self.path or "image", self.size, self.segments)
        info = {"task": self.task, "expression": self.expression}
        return coco_object(info, number_records([record]))

    def to_panoptic(self) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """COCO's panoptic format; where segments overlap, the better scored one has the pixel.

        Returns:
            uint8 (H, W, 3), to be saved as PNG: id = R + 256 G + 65536 B, 0 where nothing is; and
            its segments_info: id, category_id, category_name, isthing, iscrowd, bbox, area. A
            segment that keeps no pixel is left out.

        Raises:
            ModuleNotFoundError: panopticapi is not installed.
        """
        ids = np.zeros(self.size, dtype=np.int64)
        worst_first = sorted(enumerate(self.segments, 1), key=lambda item: item[1].score)
        for number, segment in worst_first:
            ids[segment.mask] = number
        entries = []
        for entry in self.to_coco()["annotations"]:
            visible = ids == entry["segment_id"]
            if visible.any():
                x1, y1, x2, y2 = _box(visible)
                kept = ("category_id", "category_name", "isthing", "iscrowd")
                entries.append(
                    {"id": entry["segment_id"], **{key: entry[key] for key in kept}}
                    | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(visible.sum())}
                )
        return ids_to_colours(ids).astype(np.uint8), entries

    def to_supervision(self) -> Any:
        """`supervision.Detections`, names in `data["class_name"]`, `confidence` the objectness.

        Raises:
            ModuleNotFoundError: supervision is not installed.
        """
        supervision = require("supervision", "Results.to_supervision")
        known = list(dict.fromkeys(self.names))
        return supervision.Detections(
            xyxy=self.boxes,
            mask=self.masks,
            confidence=self.scores,
            class_id=np.array([known.index(name) for name in self.names], dtype=int),
            data={
                "class_name": np.array(self.names, dtype=str),
                "name_score": self.name_scores,
                "is_thing": self.is_thing,
            },
        )

    def to_fiftyone(self) -> Any:
        """`fiftyone.Detections` with instance masks, `name_score` and `is_thing`.

        Raises:
            ModuleNotFoundError: fiftyone is not installed.
        """
        fiftyone = require("fiftyone", "Results.to_fiftyone")
        height, width = self.size
        detections = []
        for segment in self.segments:
            x1, y1, x2, y2 = _box(segment.mask)
            detections.append(
                fiftyone.Detection(
                    label=segment.category_name,
                    bounding_box=[x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height],
                    mask=segment.mask[y1:y2, x1:x2],
                    confidence=segment.score,
                    name_score=segment.name_score,
                    is_thing=segment.is_thing,
                )
            )
        return fiftyone.Detections(detections=detections)

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame`, one segment a row, boxes and areas in pixels.

        Raises:
            ModuleNotFoundError: pandas is not installed.
        """
        pandas = require("pandas", "Results.to_pandas")
        return pandas.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """One segment a row: name, name_score, score, is_thing, x1, y1, x2, y2, area."""
        rows = []
        for segment in self.segments:
            x1, y1, x2, y2 = _box(segment.mask)
            rows.append(
                {
                    "name": segment.category_name,
                    "name_score": segment.name_score,
                    "score": segment.score,
                    "is_thing": segment.is_thing,
                    "x1": x1,
                    "y1": y1,
                    "x2": x2,
                    "y2": y2,
                    "area": int(np.count_nonzero(segment.mask)),
                }
            )
        return rows

    def _repr_html_(self) -> str:
        """The picture with a table, in a notebook."""
        picture = io.BytesIO()
        Image.fromarray(self.plot()).save(picture, "JPEG", quality=_JPEG_QUALITY)
        code = base64.b64encode(picture.getvalue()).decode("ascii")
        body = "".join(
            f"<tr><td>{html.escape(row['name'] or '(no name)')}</td>"
            f"<td>{_percent(row['name_score'])}</td><td>{_percent(row['score'])}</td></tr>"
            for row in self.rows()
        )
        return (
            f'<img src="data:image/jpeg;base64,{code}" style="max-width: 100%">'
            f"<table><tr><th>name</th><th>sure of it</th><th>objectness</th></tr>{body}</table>"
        )

    def _with(self, segments: Sequence[Segment]) -> Results:
        return Results(self.image, tuple(segments), self.task, self.path, self.expression)


def _segment(entry: dict[str, Any], size: tuple[int, int]) -> Segment:
    return Segment(
        mask=decode_mask(entry["segmentation"], *size),
        category_name=str(entry["name"]),
        score=float(entry["score"]),
        name_score=None if entry["name_score"] is None else float(entry["name_score"]),
        is_thing=bool(entry["is_thing"]),
    )


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x1, y1, x2, y2) of a mask with at least one pixel, right and bottom exclusive."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"
