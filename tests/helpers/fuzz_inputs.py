"""Sound inputs of every class, and what files do to them: mutations drawn from a seed."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from rose_d2.structures.mask_codec import decode_mask, encode_mask

# Values that have no business where they land.
STRANGE: tuple[Any, ...] = (
    *(None, True, "", "x", "\ud800", "\0", "../../x", [], {}, [[]], [None], -1, 0, 1, 0.5),
    *(2**31, 2**63, -(2**127), 1e9, 1e18, 1e308, float("nan"), float("inf"), "1", "1.0", "null"),
)


def mutate(value: Any, draw: random.Random) -> Any:
    """A copy of plain containers with up to three places changed, taken away or doubled."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        value = _mutate_once(value, draw)
    return value


def _mutate_once(value: Any, draw: random.Random) -> Any:
    if not isinstance(value, list | dict) or not value or draw.random() < 0.1:
        return draw.choice(STRANGE)
    key = draw.choice(list(value) if isinstance(value, dict) else range(len(value)))
    kind = draw.random()
    if kind < 0.1:
        del value[key]
    elif kind < 0.2 and isinstance(value, list):
        value.append(value[key])
    else:
        value[key] = _mutate_once(value[key], draw)
    return value


def damage(content: bytes, draw: random.Random) -> bytes:
    """The bytes of a file cut off, with some of them changed, or all of them replaced."""
    kind = draw.random()
    if kind < 0.3:
        return content[: draw.randrange(len(content) + 1)]
    if kind < 0.4:
        return draw.randbytes(draw.randrange(200))
    changed = bytearray(content)
    for _ in range(draw.randint(1, 8)):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _square() -> np.ndarray:
    mask = np.zeros((12, 16), dtype=bool)
    mask[2:7, 2:8] = True
    return mask


def annotations() -> dict[str, Any]:
    """A sound COCO file of two images of 12 x 16 with polygons, codes and a crowd."""
    box = [2, 2, 6, 5]
    polygon = [[2, 2, 8, 2, 8, 7, 2, 7]]
    code = {"size": [12, 16], "counts": [26, 5, 7, 5, 149]}
    text = encode_mask(_square())
    masks = [polygon, code, text, [[[2, 2], [8, 2], [8, 7]]], polygon]
    return {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 12, "width": 16} for i in (1, 2)],
        "annotations": [
            {
                "id": number,
                "image_id": 1 + number % 2,
                "category_id": 3 + number % 2,
                "segmentation": mask,
                "bbox": box,
                "area": 30,
                "iscrowd": int(number == 4),
            }
            for number, mask in enumerate(masks)
        ],
        "categories": [{"id": 3, "name": "box"}, {"id": 4, "name": "ball"}],
    }


