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
from pathlib import Path

from PIL import Image

from rose_d2.data.clipart.annotate import (
    SceneRecord,
    instance_annotations,
    label_map,
    panoptic_map,
    refer_records,
)
from rose_d2.data.clipart.categories import coco_categories
from rose_d2.data.clipart.expressions import draw_references
from rose_d2.data.clipart.splits import (
    FIRST_IMAGE_IDS,
    FORMAT_VERSION,
    LICENSE_TEXT,
    BenchmarkSettings,
    compose_split_scene,
)
from rose_d2.data.preparation import run_parallel

logger = logging.getLogger(__name__)

JPEG_QUALITY = 90
# Protocol 2 is what the original referring datasets use; any Python reads it.
PICKLE_PROTOCOL = 2


def _write_scene(task: tuple[str, int], folder: Path, seed: int) -> SceneRecord:
    """Composes one scene, writes its image and label files, and returns its records."""
    split, number = task
    scene, rng = compose_split_scene(seed, split, number)
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
    write = functools.partial(_write_scene, folder=folder, seed=settings.seed)
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
        if settings.as_meta().items() <= meta.items():
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
