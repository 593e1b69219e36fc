"""The one reader of COCO-like annotation files, whatever tool wrote them.

Training, evaluation, custom data, REFER instances and the demo all read through it, so a file means
the same to each. What means something is taken: ids and sizes as 96.0 or text, annotations as a
dict by id, flat polygons, missing boxes, areas and ids, sizes that stand in the images only,
back-slashes in paths, byte order marks. What means nothing is left out and counted.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import ExifTags
from pycocotools import mask as coco_mask

from rose_d2.data.datasets.registration import BrokenAnnotations
from rose_d2.data.image_io import ImageReadError, opened_image
from rose_d2.structures.mask_codec import (
    UnusableMaskError,
    clean_segmentation,
    segmentation_to_rle,
)

Id = int | str
# Python refuses to read longer ones.
_LONGEST_NUMBER = 4000
_MOST_PIXELS = 10**9
_ONE_PIXEL = 2.0
COCO_KEYS = ("images", "annotations", "categories")
_WHOLE_NUMBER = re.compile(r"(-?(?:0|[1-9]\d*))(?:\.0+)?")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_CROWD_WORDS = {None: 0, False: 0, True: 1, "": 0, "false": 0, "true": 1}


def read_text(path: str | Path) -> str:
    """Read a text file in UTF-8, or in the encoding that its byte order mark tells.

    Raises:
        OSError: it cannot be opened.
        ValueError: it has another encoding, or is no file: a pipe would be waited for.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise ValueError(f"{path} is a folder, a pipe or a device; a text file is needed.")
    content = Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8."
        ) from error


def read_json(path: str | Path) -> Any:
    """Read an annotation file.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is not JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}); get the file again.") from error


def plain_id(value: Any) -> Id | None:
    """One form for the ids that mean the same: 7, 7.0, "7" and "7.0"; None for no id."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value == int(value) else None
    if not isinstance(value, str) or not value:
        return None
    number = _WHOLE_NUMBER.fullmatch(value)
    return int(number[1]) if number and len(value) < _LONGEST_NUMBER else value


@dataclass
class CocoImage:
    """One image of an annotation file.

    Attributes:
        image_id: as in the file; 96.0 is 96.
        file_name: with slashes, relative to the images' folder.
        height: in pixels; None where the file does not say.
        width: in pixels; None where the file does not say.
        annotations: of this image, as in the file.
    """

    image_id: Id
    file_name: str
    height: int | None
    width: int | None
    annotations: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class CocoFile:
    """An annotation file with one form of everything but the annotations themselves.

    Attributes:
        path: of the file.
        images: by plain id, in the file's order.
        annotations: all, as in the file.
        is_annotated: False for a file without the key, as test sets have it.
        category_names: by plain id, in the file's order; unused ones that only repeat a name or
            head a hierarchy are left out.
        strays: annotations of an image that is not listed, named.
    """

    path: Path
    images: dict[Id | None, CocoImage]
    annotations: list[Mapping[str, Any]]
    is_annotated: bool
    category_names: dict[Id | None, str]
    strays: list[str]


def read_coco(path: str | Path, *, needed: Sequence[str] = COCO_KEYS) -> CocoFile:
    """Read an annotation file; no image is opened.

    Args:
        path: the JSON file.
        needed: keys it must have; the others are taken where they are.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such file, or two images or categories have one id.
    """
    content = read_json(path)
    missing = [k for k in needed if k not in content] if isinstance(content, dict) else needed
    if missing:
        raise ValueError(
            f"{path} lacks {', '.join(missing)}; a COCO instance annotation file has a dict with "
            f"{', '.join(needed)}."
        )
    images = _images(_entries(content, "images", path), path)
    annotations = _entries(content, "annotations", path)
    strays = []
    for annotation in annotations:
        image = images.get(plain_id(annotation.get("image_id")))
        if image is None:
            strays.append(describe(annotation))
        else:
            image.annotations.append(annotation)
    used = {plain_id(entry.get("category_id")) for entry in _labelled(annotations)}
    names = _category_names(_entries(content, "categories", path), used, path)
    return CocoFile(Path(path), images, annotations, "annotations" in content, names, strays)


