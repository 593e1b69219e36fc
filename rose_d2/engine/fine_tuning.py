"""Fine-tuning on custom data: from released weights, on a short schedule, with held-out images."""

from __future__ import annotations

import argparse
import logging
import math
import shutil
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.utils import comm
from torch import nn

from rose_d2.checkpoint.checkpointer import RoseCheckpointer
from rose_d2.checkpoint.export import export_merged
from rose_d2.config.released import released_weights
from rose_d2.data.datasets.custom import (
    CUSTOM_NAME,
    HELD_OUT_EVERY,
    TRAIN,
    VAL,
    register_custom,
    use_custom_data,
)
from rose_d2.data.mixture import train_only_on

logger = logging.getLogger(__name__)

VAL_NAME = f"{CUSTOM_NAME}_val"
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
        told = _hold_out(cfg, "coco", args.custom_coco)
    else:
        told = _hold_out(cfg, "labels", args.custom_labels)
    cfg.DATASETS.TEST = test if test_is_given else (VAL_NAME,)
    return told


def _hold_out(cfg: CfgNode, kind: str, paths: Sequence[str]) -> str:
    """Divide the images; a resumed run, or one that scores it, finds the same parts."""
    parts = ((CUSTOM_NAME, TRAIN), (VAL_NAME, VAL))
    declared = ((name, kind, *paths, part) for name, part in parts)
    cfg.DATASETS.CUSTOM = (*cfg.DATASETS.CUSTOM, *declared)
    train_only_on(cfg, [CUSTOM_NAME])
    register_custom(cfg.DATASETS.CUSTOM)
    kept, chosen = (len(DatasetCatalog.get(name)) for name, _ in parts)
    return (
        f"No --custom-val: {chosen} of {kept + chosen} images are held out for evaluation, every "
        f"{HELD_OUT_EVERY}th."
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
