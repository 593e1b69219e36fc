"""Your own data from the command line or the config."""

import argparse

from detectron2.config import CfgNode

from rose_d2.data.datasets.custom import register_custom
from rose_d2.data.training_mix import train_only_on

CUSTOM_NAME = "custom"


def add_custom_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--custom-coco` and `--custom-labels`.

    Args:
        parser: of a command that trains, evaluates or segments.
    """
    group = parser.add_mutually_exclusive_group()
    group.add_argument(
        "--custom-coco",
        nargs=2,
        metavar=("IMAGES", "JSON"),
        help="use this folder of images with COCO instance annotations instead of the config's "
        "datasets",
    )
    group.add_argument(
        "--custom-labels",
        nargs=3,
        metavar=("IMAGES", "LABELS", "CLASSES"),
        help="use this folder of images with label PNGs of the same names, whose values are line "
        "numbers, from 0, of the text file CLASSES (a line 'sky: stuff' marks background; the "
        "value 255 is unlabelled)",
    )


def use_custom_data(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Register DATASETS.CUSTOM, and let data of the command line replace the config's datasets.

    Args:
        cfg: not frozen; DATASETS is changed where the command line names data.
        args: may have the options of `add_custom_data_arguments`.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: the data are not what they should be.
    """
    declared = None
    if getattr(args, "custom_coco", None):
        declared = (CUSTOM_NAME, "coco", *args.custom_coco)
    elif getattr(args, "custom_labels", None):
        declared = (CUSTOM_NAME, "labels", *args.custom_labels)
    if declared:
        cfg.DATASETS.CUSTOM = (*cfg.DATASETS.CUSTOM, declared)
        train_only_on(cfg, [CUSTOM_NAME])
        cfg.DATASETS.TEST = (CUSTOM_NAME,)
    register_custom(cfg.DATASETS.CUSTOM)
