"""Segments of very many images as Parquet: one row an image, read back as COCO or as `Results`.

A folder of such files has `part-*.parquet` with the images that were segmented and
`failed-*.parquet` with those that could not be, and why. An image is done when a file has it, and
every file appears whole, so a run that was killed loses at most what it had in hand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rose_d2.dependencies import require
from rose_d2.files import whole_file, write_text
from rose_d2.predictor.results import Results

DONE, FAILED = "part", "failed"
RUN_FILE = "run.json"


def image_row(results: Results, path: str) -> dict[str, Any]:
    """The row of an image: path, height, width, task, expression, and its segments as a list.

    Args:
        results: of the image.
        path: what identifies it.
    """
    return results.to_dict() | {"path": path}


def write_rows(folder: Path, kind: str, rows: Sequence[dict[str, Any]]) -> Path | None:
    """Add one file with rows to a folder.

    Args:
        folder: of the run.
        kind: `DONE`, rows of `image_row`; or `FAILED`, rows with "path" and "reason".
        rows: to write; none writes nothing.

    Raises:
        ModuleNotFoundError: pyarrow is not installed.
    """
    if not rows:
        return None
    pyarrow = require("pyarrow", "Parquet")
    parquet = require("pyarrow.parquet", "Parquet")
    # By its images, so that a batch that is done again replaces itself.
    digest = hashlib.sha256("\0".join(row["path"] for row in rows).encode()).hexdigest()
    path = Path(folder) / f"{kind}-{digest[:32]}.parquet"
    with whole_file(path) as partial:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=_schema(kind)), partial)
    return path


def read_rows(
    folder: str | Path, kind: str = DONE, columns: Sequence[str] | None = None
) -> Iterator:
    """All rows of a folder, file by file; an image that two files have comes once.

    Args:
        folder: of the run.
        kind: `DONE` or `FAILED`.
        columns: only these, besides "path".
    """
    parquet = require("pyarrow.parquet", "Parquet")
    seen: set[str] = set()
    wanted = None if columns is None else ["path", *columns]
    for file in sorted(Path(folder).glob(f"{kind}-*.parquet")):
        for row in parquet.read_table(file, columns=wanted).to_pylist():
            if row["path"] not in seen:
                seen.add(row["path"])
                yield row


def finished(folder: str | Path) -> set[str]:
    """Paths of the images that need not be done again: those that were segmented."""
    return {row["path"] for row in read_rows(folder, columns=())}


def read_results(folder: str | Path, images: bool = False) -> Iterator[Results]:
    """The results of a folder, one image at a time.

    Args:
        folder: of the run.
        images: also read the images, to draw on; without, they are black.
    """
    from rose_d2.predictor.sources import read_source

    for row in read_rows(folder):
        yield Results.from_json(row, read_source(row["path"]) if images else None)


def to_coco(folder: str | Path, file: str | Path) -> dict[str, int]:
    """Write a folder as one COCO JSON, as the demo's predictions.json, image by image.

    Returns:
        Numbers of "images", "annotations" and "categories".
    """
    from rose_d2.predictor.predictions_file import image_record, number_records, write_coco

    found = (
        image_record(str(results.path), results.size, results.segments)
        for results in read_results(folder)
    )
    return write_coco(file, {"description": "Segments by ROSE (rose_d2)"}, number_records(found))


def begin_run(folder: Path, settings: dict[str, Any]) -> None:
    """Make the folder of a run, or see that it is one of the same settings.

    Raises:
        ValueError: it holds a run of other settings.
    """
    path = Path(folder) / RUN_FILE
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key in {**known, **settings} if known.get(key) != settings.get(key)]
        if other:
            raise ValueError(
                f"{folder} was made with other settings ({', '.join(sorted(other))}); choose "
                "another folder."
            )
    write_text(path, json.dumps(settings, indent=1) + "\n")


def _schema(kind: str) -> Any:
    pyarrow = require("pyarrow", "Parquet")
    text, number = pyarrow.string(), pyarrow.float64()
    if kind == FAILED:
        return pyarrow.schema([("path", text), ("reason", text)])
    size = pyarrow.int32()
    code = pyarrow.struct([("size", pyarrow.list_(size)), ("counts", text)])
    segment = pyarrow.struct(
        [
            *[("name", text), ("is_thing", pyarrow.bool_()), ("segmentation", code)],
            *[("bbox", pyarrow.list_(number)), ("area", pyarrow.int64())],
            *[("score", number), ("name_score", number)],
        ]
    )
    return pyarrow.schema(
        [
            *[("path", text), ("height", size), ("width", size), ("task", text)],
            *[("expression", text), ("segments", pyarrow.list_(segment))],
        ]
    )
