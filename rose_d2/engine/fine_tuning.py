"""Fine-tuning on custom data: from released weights, on a short schedule, with held-out images."""

from __future__ import annotations

import argparse
import json
import logging
import math
import shutil
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch import nn

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.checkpoint.export import export_merged
from rose_d2.config.released import released_weights
from rose_d2.data.datasets.custom import CUSTOM_NAME, register_custom, use_custom_data
from rose_d2.data.mixture import train_only_on
from rose_d2.files import write_text

logger = logging.getLogger(__name__)

VAL_NAME = f"{CUSTOM_NAME}_val"
# Every so many images one is held out, at most _MOST_HELD_OUT.
_HELD_OUT_EVERY, _MOST_HELD_OUT = 5, 500
# How often every image is seen, within these numbers of steps; the upper one is the config's.
_EPOCHS, _FEWEST_STEPS = 60, 150
_WARMUP_SHARE, _LR_SHARE = 0.1, 0.3
EXPORT_FOLDER = "exported"


def is_fine_tuning(args: argparse.Namespace) -> bool:
    """Whether a command line trains on custom data."""
    custom = getattr(args, "custom_coco", None) or getattr(args, "custom_labels", None)
    return bool(custom) and not args.eval_only


def prepare_fine_tuning(cfg: CfgNode, args: argparse.Namespace) -> list[str]:
    """Settle data, weights and schedule; what the command line's KEY VALUE pairs say stays.

    Args:
        cfg: not frozen.
        args: with `custom_coco` or `custom_labels`, `custom_val`, `config_file` and `opts`.

    Returns:
        Sentences that tell what was settled.

    Raises:
        FileNotFoundError: data are missing.
        ValueError: data are not what they should be, or too few to hold any out.
    """
    given = set(args.opts[::2])
    told = [_settle_data(cfg, args, "DATASETS.TEST" in given)]
    told.append(_settle_weights(cfg, args, "MODEL.WEIGHTS" in given))
    told.append(_settle_schedule(cfg, given))
    return told


def _settle_data(cfg: CfgNode, args: argparse.Namespace, test_is_given: bool) -> str:
    test = cfg.DATASETS.TEST
    if args.custom_val:
        kind = "coco" if args.custom_coco else "labels"
        classes = () if args.custom_coco else (args.custom_labels[2],)
        cfg.DATASETS.CUSTOM = (
            *cfg.DATASETS.CUSTOM,
            (VAL_NAME, kind, *args.custom_val, *classes),
        )
        use_custom_data(cfg, args)
        told = "Evaluation is on the data of --custom-val."
    elif args.custom_coco:
        told = _split_coco(cfg, *args.custom_coco)
    else:
        use_custom_data(cfg, args)
        told = _split_registered(cfg)
    cfg.DATASETS.TEST = test if test_is_given else (VAL_NAME,)
    return told


def held_out(count: int) -> set[int]:
    """Positions of the images to hold out, of `count` in a fixed order.

    Raises:
        ValueError: there are too few to train on the rest.
    """
    if count < 2:
        raise ValueError(
            f"There is {count} image to train on; with one more, one can be held out to evaluate "
            "on, or give data for it with --custom-val."
        )
    positions = range(min(_HELD_OUT_EVERY, count) - 1, count, _HELD_OUT_EVERY)
    return set(positions[:_MOST_HELD_OUT])


def _split_coco(cfg: CfgNode, image_root: str, json_file: str) -> str:
    """Write the annotations of both parts into OUTPUT_DIR, where a resumed run finds the same."""
    content = json.loads(Path(json_file).expanduser().read_text(encoding="utf-8"))
    images = sorted(content["images"], key=lambda image: image["id"])
    chosen = held_out(len(images))
    parts: dict[str, list[dict[str, Any]]] = {CUSTOM_NAME: [], VAL_NAME: []}
    for position, image in enumerate(images):
        parts[VAL_NAME if position in chosen else CUSTOM_NAME].append(image)
    declarations = []
    for name, kept in parts.items():
        ids = {image["id"] for image in kept}
        annotations = [entry for entry in content["annotations"] if entry["image_id"] in ids]
        file = Path(cfg.OUTPUT_DIR) / f"{name}.json"
        # Every process writes the same, and each file appears whole.
        write_text(file, json.dumps(content | {"images": kept, "annotations": annotations}))
        declarations.append((name, "coco", image_root, str(file)))
    cfg.DATASETS.CUSTOM = (*cfg.DATASETS.CUSTOM, *declarations)
    train_only_on(cfg, [CUSTOM_NAME])
    register_custom(cfg.DATASETS.CUSTOM)
    return _told_of_split(len(images), len(chosen), cfg.OUTPUT_DIR)


