"""Import a script by its path: `tools`, `demo` and `datasets` are folders and not packages."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def load_script(path: str) -> ModuleType:
    """Run a script as a fresh module.

    Args:
        path: from the root of the repository, for example "tools/score.py".
    """
    file = ROOT / path
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module  # dataclasses and pickles look themselves up there
    spec.loader.exec_module(module)
    return module
