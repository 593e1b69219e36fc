"""Writes the clip-art benchmark to disk, in parallel and in one piece.

Every scene has a random generator of its own, seeded by (seed, split, number), so the files do
not depend on how many processes draw them. All files go to a temporary folder beside the target,
which is renamed at the end: an interrupted run never leaves a dataset that looks finished.
"""

import contextlib
import functools
import json
import logging
import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from rose_d2.data.datasets.clipart import NEW_GLYPHS, PLAIN_GLYPHS, coco_categories
from rose_d2.prepare.preparation import run_parallel
from rose_d2.synthetic.annotate import (
    SceneRecord,
    instance_annotations,
    label_map,
    panoptic_map,
    refer_records,
)
from rose_d2.synthetic.expressions import draw_references
from rose_d2.synthetic.scene import Scene, compose_scene

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
FIRST_IMAGE_IDS = {"train": 1, "val": 800_001, "val_unseen": 900_001}
MAX_SCENES = {"train": 800_000, "val": 100_000, "val_unseen": 99_999}
LICENSE_TEXT = """\
The images in this folder are composed from emoji of the OpenMoji project (https://openmoji.org),
the open-source emoji and icon project. License: CC BY-SA 4.0,
https://creativecommons.org/licenses/by-sa/4.0/

Changes: the emoji were scaled, rotated, mirrored, recolored, overlapped and placed on generated
backgrounds. The images are shared under the same license.
"""
JPEG_QUALITY = 90
# Protocol 2 is what the original referring datasets use; any Python reads it.
PICKLE_PROTOCOL = 2
# Keeps the pictures apart from every split of the benchmark with the same seed.
SAMPLE_STREAM, NEW_STREAM = 99, 98
MIN_OBJECTS = 4
# A scene may have as many different things.
MIN_KINDS = 8
SAMPLE_JPEG_QUALITY = 92
COMMENT = (
    "Composed from OpenMoji emoji (https://openmoji.org), CC BY-SA 4.0; changed: scaled, rotated, "
    "mirrored, recolored, placed on generated backgrounds."
)


@dataclass(frozen=True)
class BenchmarkSettings:
    """What determines the content of the benchmark.

    Attributes:
        seed: any integer >= 0.
        num_scenes: split -> number of scenes, for "train", "val" and "val_unseen".
        num_kinds: draw from so many plain things only, at least eight; 0: from all.
    """

    seed: int
    num_scenes: dict[str, int]
    num_kinds: int = 0

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or greater.")
        if set(self.num_scenes) != set(MAX_SCENES):
            raise ValueError(
                f"num_scenes names the splits {sorted(self.num_scenes)}; give a number for each of "
                f"{', '.join(MAX_SCENES)} (0 writes an empty split)."
            )
        if self.num_kinds and not MIN_KINDS <= self.num_kinds <= len(PLAIN_GLYPHS):
            raise ValueError(
                f"num_kinds is {self.num_kinds}; choose {MIN_KINDS} to {len(PLAIN_GLYPHS)}, or 0 "
                "for all things and the coloured ones."
            )
        for split, number in self.num_scenes.items():
            if not 0 <= number <= MAX_SCENES[split]:
                raise ValueError(
                    f"{number} scenes asked for split {split}; choose 0 to {MAX_SCENES[split]}."
                )

    def as_meta(self) -> dict:
        """Content of meta.json."""
        return {
            "format_version": FORMAT_VERSION,
            "seed": self.seed,
            "num_scenes": {split: self.num_scenes[split] for split in FIRST_IMAGE_IDS},
            **({"num_kinds": self.num_kinds} if self.num_kinds else {}),
        }


def compose_split_scene(
    seed: int, split: str, number: int, num_kinds: int = 0
) -> tuple[Scene, np.random.Generator]:
    """Composes one scene of a split.

    Args:
        seed: the benchmark's seed.
        split: "train", "val" or "val_unseen".
        number: running number from 0.
        num_kinds: see `BenchmarkSettings`.

    Returns:
        The scene and its generator, from which the expressions are drawn next.
    """
    rng = np.random.default_rng([seed, list(FIRST_IMAGE_IDS).index(split), number])
    return compose_scene(
        rng, unseen=split == "val_unseen", kinds=list(PLAIN_GLYPHS)[:num_kinds]
    ), rng