def _split_registered(cfg: CfgNode) -> str:
    """Divide the registered images with label PNGs into two datasets."""
    records = DatasetCatalog.get(CUSTOM_NAME)
    metadata = MetadataCatalog.get(CUSTOM_NAME).as_dict()
    chosen = held_out(len(records))
    train = f"{CUSTOM_NAME}_train"
    for name, is_val in ((train, False), (VAL_NAME, True)):
        part = [r for i, r in enumerate(records) if (i in chosen) == is_val]
        for catalog in (DatasetCatalog, MetadataCatalog):
            if name in catalog.list():
                catalog.remove(name)
        DatasetCatalog.register(name, lambda part=part: part)
        MetadataCatalog.get(name).set(**(metadata | {"name": name}))
    train_only_on(cfg, [train])
    return _told_of_split(len(records), len(chosen))


def _told_of_split(count: int, chosen: int, folder: str = "") -> str:
    where = f" ({folder} has both lists)" if folder else ""
    return (
        f"No --custom-val: {chosen} of {count} images are held out for evaluation, every "
        f"{_HELD_OUT_EVERY}th{where}."
    )


def _settle_weights(cfg: CfgNode, args: argparse.Namespace, is_given: bool) -> str:
    weights = released_weights(args.config_file)
    if is_given or cfg.MODEL.WEIGHTS:
        return f"Training starts from {cfg.MODEL.WEIGHTS or 'scratch'}."
    if weights is None:
        return (
            "No weights of this config have been released: training starts from the pretrained "
            "bases; MODEL.WEIGHTS takes your own."
        )
    cfg.MODEL.WEIGHTS = weights
    return f"Training starts from the released weights, {weights}; MODEL.WEIGHTS '' does not."


def _settle_schedule(cfg: CfgNode, given: set[str]) -> str:
    count = sum(len(DatasetCatalog.get(name.split("@")[0])) for name in cfg.DATASETS.TRAIN)
    batch = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION_STEPS
    steps = short_schedule(count, batch, cfg.SOLVER.MAX_ITER)
    settings = {
        "MAX_ITER": steps,
        "WARMUP_ITERS": round(_WARMUP_SHARE * steps),
        "CHECKPOINT_PERIOD": max(1, steps // 2),
    }
    if cfg.MODEL.WEIGHTS:
        settings["BASE_LR"] = _LR_SHARE * cfg.SOLVER.BASE_LR
    for key, value in settings.items():
        if f"SOLVER.{key}" not in given:
            cfg.SOLVER[key] = value
    return (
        f"{cfg.SOLVER.MAX_ITER} steps of {batch} of the {count} images, learning rate "
        f"{cfg.SOLVER.BASE_LR:g}; SOLVER.MAX_ITER and SOLVER.BASE_LR change that."
    )


def short_schedule(count: int, batch: int, most: int) -> int:
    """Steps for a training that starts from weights which know most already.

    Args:
        count: images to train on.
        batch: images a step.
        most: the config's own number of steps, which is for training from scratch.
    """
    return min(most, max(_FEWEST_STEPS, math.ceil(_EPOCHS * count / batch)))


def finish_fine_tuning(cfg: CfgNode, model: nn.Module) -> None:
    """Export what was trained and say the command that uses it.

    Args:
        cfg: of the run.
        model: trained, in the main process; its adapters are merged in place.
    """
    if not comm.is_main_process():
        return
    folder = Path(cfg.OUTPUT_DIR) / EXPORT_FOLDER
    weights = RoseCheckpointer(nn.Identity()).find_weights(cfg.OUTPUT_DIR)
    if cfg.SOLVER.ENGINE != "torch":
        logger.info(
            "To export: python tools/export_checkpoint.py --config-file %s/config.yaml --weights "
            "%s --output %s",
            *(cfg.OUTPUT_DIR, weights, folder),
        )
        return
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier run into this OUTPUT_DIR
    export_merged(cfg, model, weights, folder)
    logger.info("The model is in %s; try it:", folder)
    logger.info(
        "python demo/demo.py photos/ --config-file %s/config.yaml MODEL.WEIGHTS %s", folder, folder
    )
