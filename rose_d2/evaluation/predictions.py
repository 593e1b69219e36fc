"""What a model answered to every item of a dataset, on disk, growing while it is evaluated."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch import Tensor

from rose_d2.files import write_text
from rose_d2.layers.lazy_tensor import LazyTensor
from rose_d2.structures.category_names import CategoryNames
from rose_d2.structures.mask_codec import decode_mask, encode_masks

DESCRIPTION_NAME = "predictions.json"
# Outputs that a level of the vocabulary may repeat.
_HEADLINE_KEYS = ("sem_seg_labels", "panoptic_seg")
# Keys of an output that say nothing new: the settings and the dataset have them.
_LEFT_OUT = ("metadata", "non_object_score")
# Field -> its name on disk, where version 0.1.0 kept log-probabilities under the field's own.
_RENAMED = {"name_scores": "name_probabilities", "name_score": "name_probability"}


# What decoding meets where a record is not as it was written.
_DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError),
    AssertionError,  # of Instances and Boxes
)
# Of one tensor: a thousand masks of a photograph of ten megapixels.
_MOST_NUMBERS = 10**10


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
        self._left_out: dict[str, str] = {}
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

    @property
    def left_out(self) -> dict[str, str]:
        """Why items have no output that could not be used, by key."""
        return {key: why for key, why in self._left_out.items() if key not in self._places}

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
        record = self.record(key)
        try:
            return decode_output(record)
        except (*_DAMAGE, MemoryError) as error:
            raise ValueError(
                f"The saved prediction {key!r} in {self.folder} is damaged ({error!r}); start anew "
                "with --overwrite-predictions."
            ) from error

    def add(self, key: str, output: Mapping[str, Any], task: str) -> None:
        """Write one output; `flush` makes it safe.

        Args:
            key: from `sample_key`.
            output: one item of the model's list of outputs.
            task: what the model was asked for.

        Raises:
            ValueError: the output holds something that cannot be written.
        """
        self._places[key] = self._write({"key": key, **encode_output(output, task)})

    def leave_out(self, key: str, reason: str) -> None:
        """Write that an item cannot be used; the next run tries it again.

        Args:
            key: from `sample_key`.
            reason: a sentence.
        """
        if self._left_out.get(key) != reason:
            self._write({"key": key, "left_out": reason})
        self._left_out[key] = reason

    def _write(self, record: Mapping[str, Any]) -> _Place:
        if self._file is None:
            self._file = self._open_own_file()
        place = _Place(Path(self._file.name), self._file.tell())
        line = json.dumps(record, ensure_ascii=False)
        self._file.write(line.encode(errors="backslashreplace") + b"\n")
        return place

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
            write_text(description, json.dumps(fingerprint, indent=1) + "\n")

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
                    record = json.loads(line)
                    key = record["key"]
                    if not isinstance(key, str):
                        raise TypeError(f"its key is {key!r}")
                except (ValueError, KeyError, TypeError) as error:
                    raise ValueError(
                        f"Line {number} of {path} is damaged ({error}); remove that line, or start "
                        "anew with --overwrite-predictions."
                    ) from error
                if "left_out" in record:
                    self._left_out[key] = str(record["left_out"])
                else:
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


def encode_output(output: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Describe one output of the model with what JSON can hold.

    Masks become RLE, maps of labels or segments one RLE per value, tensors lists of numbers
    (every float32 survives). Of "sem_seg" only the best label of each pixel is kept, which is all
    an evaluator uses, and of the instances all that were found; "metadata" is left out. Levels
    that are one object are written once.

    Args:
        output: one item of the model's list of outputs.
        task: what the model was asked for.

    Returns:
        The record; `decode_output` reads it.

    Raises:
        ValueError: the output holds something that has no place in a record.
    """
    output = {key: value for key, value in output.items() if key not in _LEFT_OUT}
    if "open_instances" in output:
        output["instances"] = output.pop("open_instances")
    scores = output.pop("sem_seg", None)
    if scores is not None and "sem_seg_labels" not in output:
        output["sem_seg_labels"] = best_labels(scores)
    levels = output.pop("levels", None)
    before = output.pop("before", None)
    record: dict[str, Any] = {"task": task}
    if before is not None:  # refinement
        record["before"] = encode_output(before, task)
    if levels is not None:
        record["levels"] = _encode_levels(levels)
    for key, value in output.items():
        level = _level_with(key, value, levels or {}) if key in _HEADLINE_KEYS else None
        record[key] = _encode(value, key) if level is None else {"level": level}
    return record


def decode_output(record: Mapping[str, Any]) -> dict[str, Any]:
    """Rebuild an output from `encode_output`'s record, on the CPU.

    Args:
        record: as written; its "key" and "task" are passed over.

    Returns:
        The output, with "sem_seg_labels" (H, W) in place of "sem_seg" and all that was found in
        "open_instances". Levels that were one object are one object again.
    """
    output: dict[str, Any] = {}
    levels = _decode_levels(record["levels"]) if "levels" in record else {}
    for key, value in record.items():
        if key == "levels":
            output["levels"] = levels
        elif key == "before":
            output["before"] = decode_output(value)
        elif isinstance(value, Mapping) and "level" in value:
            output[key] = levels[value["level"]][key]
        elif key not in ("key", "task"):
            output["open_instances" if key == "instances" else key] = _decode(value)
    return output


