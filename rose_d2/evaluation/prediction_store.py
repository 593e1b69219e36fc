"""What a model answered to every item of a dataset, on disk, growing while it is evaluated."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from detectron2.utils import comm

from rose_d2.evaluation.prediction_encoding import decode_output, encode_output

__all__ = ["PredictionStore", "decode_output", "encode_output", "sample_key"]

DESCRIPTION_NAME = "predictions.json"


def sample_key(sample: Mapping[str, Any]) -> str:
    """What tells an item of a dataset from all others.

    Args:
        sample: a dataset dict or a model input.

    Returns:
        "<ref_id>-<sent_id>" of a referring sentence ("<ref_id>" of a whole reference), else the
        image id.
    """
    if "ref_id" in sample:
        parts = (sample[name] for name in ("ref_id", "sent_id") if name in sample)
        return "-".join(map(str, parts))
    return str(sample["image_id"])


class _Place(NamedTuple):
    """Where a record stands."""

    path: Path
    offset: int


class PredictionStore:
    """Outputs by key in one folder per dataset, one line of JSON each.

    Every process of a job writes a file of its own and reads those of all, so that a job may be
    continued on another number of processes. A process that is killed leaves at most a
    half-written last line, which nobody reads.

    To write, all processes have to make the store together.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        fingerprint: Mapping[str, Any] | None,
        *,
        overwrite: bool = False,
    ) -> None:
        """
        Args:
            folder: of one dataset; made if it does not exist.
            fingerprint: what the outputs depend on, JSON values by name. None opens what is
                there, for reading.
            overwrite: an earlier content is given up.

        Raises:
            FileNotFoundError: `fingerprint` is None and the folder holds no predictions.
            ValueError: the folder has predictions made with something else, or a damaged file.
        """
        self.folder = Path(folder)
        self._file: BinaryIO | None = None
        if fingerprint is not None:
            if comm.is_main_process():
                self._prepare(dict(fingerprint), overwrite)
            comm.synchronize()
        self.fingerprint = self._read_description()
        if fingerprint is not None:
            self.check_fingerprint(fingerprint)
        self._places: dict[str, _Place] = {}
        for path in sorted(self.folder.glob("process-*.jsonl")):
            self._index(path)
        if fingerprint is not None:
            comm.synchronize()  # nobody may write before everybody has read

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, key: object) -> bool:
        return key in self._places

    def keys(self) -> list[str]:
        """The keys of all items that have an output."""
        return list(self._places)

    def check_fingerprint(self, fingerprint: Mapping[str, Any]) -> None:
        """Refuse another fingerprint than that of the folder.

        Raises:
            ValueError: naming the differences.
        """
        if self.fingerprint != dict(fingerprint):
            raise ValueError(
                f"{self.folder} holds predictions made with other settings "
                f"({_differences(self.fingerprint, fingerprint)}); choose another OUTPUT_DIR, or "
                "start anew with --overwrite-predictions."
            )

    def record(self, key: str) -> dict[str, Any]:
        """The JSON object of an item, with its "key" and "task"."""
        self.flush()
        place = self._places[key]
        with place.path.open("rb") as file:
            file.seek(place.offset)
            return json.loads(file.readline())

    def get(self, key: str) -> dict[str, Any]:
        """The output of an item, see `decode_output`.

        Raises:
            KeyError: it has none.
        """
        return decode_output(self.record(key))

    def add(self, key: str, output: Mapping[str, Any], task: str) -> None:
        """Write one output; `flush` makes it safe.

        Args:
            key: from `sample_key`.
            output: one item of the model's list of outputs.
            task: what the model was asked for.

        Raises:
            ValueError: the output holds something that cannot be written.
        """
        line = json.dumps({"key": key, **encode_output(output, task)}, ensure_ascii=False)
        if self._file is None:
            self._file = self._open_own_file()
        place = _Place(Path(self._file.name), self._file.tell())
        self._file.write(line.encode() + b"\n")
        self._places[key] = place

    def flush(self) -> None:
        """Hand what was added to the operating system: it survives the end of this process."""
        if self._file is not None:
            self._file.flush()

    def close(self) -> None:
        """Flush, and close the file; adding again opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _prepare(self, fingerprint: dict[str, Any], overwrite: bool) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        description = self.folder / DESCRIPTION_NAME
        if overwrite:
            for path in (description, *self.folder.glob("process-*.jsonl")):
                path.unlink(missing_ok=True)
        if not description.exists():
            partial = description.with_suffix(".partial")
            partial.write_text(json.dumps(fingerprint, indent=1) + "\n", encoding="utf-8")
            os.replace(partial, description)

    def _read_description(self) -> dict[str, Any]:
        path = self.folder / DESCRIPTION_NAME
        if not path.is_file():
            raise FileNotFoundError(
                f"No predictions in {self.folder} ({DESCRIPTION_NAME} is missing); write some with "
                "`python train_net.py --eval-only --save-predictions`."
            )
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged ({error}); start anew with --overwrite-predictions."
            ) from error

    def _index(self, path: Path) -> None:
        offset = 0
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return  # the last line, half-written
                try:
                    key = json.loads(line)["key"]
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"Line {number} of {path} is damaged ({error}); remove that line, or start "
                        "anew with --overwrite-predictions."
                    ) from error
                self._places[key] = _Place(path, offset)
                offset += len(line)

    def _open_own_file(self) -> BinaryIO:
        """This process's file, to append to; a half-written last line is cut off."""
        path = self.folder / f"process-{comm.get_rank():04d}.jsonl"
        file = path.open("r+b" if path.exists() else "w+b")
        content_end = _end_of_last_line(file)
        file.truncate(content_end)
        file.seek(content_end)
        return file


def _end_of_last_line(file: BinaryIO, block: int = 1 << 20) -> int:
    """Position after the last newline, 0 without one."""
    end = file.seek(0, os.SEEK_END)
    while end > 0:
        start = max(0, end - block)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], limit: int = 5) -> str:
    names = [name for name in {**stored, **wanted} if stored.get(name) != wanted.get(name)]
    shown = [f"{name}: {stored.get(name)!r}, now {wanted.get(name)!r}" for name in names[:limit]]
    return "; ".join(shown) + ("; and others" if len(names) > limit else "")