def _write_scene(task: tuple[str, int], folder: Path, settings: BenchmarkSettings) -> SceneRecord:
    """Composes one scene, writes its image and label files, and returns its records."""
    split, number = task
    scene, rng = compose_split_scene(settings.seed, split, number, settings.num_kinds)
    height, width = scene.stuff.shape
    image_id = FIRST_IMAGE_IDS[split] + number
    stem = f"{image_id:06d}"
    annotations = instance_annotations(scene, image_id)
    segments, panoptic = panoptic_map(scene, image_id)
    references = draw_references(rng, scene.objects, height, width)
    Image.fromarray(scene.image).save(
        folder / "images" / split / f"{stem}.jpg", quality=JPEG_QUALITY
    )
    Image.fromarray(segments).save(folder / "annotations" / f"panoptic_{split}" / f"{stem}.png")
    Image.fromarray(label_map(scene)).save(folder / "sem_seg" / split / f"{stem}.png")
    return SceneRecord(
        image={"id": image_id, "file_name": f"{stem}.jpg", "height": height, "width": width},
        annotations=annotations,
        panoptic=panoptic,
        references=refer_records(references, annotations, f"{split}/{stem}.jpg", split),
    )


def _write_scenes(
    settings: BenchmarkSettings, folder: Path, num_workers: int
) -> dict[str, list[SceneRecord]]:
    """Writes the files of every scene; returns the records by split, in order."""
    tasks = [
        (split, number) for split in FIRST_IMAGE_IDS for number in range(settings.num_scenes[split])
    ]
    write = functools.partial(_write_scene, folder=folder, settings=settings)
    records: dict[str, list[SceneRecord]] = {split: [] for split in FIRST_IMAGE_IDS}
    running = run_parallel(
        write, tasks, num_workers=num_workers, description="clip-art scenes", unit="scene"
    )
    # Also when interrupted: nobody may write any more once the folder is cleaned up.
    with contextlib.closing(running) as written:
        for (split, _), record in zip(tasks, written, strict=True):
            records[split].append(record)
    return records


def _dump_json(content: dict, path: Path) -> None:
    path.write_text(json.dumps(content, separators=(",", ":")), encoding="ascii")


def _write_split(folder: Path, split: str, records: list[SceneRecord]) -> None:
    info = {"description": f"rose_d2 clip-art benchmark, {split}", "version": str(FORMAT_VERSION)}
    images = [record.image for record in records]
    instances = {
        "info": info,
        "images": images,
        "annotations": [a for record in records for a in record.annotations],
        "categories": coco_categories(with_stuff=False),
    }
    panoptic = {
        "info": info,
        "images": images,
        "annotations": [record.panoptic for record in records],
        "categories": coco_categories(with_stuff=True),
    }
    _dump_json(instances, folder / "annotations" / f"instances_{split}.json")
    _dump_json(panoptic, folder / "annotations" / f"panoptic_{split}.json")


def _write_refer(folder: Path, records: dict[str, list[SceneRecord]]) -> None:
    """The REFER layout keeps all splits in one file; image names include the split's folder."""
    images, annotations, references = [], [], []
    for split, split_records in records.items():
        for record in split_records:
            images.append(record.image | {"file_name": f"{split}/{record.image['file_name']}"})
            annotations += record.annotations
            references += record.references
    instances = {
        "info": {"description": "rose_d2 clip-art benchmark", "version": str(FORMAT_VERSION)},
        "images": images,
        "annotations": annotations,
        "categories": coco_categories(with_stuff=False),
    }
    _dump_json(instances, folder / "refer" / "instances.json")
    # A pickle also stores which equal objects are identical, and that depends on whether they
    # came from another process; a round trip through JSON leaves nothing shared.
    plain = json.loads(json.dumps(references))
    (folder / "refer" / "refs(unc).p").write_bytes(pickle.dumps(plain, PICKLE_PROTOCOL))


