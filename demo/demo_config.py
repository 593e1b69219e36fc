"""The config of a run of the demo."""

from collections.abc import Sequence
from pathlib import Path

import yaml
from detectron2.config import CfgNode, get_cfg

from rose_d2.config import add_rose_config

# The model that ships with the repository; its config trains from scratch, so names no weights.
TINY_CONFIG = "rose_tiny.yaml"
TINY_WEIGHTS = Path(__file__).resolve().parent.parent / "checkpoints" / "rose_tiny"


def load_config(config_file: str, opts: Sequence[str], min_score: float) -> CfgNode:
    """Make the config of a file, changes to it and a score threshold.

    Raises:
        ValueError: a key does not exist, or a value does not fit it.
        FileNotFoundError: the file or one it is based on does not exist.
    """
    cfg = get_cfg()
    add_rose_config(cfg)
    try:
        cfg.merge_from_file(config_file)
        cfg.merge_from_list(list(opts))
    except (KeyError, ValueError, AssertionError, AttributeError, yaml.YAMLError) as error:
        raise ValueError(
            f"the config {config_file!r} with --opts {' '.join(opts)!r} does not fit: {error}."
        ) from error
    if Path(config_file).name == TINY_CONFIG and "MODEL.WEIGHTS" not in opts:
        cfg.MODEL.WEIGHTS = str(TINY_WEIGHTS)
    cfg.TEST.SCORE_THRESH = cfg.TEST.PANOPTIC.SCORE_THRESH = min_score
    cfg.freeze()
    return cfg
