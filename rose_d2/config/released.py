"""Configs and weights that come with rose_d2, found from any folder.

In a checkout they are `configs/` and `checkpoints/`; a wheel has copies beside
`rose_d2/model_zoo/__init__.py` (see setup.py).
"""

from __future__ import annotations

from pathlib import Path

_PACKAGED = Path(__file__).resolve().parents[1] / "model_zoo"
_CHECKOUT = Path(__file__).resolve().parents[2]
# Short name -> config; its weights are in the folder of the config's name.
RELEASED_MODELS = {"tiny": "rose_tiny.yaml"}


def _root() -> Path:
    return _PACKAGED if (_PACKAGED / "configs").is_dir() else _CHECKOUT


def released_configs() -> list[str]:
    """Names of all configs, relative to `configs/`, such as "ablations/table5_all_alpha16.yaml"."""
    folder = _root() / "configs"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_config(name: str) -> str:
    """The file that a name means: a file of the user, else a released config.

    Args:
        name: a path, or a name in `released_configs`, with or without "configs/" before it.

    Raises:
        ValueError: there is neither.
    """
    if Path(name).expanduser().is_file():
        return str(Path(name).expanduser())
    known = released_configs()
    released = Path(name).as_posix().removeprefix("./").removeprefix("configs/")
    if released in known:
        return str(_root() / "configs" / released)
    raise ValueError(
        f"There is no config file {name!r}; give the path of one, or a name of those that come "
        f"with rose_d2: {', '.join(known)}."
    )


def released_weights(config_file: str) -> str | None:
    """The folder with the released weights of a config, None where there are none.

    Args:
        config_file: a path or name; only its last part counts.
    """
    name = Path(config_file).name
    return (
        str(_root() / "checkpoints" / Path(name).stem) if name in RELEASED_MODELS.values() else None
    )
