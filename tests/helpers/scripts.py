"""Scripts by their path: `tools`, `demo` and `datasets` are folders and not packages."""

import importlib.util
import multiprocessing
import os
import random
import runpy
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
# What rose_d2 imports from elsewhere and takes five seconds. Not rose_d2 itself: it reads the
# environment when it is imported.
LIBRARIES = [
    "torchvision",
    "torch.utils.tensorboard",
    "detectron2.data",
    "detectron2.engine",
    "detectron2.evaluation",
    "detectron2.modeling",
    "detectron2.utils.visualizer",
    "transformers.models.llava_onevision.modeling_llava_onevision",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.siglip.modeling_siglip",
    "peft",
    "segment_anything",
]


class Ended(NamedTuple):
    """How a script ended, and what it printed, errors included."""

    status: int
    output: str


def load_script(path: str | Path) -> ModuleType:
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


def start_script(
    path: str | Path,
    *arguments: object,
    output: Path,
    env: Mapping[str, object] | None = None,
    fork: bool = False,
) -> multiprocessing.Process:
    """Start a script as `python path arguments` does from the root, on one thread of the CPU.

    Its process is forked from one that has loaded the libraries, and leads a process group.

    Args:
        path: from the root of the repository.
        arguments: of the command line.
        output: file that receives what it prints.
        env: added to the environment.
        fork: processes that PyTorch starts for it are forked too and need not import again.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    added = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": 1, "PYTHONPATH": ROOT, **(env or {})}
    environment = os.environ | {name: str(value) for name, value in added.items()}
    command = [str(ROOT / path), *map(str, arguments)]
    process = context.Process(target=_run, args=(command, environment, str(output), fork))
    process.start()
    return process


def free_port() -> int:
    """Find a port of this machine that nobody listens on.

    It lies below those from which systems number outgoing connections (32768 and up on Linux): one
    of these could take it before the caller listens, and whoever waits for him waits for ever.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_768), 100):
        with socket.socket() as sock:
            if sock.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("100 ports between 20000 and 32768 are in use")


def finish_script(process: multiprocessing.Process, output: Path, timeout: float = 300) -> Ended:
    """Wait until a script has ended."""
    process.join(timeout)
    assert process.exitcode is not None, f"still running: {output.read_text()[-3000:]}"
    return Ended(process.exitcode, output.read_text())


def run_script(
    path: str | Path, *arguments: object, output: Path, status: int = 0, **options
) -> str:
    """Do `start_script` and `finish_script`; demand an exit status and return what is printed."""
    process = start_script(path, *arguments, output=output, **options)
    ended = finish_script(process, output, timeout=900)
    assert ended.status == status, ended.output[-3000:]
    return ended.output


def _run(command: list[str], environment: dict[str, str], output: str, fork: bool) -> None:
    os.setsid()
    multiprocessing.set_start_method(None, force=True)  # of this process: it was its parent's
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1), os.dup2(file, 2)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    sys.argv = command
    sys.path[:0] = [str(Path(command[0]).parent), str(ROOT)]
    import torch.multiprocessing

    torch.set_num_threads(1)
    if fork:
        spawn = torch.multiprocessing.start_processes
        torch.multiprocessing.start_processes = lambda *args, **kwargs: spawn(
            *args, **(kwargs | {"start_method": "fork"})
        )
    runpy.run_path(command[0], run_name="__main__")
