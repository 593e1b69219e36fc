"""Reading a config from a file and from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from detectron2.config import CfgNode, get_cfg

from rose_d2.config import add_rose_config
from rose_d2.engine.export.exported_folder import use_exported_folder


def read_config(config_file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Make ROSE's config with the values of a file and of the command line.

    If MODEL.WEIGHTS is an exported folder, the pretrained bases are taken from it as well.

    Args:
        config_file: a YAML file.
        opts: KEY VALUE pairs, one after the other.

    Returns:
        The config, not frozen.

    Raises:
        ValueError: the file is missing, a key is unknown or a value has another type.
    """
    cfg = get_cfg()
    add_rose_config(cfg)
    # What yacs and detectron2 raise does not say where the key stands.
    try:
        cfg.merge_from_file(config_file)
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(f"In {config_file}: {error.args[0]}") from error
    try:
        cfg.merge_from_list(list(opts))
    except (AssertionError, KeyError, ValueError) as error:
        raise ValueError(
            f"In the KEY VALUE pairs that change the config ({' '.join(map(str, opts))}): "
            f"{error.args[0]}"
        ) from error
    use_exported_folder(cfg)
    return cfg