def said_otherwise(content: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """The same annotation file as another tool would write it."""
    content = json.loads(json.dumps(content))
    for change in _REWORDINGS:
        if draw.random() < 0.3:
            content = change(content, draw) or content
    return content


def _each_annotation(change: Callable[[dict[str, Any], random.Random], Any]) -> Callable:
    """A change of some annotations."""

    def changed(content: dict[str, Any], draw: random.Random) -> None:
        for annotation in content["annotations"]:
            if draw.random() < 0.6:
                change(annotation, draw)

    return changed


def _ids_as(form: Callable[[int], Any]) -> Callable:
    def changed(content: dict[str, Any], draw: random.Random) -> None:
        parts = [("images", "id"), ("annotations", "image_id"), ("annotations", "category_id")]
        parts.append(("categories", "id"))
        for key, field in draw.sample(parts, draw.randint(1, 4)):
            for entry in content[key]:
                entry[field] = form(int(entry[field]))

    return changed


def _redrawn(annotation: dict[str, Any], draw: random.Random) -> None:
    """The same mask as another kind of segmentation."""
    mask = decode_mask(annotation["segmentation"], 12, 16)
    text = encode_mask(mask)
    runs = [len(list(group)) for _, group in itertools.groupby(mask.T.ravel().tolist())]
    counts = [0, *runs] if mask.T.ravel()[0] else runs
    forms: list[Any] = [text, {"size": [12.0, "16"], "counts": counts}, [text], [text, text]]
    polygon = annotation["segmentation"]
    if isinstance(polygon, list) and isinstance(polygon[0], list):
        flat = [float(number) for number in np.ravel(polygon[0])]
        pairs = np.reshape(flat, (-1, 2)).tolist()
        forms += [flat, [flat], [pairs], pairs, [[pairs]], [[str(number) for number in flat]]]
        forms += [[flat, flat[:4]], [flat, []]]
    annotation["segmentation"] = draw.choice(forms)


def _renumbered(content: dict[str, Any], draw: random.Random) -> None:
    """Annotation ids that start again in every image, are text, or nothing."""
    new = draw.choice([lambda n: n // 2, str, lambda n: f"uuid-{n}", lambda _: None, lambda _: 0])
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = new(number)


def _dropped(content: dict[str, Any], draw: random.Random) -> None:
    for annotation in content["annotations"]:
        for key in draw.sample(["id", "bbox", "area"], draw.randint(1, 3)):
            if draw.random() < 0.5:
                annotation.pop(key, None)
            else:
                annotation[key] = None


def _crowds(annotation: dict[str, Any], draw: random.Random) -> None:
    is_crowd = annotation["iscrowd"] in (1, True, "1")
    forms = [1, True, "1", "true", 1.0] if is_crowd else [0, None, False, "0", "", "False", 0.0]
    annotation["iscrowd"] = draw.choice(forms)


def _sizes(content: dict[str, Any], draw: random.Random) -> None:
    for image in content["images"]:
        for key in ("height", "width"):
            image[key] = draw.choice([float(image[key]), str(image[key]), None, 0, 10**9])


def _by_id(content: dict[str, Any], draw: random.Random) -> None:
    for key in draw.sample(["annotations", "images", "categories"], draw.randint(1, 3)):
        entries = content[key]
        names = [str(e.get("id")) for e in entries]
        if len(set(names)) == len(names):
            content[key] = dict(zip(names, entries, strict=True))


def _other_paths(content: dict[str, Any], draw: random.Random) -> None:
    before = draw.choice([".\\", "C:\\data\\images\\", "/home/someone/images/", "./"])
    for image in content["images"]:
        image["file_name"] = before + image["file_name"]


def _extra_entries(content: dict[str, Any], draw: random.Random) -> None:
    """What other tools add: a root category, an annotation of no image, one without a mask."""
    extra = {"id": 999, "image_id": 1, "category_id": 3, "bbox": [1, 1, 2, 2]}
    additions: list[tuple[str, dict[str, Any]]] = [
        ("annotations", extra),
        ("annotations", extra | {"segmentation": []}),
        ("annotations", extra | {"image_id": 77, "segmentation": [[1, 1, 5, 1, 5, 5]]}),
        ("annotations", extra | {"segmentation": [[1, 1, 5, float("nan"), 5, 5]]}),
        ("annotations", extra | {"segmentation": [[1, 1, 2e8, 1, 5, 5]]}),
        ("categories", {"id": 0, "name": "box", "supercategory": "none"}),
    ]
    for key, entry in draw.sample(additions, draw.randint(1, 3)):
        content[key].append(entry)
    content["info"], content["licenses"] = {"version": "1"}, [None]


# Those that add or restructure come last.
_REWORDINGS: tuple[Callable, ...] = (
    _ids_as(float),
    _ids_as(str),
    _ids_as(lambda number: f"{number}.0"),
    _each_annotation(_redrawn),
    _each_annotation(_crowds),
    _renumbered,
    _dropped,
    _sizes,
    _other_paths,
    _extra_entries,
    _by_id,
)


def in_some_encoding(text: str, draw: random.Random) -> bytes:
    """Text with another line end, and a byte order mark where the encoding needs one."""
    text = draw.choice([text, text.replace("\n", "\r\n")])
    return text.encode(draw.choice(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))


def save_labels(labels: np.ndarray, path: Path, draw: random.Random) -> None:
    """A label image, uint8 (H, W), in one of the forms that mean the same."""
    grey = Image.fromarray(labels)
    palette = Image.fromarray(labels, "P")
    palette.putpalette([draw.randrange(256) for _ in range(768)])
    alpha = np.dstack([*[labels] * 3, np.full_like(labels, 255)])
    forms = [
        grey,
        palette,
        Image.fromarray(labels.astype(np.uint16)),
        Image.merge("RGB", [grey] * 3),
    ]
    forms += [Image.fromarray(labels.astype(np.int32), "I"), Image.fromarray(alpha)]
    draw.choice(forms).save(path, compress_level=draw.randint(0, 9), optimize=draw.random() < 0.5)


def write_images(folder: Path) -> None:
    """The two images of `annotations`."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in (1, 2):
        Image.new("RGB", (16, 12), (40 * number, 90, 200)).save(folder / f"{number}.png")


def write_label_image(path: Path, draw: random.Random) -> None:
    """A label image of some mode, size and range, perhaps damaged."""
    side = draw.choice([(12, 16), (12, 16), (12, 16), (16, 12), (1, 1)])
    highest = draw.choice([2, 2, 3, 256])
    shape = (*side, draw.choice([3, 4])) if draw.random() < 0.3 else side
    dtype = np.uint16 if len(shape) == 2 and draw.random() < 0.2 else np.uint8
    values = np.random.default_rng(draw.randrange(2**32)).integers(0, highest, shape, dtype)
    Image.fromarray(values).save(path)
    if draw.random() < 0.4:
        path.write_bytes(damage(path.read_bytes(), draw))


def class_list(draw: random.Random) -> bytes:
    """Lines of names, marks and mistakes in some encoding."""
    lines = [
        "wall",
        "sky: stuff",
        "sign: front",
        "0: car",
        "",
        "7",
        "caf\u00e9",
        "<image>",
        "a" * 300,
    ]
    lines += ["road,128,64,128", "name,r,g,b", "wall", " ", "\ufeffbox", "a:1,2,3::"]
    chosen = [draw.choice(lines[: draw.choice([3, len(lines)])]) for _ in range(draw.randint(0, 6))]
    text = draw.choice(["\n", "\r\n"]).join(chosen)
    encoding = draw.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"])
    content = text.encode(encoding, "replace")
    return damage(content, draw) if draw.random() < 0.3 else content


def config(draw: random.Random) -> bytes:
    """A config of few keys, some with strange values, perhaps no YAML at all."""
    keys = {
        "SOLVER": {"BASE_LR": 0.1, "IMS_PER_BATCH": 2, "CHECKPOINT_KEEP": 3, "STEPS": [1]},
        "TEST": {"TOP_K": 4, "NMS": {"THRESH": 0.5}, "CANDIDATES": "both"},
        "MODEL": {"LMM": {"PIXEL_STD": [1.0, 1.0, 1.0], "IMAGE_SIZE": 56, "DTYPE": "float32"}},
        "INPUT": {"FLIP_PROB": 0.5},
        "SEED": 1,
    }
    content = json.dumps(mutate(keys, draw), default=str).encode()
    if draw.random() < 0.2:
        extra = ["_BASE_: x.yaml", "A: !!python/object/apply:os.mkdir [executed]", "\t- a", "*a"]
        content = draw.choice(extra).encode()
    return damage(content, draw) if draw.random() < 0.3 else content


def write_weights(path: Path, state: dict[str, torch.Tensor], draw: random.Random) -> None:
    """Weights of which one is missing, of another kind, shape or value; or a damaged file."""
    state = {name: tensor.clone() for name, tensor in state.items()}
    name = draw.choice(sorted(state))
    changes: list[Callable[[torch.Tensor], torch.Tensor]] = [
        lambda t: t.fill_(float("nan")),
        lambda t: t.fill_(float("-inf")),
        lambda t: t.to(torch.int64),
        lambda t: t.to(torch.complex64),
        lambda t: t.half(),
        lambda t: t[None].contiguous(),
        *[lambda t: t] * 4,
    ]
    state[name] = draw.choice(changes)(state[name])
    if draw.random() < 0.2:
        del state[name]
    save_file(
        state,
        path,
        {"format": "pt", "base_revisions": draw.choice(["{}", "{}", "{}", "{", "[]", "7"])},
    )
    if draw.random() < 0.4:
        path.write_bytes(damage(path.read_bytes(), draw))


def record() -> dict[str, Any]:
    """One saved prediction, as `encode_output` writes it."""
    mask = encode_mask(_square())["counts"]
    fields = {
        "pred_masks": {"dtype": "bool", "shape": [1, 12, 16], "masks": [mask]},
        "scores": {"dtype": "float32", "shape": [1], "values": [0.5]},
        "pred_category_names": {"names": ["box"]},
    }
    labels = {"dtype": "int64", "shape": [12, 16], "labels": [[1, mask]]}
    instances = {"image_size": [12, 16], "fields": fields}
    return {"key": "1", "task": "instance", "instances": instances, "sem_seg_labels": labels}
