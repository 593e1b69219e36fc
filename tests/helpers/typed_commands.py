"""Runs command lines one after the other, each in its folder, in one process that imports once.

python typed_commands.py commands.json ended.json
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path


def type_one(folder: str, script: str, words: list[str]) -> tuple[int, str]:
    """Run a script as `python script words` in a folder; return its exit status and output."""
    os.chdir(folder)
    sys.argv = [script, *words]
    sys.path[0] = str(Path(script).resolve().parent)
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            said.write(str(stop.code))
        except Exception:
            status = -1
            said.write(traceback.format_exc())
    return status, said.getvalue()[-2000:]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    commands, ended = sys.argv[1:]
    sys.path.insert(0, "")
    results = [type_one(*command) for command in json.loads(Path(commands).read_text())]
    Path(ended).write_text(json.dumps(results))