def _labelled(annotations: list[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """All that has a category: annotations, and the segments of panoptic ones."""
    for annotation in annotations:
        segments = annotation.get("segments_info")
        yield annotation
        yield from (
            (s for s in segments if isinstance(s, dict)) if isinstance(segments, list) else ()
        )


def describe(annotation: Mapping[str, Any]) -> str:
    """Name an annotation in a message."""
    own = annotation.get("id", "without an id")
    return f"annotation {own} of image {annotation.get('image_id')}"


def _entries(content: Mapping[str, Any], key: str, path: str | Path) -> list[Mapping[str, Any]]:
    """The entries of a list, or of a dict by id, which then gives the ids that entries lack."""
    value = content.get(key) or []
    if isinstance(value, dict):
        value = [e if not isinstance(e, dict) else {"id": name, **e} for name, e in value.items()]
    if not isinstance(value, list):
        raise ValueError(f"{path}: its {key} are {_kind(value)}; a list of dicts is needed.")
    for position, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ValueError(
                f"{path}: entry {position} of its {key} is {_kind(entry)}; a dict is needed."
            )
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else f"of type {type(value).__name__}"


def _images(entries: Sequence[Mapping[str, Any]], path: str | Path) -> dict[Id | None, CocoImage]:
    images: dict[Id | None, CocoImage] = {}
    for position, entry in enumerate(entries):
        own_id, name = plain_id(entry.get("id")), entry.get("file_name")
        if own_id is None or not isinstance(name, str) or not name or "\0" in name:
            raise ValueError(
                f"{path}: entry {position} of its images has id {entry.get('id')!r} and file_name "
                f"{name!r}; each image needs an id, a number or text, and the name of its file."
            )
        if own_id in images:
            raise ValueError(
                f"{path}: the image id {entry['id']!r} stands for {images[own_id].file_name!r} and "
                f"for {name!r}; give every image an id of its own, or annotations cannot be told "
                "apart."
            )
        shown = entry["id"] if isinstance(entry["id"], str) else own_id
        images[own_id] = CocoImage(
            shown, name, _side(entry.get("height")), _side(entry.get("width"))
        )
    return images


def _side(value: Any) -> int | None:
    number = plain_id(value)
    return number if isinstance(number, int) and number > 0 else None


def _category_names(
    entries: Sequence[Mapping[str, Any]], used: set[Id | None], path: str | Path
) -> dict[Id | None, str]:
    names: dict[Id | None, str] = {}
    for position, entry in enumerate(entries):
        own_id, name = plain_id(entry.get("id")), entry.get("name")
        if own_id is None or name is None or isinstance(name, list | dict):
            raise ValueError(
                f"{path}: entry {position} of its categories has id {entry.get('id')!r} and name "
                f"{name!r}; each category needs both."
            )
        if own_id in names:
            raise ValueError(
                f"{path}: the category id {entry['id']!r} stands for {names[own_id]!r} and for "
                f"{name!r}; give every category an id of its own."
            )
        names[own_id] = str(name)
    # Roboflow puts a category above all others, which nothing is annotated with.
    above = [str(entry.get("supercategory")) for entry in entries]
    heads = {parent for parent, name in zip(above, names.values(), strict=True) if parent != name}
    roots = {i for i, parent in zip(names, above, strict=True) if parent in ("None", "", "none")}
    kept = {own_id: name for own_id, name in names.items() if own_id in used}
    taken = set(kept.values())
    for own_id, name in reversed(names.items()):
        is_root = own_id in roots and name in heads
        if own_id not in used and name not in taken and not is_root:
            kept[own_id] = name
            taken.add(name)
    return {own_id: name for own_id, name in names.items() if own_id in kept}


def locate(root: str | Path, file_name: str) -> Path:
    """Where an image lies, if it was listed on another system or machine.

    Args:
        root: the folder of the images.
        file_name: of the annotation file.

    Returns:
        The path that the name says; with back-slashes taken for slashes, or without the folders
        of another machine, only where a file is there instead.
    """
    plain = Path(root, file_name)
    if "\\" not in file_name and not Path(file_name).is_absolute():
        return plain
    slashed = file_name.replace("\\", "/")
    places = (plain, Path(root, slashed), Path(root, slashed.rsplit("/", 1)[-1]))
    return next((place for place in places if place.is_file()), places[1])


def displayed_size(path: str | Path) -> tuple[int, int]:
    """Height and width once the camera's rotation is applied, as when the image is read.

    Raises:
        OSError: it is missing or no image.
    """
    (height, width), is_turned = _header(path)
    return (width, height) if is_turned else (height, width)


def stored_size(path: str | Path) -> tuple[int, int]:
    """Height and width of the stored pixels.

    Raises:
        OSError: it is missing or no image.
    """
    return _header(path)[0]


def _header(path: str | Path) -> tuple[tuple[int, int], bool]:
    """Height and width as stored, and whether EXIF turns the image by a quarter."""
    try:
        with opened_image(str(path)) as image:
            orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
            return (image.height, image.width), orientation in (5, 6, 7, 8)
    except ImageReadError as error:
        raise OSError(str(error)) from error


def sized_images(
    coco: CocoFile, root: str | Path, broken: BrokenAnnotations
) -> Iterator[tuple[CocoImage, Path, int, int]]:
    """The images with path, height and width, which are read from them where the file is silent.

    Args:
        coco: the annotation file.
        root: the folder of the images.
        broken: counts the images whose size cannot be found out.
    """
    for image in coco.images.values():
        path = locate(root, image.file_name)
        height, width = image.height, image.width
        # More pixels than any image has are a mistake of the file, too.
        if height is None or width is None or height * width > _MOST_PIXELS:
            try:
                height, width = displayed_size(path)
            except OSError:
                broken.add("images without a size that cannot be read", image.file_name)
                continue
        yield image, path, height, width


def convert_annotation(
    annotation: Mapping[str, Any],
    height: int,
    width: int,
    broken: BrokenAnnotations,
) -> dict[str, Any] | None:
    """One annotation as detectron2's dataset dicts have it, without its category.

    Args:
        annotation: as in the file.
        height: of its image.
        width: of its image.
        broken: counts it where it cannot be used.

    Returns:
        `iscrowd`, `bbox` [x, y, w, h], `segmentation` (polygons or a compressed code); None where
        nothing is drawn, or what is drawn cannot be used.
    """
    try:
        segmentation = clean_segmentation(annotation.get("segmentation"), height, width)
        if segmentation is None or _is_empty(segmentation):
            has_box = _box(annotation.get("bbox")) is not None
            raise UnusableMaskError(
                "annotations with a box but no mask" if has_box else "annotations without a mask",
                "nothing is drawn",
            )
        crowd = crowd_flag(annotation.get("iscrowd"))
    except UnusableMaskError as error:
        broken.add(error.kind, describe(annotation))
        return None
    box = _box(annotation.get("bbox"))
    if box is None:
        rle = segmentation_to_rle(segmentation, height, width)
        box = [float(value) for value in coco_mask.toBbox(rle)]
    return {"iscrowd": crowd, "bbox": box, "segmentation": segmentation}


def covers_nothing(annotation: Mapping[str, Any], height: int, width: int) -> bool:
    """Whether an object is drawn, but so small that it covers no pixel.

    Args:
        annotation: from `convert_annotation`.
        height: of its image.
        width: of its image.
    """
    polygons = annotation["segmentation"]
    if isinstance(polygons, dict):
        return False
    # Drawing all would double the time of loading.
    if any(max(p[k::2]) - min(p[k::2]) > _ONE_PIXEL for p in polygons for k in (0, 1)):
        return False
    return not coco_mask.area(segmentation_to_rle(polygons, height, width))


def _is_empty(segmentation: list | dict) -> bool:
    return isinstance(segmentation, dict) and not coco_mask.area(segmentation)


def crowd_flag(value: Any) -> int:
    """0 or 1 for iscrowd as tools write it: null, "0", true.

    Raises:
        UnusableMaskError: it is anything else.
    """
    key = value.strip().lower() if isinstance(value, str) else value
    number = plain_id(key)
    key = number if isinstance(number, int) else key
    if isinstance(key, list | dict) or key not in _CROWD_WORDS:
        raise UnusableMaskError("annotations with an unknown iscrowd", f"iscrowd is {value!r}")
    return _CROWD_WORDS[key]


def _box(value: Any) -> list[Any] | None:
    """A box as it is if it has four finite numbers, else None."""
    if not isinstance(value, list | tuple) or len(value) != 4:
        return None
    are_numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
    return list(value) if are_numbers and all(map(math.isfinite, value)) else None


def plain_area(value: Any) -> float | None:
    """An area in pixels as it is in a file; None where it is no such number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if is_number and 0 <= value < math.inf else None


def object_area(annotation: Mapping[str, Any], height: int, width: int) -> float:
    """The file's area of an object in pixels where it has one, else that of its mask.

    Args:
        annotation: with a usable `segmentation`.
        height: of its image.
        width: of its image.
    """
    area = plain_area(annotation.get("area"))
    if area is not None:
        return area
    return int(coco_mask.area(segmentation_to_rle(annotation["segmentation"], height, width)))