def best_labels(sem_seg: Tensor) -> Tensor:
    """Channel of the highest score of every pixel.

    Channels without any score, nearly all of them in a large vocabulary, are not looked at again.

    Args:
        sem_seg: (C, H, W) non-negative scores, or (C + 1, H, W) where the last is "no object".

    Returns:
        int16 (H, W).
    """
    channels = (sem_seg.flatten(1).amax(dim=1) > 0).nonzero().flatten()
    if len(channels) == 0:
        return sem_seg.max(dim=0).indices.to(torch.int16)
    return channels[sem_seg[channels].max(dim=0).indices].to(torch.int16)


def _encode_levels(levels: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One entry per object, with the names of the levels that share it."""
    entries: list[dict[str, Any]] = []
    seen: dict[int, dict[str, Any]] = {}
    for name, content in levels.items():
        if id(content) not in seen:
            encoded = {key: _encode(value, key) for key, value in content.items()}
            seen[id(content)] = {"names": [], "content": encoded}
            entries.append(seen[id(content)])
        seen[id(content)]["names"].append(name)
    return entries


def _decode_levels(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    levels = {}
    for entry in entries:
        content = {key: _decode(value) for key, value in entry["content"].items()}
        levels |= dict.fromkeys(entry["names"], content)
    return levels


def _level_with(key: str, value: Any, levels: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Name of a level whose entry `key` equals the headline's, None if there is none."""
    for name, content in levels.items():
        if key in content and _same(content[key], value):
            return name
    return None


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if isinstance(a, Tensor | LazyTensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return _same(a[0], b[0]) and a[1] == b[1]


def _encode(value: Any, name: str) -> Any:
    if isinstance(value, Tensor | LazyTensor):
        return _encode_tensor(value.cpu())
    if isinstance(value, Instances):
        fields = {
            _RENAMED.get(key, key): _encode(field, key) for key, field in value.get_fields().items()
        }
        return {"image_size": list(value.image_size), "fields": fields}
    if isinstance(value, Boxes):
        return {"boxes": _encode(value.tensor, name)}
    if isinstance(value, CategoryNames):
        return {"names": list(value)}
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], Tensor):
        return {"segments": _encode(value[1], name), "map": _encode(value[0], name)}
    if isinstance(value, list | tuple):
        return [_encode(item, name) for item in value]
    if isinstance(value, Mapping):
        entries = {_RENAMED.get(key, key): _encode(item, key) for key, item in value.items()}
        return {"entries": entries}
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, str | int | float):
        return value
    raise ValueError(
        f"The model's output {name!r} is a {type(value).__name__}, which predictions cannot hold; "
        "return tensors, Instances, Boxes, CategoryNames, numbers or text, or leave "
        "--save-predictions out."
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    if "shape" in value:
        return _decode_tensor(value)
    if "fields" in value:
        fields = _with_probabilities({k: _decode(field) for k, field in value["fields"].items()})
        return Instances(tuple(value["image_size"]), **fields)
    if "boxes" in value:
        return Boxes(_decode(value["boxes"]))
    if "names" in value:
        return CategoryNames(value["names"])
    if "map" in value:
        return _decode(value["map"]), _decode(value["segments"])
    return _with_probabilities({key: _decode(item) for key, item in value["entries"].items()})


def _with_probabilities(fields: dict[str, Any]) -> dict[str, Any]:
    """Give name scores their name in the model's outputs, and version 0.1.0's their unit."""
    for name, stored in _RENAMED.items():
        if name in fields:  # a log-probability
            logarithm = fields[name]
            is_tensor = isinstance(logarithm, Tensor)
            fields[name] = logarithm.exp() if is_tensor else math.exp(logarithm)
        if stored in fields:
            fields[name] = fields.pop(stored)
    return fields


def _encode_tensor(tensor: Tensor | LazyTensor) -> dict[str, Any]:
    described = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.dtype == torch.bool and tensor.ndim >= 2:
        stack = tensor if tensor.ndim == 3 else tensor.reshape(-1, *tensor.shape[-2:])
        masks = encode_masks(stack)
        return described | {"masks": [mask["counts"] for mask in masks]}
    if not tensor.is_floating_point() and tensor.ndim == 2:
        values = tensor.unique()
        masks = [encode_masks(tensor[None] == value)[0]["counts"] for value in values.tolist()]
        return described | {"labels": list(zip(values.tolist(), masks, strict=True))}
    return described | {"values": tensor.flatten().tolist()}


def _decode_tensor(value: Mapping[str, Any]) -> Tensor:
    shape, dtype = value["shape"], getattr(torch, str(value["dtype"]), None)
    sides = isinstance(shape, list) and all(type(side) is int and side >= 0 for side in shape)
    if not isinstance(dtype, torch.dtype) or not sides or math.prod(shape) > _MOST_NUMBERS:
        raise ValueError(f"a tensor of dtype {value['dtype']!r} and shape {shape!r}")
    if "values" in value:
        return torch.tensor(value["values"], dtype=dtype).reshape(shape)
    tensor = torch.zeros(shape, dtype=dtype)
    if "masks" in value:
        for mask, counts in zip(tensor.view(-1, *shape[-2:]), value["masks"], strict=True):
            mask.copy_(_decode_mask(counts, shape))
    else:
        for label, counts in value["labels"]:
            tensor[_decode_mask(counts, shape)] = label
    return tensor


def _decode_mask(counts: str, shape: list[int]) -> Tensor:
    """From the counts of COCO's compressed RLE; the size stands beside them, once."""
    mask = decode_mask({"size": shape[-2:], "counts": counts}, *shape[-2:])
    return torch.from_numpy(np.ascontiguousarray(mask))
