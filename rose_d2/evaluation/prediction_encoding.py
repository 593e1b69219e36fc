"""Model outputs as JSON and back, exactly, in a form small enough to keep for a whole dataset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from pycocotools import mask as coco_mask
from torch import Tensor

from rose_d2.evaluation.mask_encoding import encode_masks
from rose_d2.structures.category_names import CategoryNames

# Outputs that a level of the vocabulary may repeat.
_HEADLINE_KEYS = ("sem_seg_labels", "panoptic_seg")


def encode_output(output: Mapping[str, Any], task: str) -> dict[str, Any]:
    """Describe one output of the model with what JSON can hold.

    Masks become RLE, maps of labels or segments one RLE per value, tensors lists of numbers
    (every float32 survives). Of "sem_seg" only the best label of each pixel is kept, which is all
    an evaluator uses. Levels that are one object are written once.

    Args:
        output: one item of the model's list of outputs.
        task: what the model was asked for.

    Returns:
        The record; `decode_output` reads it.

    Raises:
        ValueError: the output holds something that has no place in a record.
    """
    output = dict(output)
    if "sem_seg" in output:
        output["sem_seg_labels"] = best_labels(output.pop("sem_seg"))
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
        The output, with "sem_seg_labels" (H, W) in place of "sem_seg". Levels that were one
        object are one object again.
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
            output[key] = _decode(value)
    return output


def best_labels(sem_seg: Tensor) -> Tensor:
    """Channel of the highest score of every pixel.

    Channels without any score, nearly all of them in a large vocabulary, are not looked at again.

    Args:
        sem_seg: (C + 1, H, W) non-negative scores; the last channel is "no object".

    Returns:
        int16 (H, W).
    """
    channels = (sem_seg.flatten(1).amax(dim=1) > 0).nonzero().flatten()
    if len(channels) == 0:
        return sem_seg.argmax(dim=0).to(torch.int16)
    return channels[sem_seg[channels].argmax(dim=0)].to(torch.int16)


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
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    return _same(a[0], b[0]) and a[1] == b[1]


def _encode(value: Any, name: str) -> Any:
    if isinstance(value, Tensor):
        return _encode_tensor(value.detach().cpu())
    if isinstance(value, Instances):
        fields = {key: _encode(field, key) for key, field in value.get_fields().items()}
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
        return {"entries": {key: _encode(item, key) for key, item in value.items()}}
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
        fields = {key: _decode(field) for key, field in value["fields"].items()}
        return Instances(tuple(value["image_size"]), **fields)
    if "boxes" in value:
        return Boxes(_decode(value["boxes"]))
    if "names" in value:
        return CategoryNames(value["names"])
    if "map" in value:
        return _decode(value["map"]), _decode(value["segments"])
    return {key: _decode(item) for key, item in value["entries"].items()}


def _encode_tensor(tensor: Tensor) -> dict[str, Any]:
    described = {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
    if tensor.dtype == torch.bool and tensor.ndim >= 2:
        masks = encode_masks(tensor.reshape(-1, *tensor.shape[-2:]))
        return described | {"masks": [mask["counts"] for mask in masks]}
    if not tensor.is_floating_point() and tensor.ndim == 2:
        values = tensor.unique()
        masks = [encode_masks(tensor[None] == value)[0]["counts"] for value in values.tolist()]
        return described | {"labels": list(zip(values.tolist(), masks, strict=True))}
    return described | {"values": tensor.flatten().tolist()}


def _decode_tensor(value: Mapping[str, Any]) -> Tensor:
    shape, dtype = value["shape"], getattr(torch, value["dtype"])
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
    decoded = coco_mask.decode({"size": shape[-2:], "counts": counts})
    return torch.from_numpy(np.ascontiguousarray(decoded)).bool()
