"""Predictions of a folder of images: lines while it is segmented, one COCO file at the end."""

from __future__ import annotations

import contextlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import pycocotools.mask as mask_util

from rose_d2.files import whole_file
from rose_d2.structures.mask_codec import encode_mask
from rose_d2.structures.segments import Segment
from rose_d2.visualization.visualizer import colour_of

# Of "info": where the images lay, which may differ between the commands of one run.
IMAGE_FOLDER = "image_folder"
# An image and its annotations: {"image": {...}, "annotations": [{...}, ...]}.
Record = dict[str, Any]
# Annotations, or the file with their line and where in it that begins.
Place = list[dict[str, Any]] | tuple[Path, int]
# An image, the names in it, and where its annotations are.
Entry = tuple[dict[str, Any], tuple[str, ...], Place]


class PredictionsFile:
    """The images done so far and their segments.

    Every image is one line that is appended to `predictions.I-of-N.jsonl`, of which each of N
    processes has its own; `finish` joins them into one COCO JSON object. What is written is
    proportional to the number of images, and a killed process loses at most its last line.
    Annotations stay on disk, but for those of an earlier, joined file.
    """

    def __init__(
        self, path: str | os.PathLike[str], info: dict[str, Any], share: tuple[int, int] = (0, 1)
    ) -> None:
        """
        Args:
            path: the file to write; it is not read here, see `open`.
            info: what the predictions were made with; becomes the file's "info".
            share: number of this process, and of all.
        """
        self.path = Path(path)
        self.info = info
        self.lines = self.path.with_name(f"{self.path.stem}.{share[0]}-of-{share[1]}.jsonl")
        self._images: dict[str, dict[str, Any]] = {}  # by file name
        self._names: dict[str, tuple[str, ...]] = {}
        self._places: dict[str, Place] = {}
        self._given_up: list[Path] = []
        self._file: IO[bytes] | None = None
        self._end = 0  # of the last whole line

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        info: dict[str, Any],
        *,
        overwrite: bool = False,
        share: tuple[int, int] = (0, 1),
    ) -> PredictionsFile:
        """Continue what is there, lines of other processes included, else begin anew.

        Args:
            path: where the file is or will be.
            info: what the predictions of this run are made with. Another "image_folder" than the
                earlier one is no other setting: the earlier one stays.
            overwrite: what was made with something else is given up instead of refused.
            share: number of this process, and of all.

        Raises:
            ValueError: a file is damaged or was made with another `info`.
        """
        predictions = cls(path, info, share)
        first = True
        for file in predictions._files():
            try:
                stored, entries = predictions._read(file)
                predictions._take_info(stored, first=first)
                first = False
                for image, names, place in entries:
                    predictions._index(image, names, place)
                continue
            except _OtherSettings as error:
                reason = str(error)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                reason = f"is not a file of predictions ({error!r})"
            if not overwrite:
                raise ValueError(
                    f"{file} {reason}; choose another output folder, or overwrite it (--overwrite)."
                )
            predictions._given_up.append(file)
        if predictions.lines in predictions._given_up:
            predictions._end = 0
        return predictions

    def __len__(self) -> int:
        return len(self._images)

    @property
    def is_joined(self) -> bool:
        """Whether there are no lines that `finish` would join."""
        return self._files() == [self.path]

    def find(self, file_name: str) -> dict[str, Any] | None:
        """Return the entry of an image that is done, or None."""
        return self._images.get(file_name)

    def names(self, file_name: str) -> tuple[str, ...]:
        """Return the names in an image that is done, each once, in the order of the alphabet."""
        return self._names[file_name]

    def images(self) -> list[dict[str, Any]]:
        """Return the entries of all images, in the order they were added."""
        return list(self._images.values())

    def forget(self, file_name: str) -> None:
        """Count an image as not done."""
        for known in (self._images, self._names, self._places):
            known.pop(file_name)

    def begin(self) -> None:
        """Open the lines of this process.

        Raises:
            OSError: the folder cannot be written.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for file in self._given_up:
            file.unlink(missing_ok=True)
        self._file = open(self.lines, "ab", buffering=0)  # noqa: SIM115  (until `finish`)
        self._file.truncate(self._end)  # what a killed process left of a line
        if not self._end:
            self._append({"info": self.info})

    def add(
        self, file_name: str, size: tuple[int, int], segments: Sequence[Segment], **extra: Any
    ) -> None:
        """Write one image and its segments; an earlier result of the same image is replaced.

        Args:
            file_name: identifies the image.
            size: (height, width).
            segments: what was found in it.
            extra: more keys of the image's entry.

        Raises:
            OSError: it cannot be written, and then is not added.
        """
        self.add_record(image_record(file_name, size, segments, **extra))

    def add_record(self, record: Record) -> None:
        """Write an image as `image_record` makes it, see `add`."""
        if self._file is None:
            self.begin()
        self._index(*_checked(record), (self.lines, self._append(record)))

    def records(self, order: Iterable[str] = ()) -> Iterator[Record]:
        """Read all images with their annotations, one at a time, numbered.

        Args:
            order: of the images' file names that no joined file has yet; others come last.
        """
        return number_records(map(self._record, self._ordered(order)))

    def finish(self, order: Iterable[str] = ()) -> None:
        """Join the lines of all processes, none of which may be at work, into the file.

        Args:
            order: see `records`.
        """
        self.close()
        names = self._ordered(order)
        write_coco(self.path, self.info, self.records(names))
        self._images = {name: self._images[name] for name in names}
        for file in self._files():
            if file != self.path:
                file.unlink()

    def close(self) -> None:
        """Leave the lines to a process that joins them."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _files(self) -> list[Path]:
        lines = sorted(self.path.parent.glob(f"{self.path.stem}.*-of-*.jsonl"))
        return [file for file in (self.path, *lines) if file.exists()]

    def _ordered(self, order: Iterable[str]) -> list[str]:
        joined = [name for name, place in self._places.items() if isinstance(place, list)]
        known = [name for name in order if name in self._places]
        return list(dict.fromkeys([*joined, *known, *self._places]))

    def _append(self, content: dict[str, Any]) -> int:
        """Write a line and return where it begins."""
        line = json.dumps(content, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
        assert self._file is not None
        begin, rest = self._end, memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            with contextlib.suppress(OSError):
                self._file.truncate(begin)
            raise
        self._end = begin + len(line)
        return begin

    def _index(self, image: dict[str, Any], names: tuple[str, ...], place: Place) -> None:
        file_name = image["file_name"]
        self._images[file_name] = image
        self._names[file_name] = names
        self._places[file_name] = place

    def _record(self, file_name: str) -> Record:
        place = self._places[file_name]
        if isinstance(place, list):
            return {"image": self._images[file_name], "annotations": place}
        path, begin = place
        with open(path, "rb") as file:
            file.seek(begin)
            record: Record = json.loads(file.readline())
        return record

    def _read(self, file: Path) -> tuple[dict[str, Any], list[Entry]]:
        """What a file was made with, and its images.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is no such file.
        """
        if file == self.path:
            stored = json.loads(file.read_text(encoding="utf-8"))
            return stored["info"], _joined_entries(stored)
        info, entries, begin = self.info, [], 0
        with open(file, "rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):  # its process was killed
                    break
                record = json.loads(line)
                if begin == 0:
                    info = record["info"]
                else:
                    entries.append((*_checked(record), (file, begin)))
                begin += len(line)
        if file == self.lines:
            self._end = begin
        return info, entries

    def _take_info(self, stored: dict[str, Any], *, first: bool) -> None:
        """Hold the settings of a file against those wanted, and keep to its folder of images."""
        place = {IMAGE_FOLDER: (stored if first else self.info).get(IMAGE_FOLDER)}
        if differences := _differences({IMAGE_FOLDER: None, **stored}, {**self.info, **place}):
            raise _OtherSettings(f"was made with other settings ({differences})")
        if first:
            self.info = stored


class _OtherSettings(ValueError):
    """A file was made with something else."""


def image_record(
    file_name: str, size: tuple[int, int], segments: Sequence[Segment], **extra: Any
) -> Record:
    """The entry of an image and its annotations, not numbered yet; see `PredictionsFile.add`."""
    image = {"file_name": file_name, "height": size[0], "width": size[1], **extra}
    annotations = [_annotation(number, segment) for number, segment in enumerate(segments, start=1)]
    return {"image": image, "annotations": annotations}


def number_records(records: Iterable[Record]) -> Iterator[Record]:
    """Give images, annotations and names their numbers, from 1 on in the order in which they come.

    Equal names have equal numbers.
    """
    categories: dict[str, int] = {}
    next_annotation = 1
    for image_id, record in enumerate(records, start=1):
        annotations = []
        for annotation in record["annotations"]:
            name = annotation["category_name"]
            number = categories.setdefault(name, len(categories) + 1)
            ids = {"id": next_annotation, "image_id": image_id}
            annotations.append({**ids, **annotation, **ids, "category_id": number})
            next_annotation += 1
        image = {"id": image_id, **record["image"]} | {"id": image_id}
        yield {"image": image, "annotations": annotations}


def coco_object(info: Mapping[str, Any], records: Iterable[Record]) -> dict[str, Any]:
    """Make the object that `write_coco` writes, of numbered records."""
    images, annotations = [], []
    categories: dict[str, int] = {}
    for record in records:
        images.append(record["image"])
        annotations += record["annotations"]
        categories.update({a["category_name"]: a["category_id"] for a in record["annotations"]})
    return {
        "info": dict(info),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }


def write_coco(
    path: str | os.PathLike[str], info: Mapping[str, Any], records: Iterable[Record]
) -> dict[str, int]:
    """Write numbered records as a COCO JSON, holding one image's annotations at a time.

    Returns:
        Numbers of "images", "annotations" and "categories".
    """
    images: list[dict[str, Any]] = []
    categories: dict[str, int] = {}

    def annotations() -> Iterator[dict[str, Any]]:
        for record in records:
            images.append(record["image"])
            for annotation in record["annotations"]:
                categories[annotation["category_name"]] = annotation["category_id"]
                yield annotation

    count = _write_object(
        path,
        {"info": dict(info)},
        annotations(),
        lambda: {
            "images": images,
            "categories": [{"id": number, "name": name} for name, number in categories.items()],
        },
    )
    return {"images": len(images), "annotations": count, "categories": len(categories)}


def write_panoptic(
    path: str | os.PathLike[str], info: Mapping[str, Any], records: Iterable[Record]
) -> None:
    """Write numbered records as the JSON of COCO's panoptic format.

    Args:
        path: the JSON; its PNGs, `result_name` + ".png", lie in a folder beside it.
        info: as in `write_coco`.
        records: their segments do not overlap, and `segment_id` is their number in the PNG.

    A name counts as a thing if most of its segments are; its colour is that of all pictures.
    """
    images: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    votes: Counter[str] = Counter()

    def annotations() -> Iterator[dict[str, Any]]:
        for record in records:
            image = {k: record["image"][k] for k in ("id", "file_name", "height", "width")}
            images.append(image)
            for entry in record["annotations"]:
                categories[entry["category_name"]] = entry["category_id"]
                votes[entry["category_name"]] += 1 if entry["isthing"] else -1
            yield {
                "image_id": image["id"],
                "file_name": f"{record['image']['result_name']}.png",
                "segments_info": [
                    {"id": entry["segment_id"]}
                    | {k: entry[k] for k in ("category_id", "iscrowd", "area", "bbox")}
                    for entry in record["annotations"]
                ],
            }

    _write_object(
        path,
        {"info": dict(info)},
        annotations(),
        lambda: {
            "images": images,
            "categories": [
                {
                    "id": number,
                    "name": name,
                    "isthing": int(votes[name] > 0),
                    "color": [int(value) for value in np.rint(255 * np.array(colour_of(name)))],
                }
                for name, number in categories.items()
            ],
        },
    )


def _write_object(
    path: str | os.PathLike[str],
    head: dict[str, Any],
    annotations: Iterable[dict[str, Any]],
    tail: Any,
) -> int:
    """Write a JSON object whose long list is never whole in memory; return the list's length.

    Args:
        path: the file, which appears whole or not at all.
        head: what stands before the list.
        annotations: the list.
        tail: called after the list; what stands behind it.
    """
    count = 0
    with (
        whole_file(path) as partial,
        open(partial, "w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        file.write(json.dumps(head, ensure_ascii=False)[:-1] + ', "annotations": [')
        for count, annotation in enumerate(annotations, start=1):  # noqa: B007
            file.write((", " if count > 1 else "") + json.dumps(annotation, ensure_ascii=False))
        file.write("], " + json.dumps(tail(), ensure_ascii=False)[1:] + "\n")
    return count


def _annotation(number: int, segment: Segment) -> dict[str, Any]:
    rle = encode_mask(segment.mask)
    return {
        "segment_id": number,
        "category_name": segment.category_name,
        "segmentation": rle,
        "bbox": [float(value) for value in mask_util.toBbox(rle)],
        "area": int(mask_util.area(rle)),
        "iscrowd": 0,
        "isthing": int(segment.is_thing),
        "score": round(segment.score, 5),
        "name_score": None if segment.name_score is None else round(segment.name_score, 5),
    }


def _joined_entries(stored: dict[str, Any]) -> list[Entry]:
    """The images of a COCO file."""
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in stored["images"]}
    for annotation in stored["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    entries: list[Entry] = []
    for image in stored["images"]:
        annotations = by_image[image["id"]]
        entries.append((*_checked({"image": image, "annotations": annotations}), annotations))
    return entries


def _checked(record: Record) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The image of a record and the names in it.

    Raises:
        ValueError: they would lead out of the folder, or into an error much later.
    """
    entry = record["image"]
    name = entry.get("result_name", "image")
    if not isinstance(name, str) or not name.strip(". ") or set(name) & {"/", "\\", "\0"}:
        raise ValueError(f"the result_name {name!r} is no plain file name")
    size = [entry["height"], entry["width"]]
    if not all(type(number) is int and number > 0 for number in size):
        raise ValueError(f"the image {entry['file_name']!r} has the size {size}")
    if not isinstance(entry["file_name"], str) or not isinstance(
        entry.get("refinements", []), list
    ):
        raise ValueError(f"an image has the file_name {entry['file_name']!r}, or no refinements")
    return entry, tuple(sorted({a["category_name"] for a in record["annotations"]}))


def _differences(stored: dict[str, Any], wanted: dict[str, Any]) -> str:
    keys = [key for key in {**stored, **wanted} if stored.get(key) != wanted.get(key)]
    return ", ".join(f"{key}: {stored.get(key)!r}, now {wanted.get(key)!r}" for key in keys)