def _write_everything(settings: BenchmarkSettings, folder: Path, num_workers: int) -> dict:
    for split in FIRST_IMAGE_IDS:
        for name in (f"images/{split}", f"annotations/panoptic_{split}", f"sem_seg/{split}"):
            (folder / name).mkdir(parents=True)
    (folder / "refer").mkdir()
    records = _write_scenes(settings, folder, num_workers)
    for split, split_records in records.items():
        _write_split(folder, split, split_records)
    _write_refer(folder, records)
    (folder / "LICENSE.txt").write_text(LICENSE_TEXT, encoding="ascii")
    counts = {split: _count(split_records) for split, split_records in records.items()}
    meta = settings.as_meta() | {"counts": counts}
    (folder / "meta.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="ascii")
    return meta


def _count(records: list[SceneRecord]) -> dict[str, int]:
    references = [reference for record in records for reference in record.references]
    return {
        "images": len(records),
        "instances": sum(len(record.annotations) for record in records),
        "segments": sum(len(record.panoptic["segments_info"]) for record in records),
        "references": len(references),
        "sentences": sum(len(reference["sentences"]) for reference in references),
    }


def read_meta(folder: Path) -> dict | None:
    """The meta.json of a finished benchmark folder, or None if there is none."""
    path = folder / "meta.json"
    return json.loads(path.read_text(encoding="ascii")) if path.is_file() else None


def write_benchmark(
    settings: BenchmarkSettings, folder: Path, *, num_workers: int = 1, overwrite: bool = False
) -> dict:
    """Writes the whole benchmark, or leaves a finished equal one alone.

    Args:
        settings: seed and sizes.
        folder: target, e.g. `datasets/clipart`; its parent is made when missing.
        num_workers: processes that draw; the result does not depend on it.
        overwrite: replace whatever the target holds.

    Returns:
        The content of the folder's meta.json.

    Raises:
        FileExistsError: if the target holds something else and `overwrite` is False.
    """
    meta = read_meta(folder)
    if meta is not None and not overwrite:
        if settings.as_meta() == {key: meta[key] for key in meta if key != "counts"}:
            logger.info("%s is complete for these settings; nothing to do.", folder)
            return meta
        raise FileExistsError(
            f"{folder} holds a benchmark made with other settings (seed {meta.get('seed')}, "
            f"{meta.get('num_scenes')}): choose another --root or pass --overwrite."
        )
    if folder.exists() and not overwrite:
        raise FileExistsError(
            f"{folder} exists and is not a finished clip-art benchmark: "
            "move it away or pass --overwrite."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        meta = _write_everything(settings, partial, num_workers)
        _replace_folder(folder, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    logger.info("Wrote %s: %s", folder, meta["counts"])
    return meta


def _replace_folder(folder: Path, finished: Path) -> None:
    """Puts the finished folder in place; the former one goes only after that."""
    former = folder.with_name(f".{folder.name}.former-{os.getpid()}")
    if folder.exists():
        folder.rename(former)
    finished.rename(folder)
    shutil.rmtree(former, ignore_errors=True)


def compose_sample(seed: int, number: int) -> Scene:
    """A scene with at least `MIN_OBJECTS` things that no split contains."""
    rng = np.random.default_rng([seed, SAMPLE_STREAM, number])
    while True:
        scene = compose_scene(rng)
        if len(scene.objects) >= MIN_OBJECTS:
            return scene


def write_sample_images(folder: Path, num_images: int, seed: int) -> list[Path]:
    """Writes pictures named clipart_000.jpg and so on; the license goes into their comment.

    Args:
        folder: made when missing; other files in it are left alone.
        num_images: how many, at least 1.
        seed: any integer >= 0.

    Returns:
        Paths of the pictures.

    Raises:
        ValueError: if the number or the seed is out of range.
    """
    if num_images < 1 or seed < 0:
        raise ValueError(
            f"Got {num_images} images and seed {seed}; at least one image and a seed of 0 or more "
            "are needed."
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(num_images):
        path = folder / f"clipart_{number:03d}.jpg"
        picture = Image.fromarray(compose_sample(seed, number).image)
        picture.save(path, quality=SAMPLE_JPEG_QUALITY, comment=COMMENT.encode("ascii"))
        paths.append(path)
    return paths


def write_new_things(folder: Path, num_images: int, seed: int) -> Path:
    """Writes scenes of things that the benchmark has not, as COCO data to fine-tune on.

    Args:
        folder: receives images/ and instances.json; other files in it are left alone.
        num_images: how many, at least 1.
        seed: any integer >= 0; other seeds give other scenes of the same things.

    Returns:
        Path of the annotations.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    numbers = {name: number for number, name in enumerate(NEW_GLYPHS, start=1)}
    images, annotations = [], []
    for image_id in range(1, num_images + 1):
        rng = np.random.default_rng([seed, NEW_STREAM, image_id])
        scene = compose_scene(rng, kinds=list(NEW_GLYPHS))
        file_name = f"{image_id:03d}.jpg"
        picture = Image.fromarray(scene.image)
        picture.save(
            folder / "images" / file_name,
            quality=SAMPLE_JPEG_QUALITY,
            comment=COMMENT.encode("ascii"),
        )
        height, width = scene.stuff.shape
        images.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
        annotations += instance_annotations(scene, image_id, numbers)
    categories = [{"id": number, "name": name} for name, number in numbers.items()]
    content = {"images": images, "annotations": annotations, "categories": categories}
    _dump_json(content, folder / "instances.json")
    return folder / "instances.json"
