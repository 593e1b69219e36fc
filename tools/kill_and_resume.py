r"""Kill a training again and again, resume it each time, and compare it with an undisturbed one.

    python tools/kill_and_resume.py --output output/killed --kills 20 -- \
        --config-file configs/rose_tiny.yaml SOLVER.MAX_ITER 40 SOLVER.CHECKPOINT_PERIOD 2

Everything behind `--` goes to train_net.py. SIGKILL comes at random moments, every second one
while a checkpoint is being saved. Then the losses of all steps and the final weights of both runs
are compared. A way to see that checkpoints survive on the file system of your cluster.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

from rose_d2.command_line import make_parser, run_main

ROOT = Path(__file__).parents[1]
# A save takes some hundredths of a second for a small model, and the kill should come inside.
_WITHIN_SAVE_SECONDS = 0.05


class Kill(NamedTuple):
    """One kill: seconds after the start, whether a save was under way, and what was saved."""

    seconds: float
    in_save: bool
    saved_iteration: int


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line; `arguments` replaces sys.argv[1:]."""
    parser = make_parser(__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for both runs")
    parser.add_argument("--kills", type=int, default=20, help="how often to kill (default: 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--tolerance", type=float, default=1e-5, help="relative, of losses")
    parser.add_argument("train_args", nargs="+", help="arguments of train_net.py")
    return parser.parse_args(arguments)


def kill_repeatedly(
    start: Callable[[], int],
    wait: Callable[[random.Random], None],
    folder: Path,
    *,
    kills: int,
    seed: int,
) -> list[Kill]:
    """Start a training, kill it after a random time, and again, until it was killed often enough.

    Args:
        start: starts the run, resuming, as leader of a new process group; returns its id.
        wait: returns at the moment of the kill, or, for every second kill, of looking for a save.
        folder: OUTPUT_DIR of the run.
        kills: how often.
        seed: of the moments.

    Returns:
        The kills; fewer if the run ended before.
    """
    moments = random.Random(seed)
    done: list[Kill] = []
    for number in range(kills):
        left_over = _hidden_folders(folder)
        process, began = start(), time.monotonic()
        wait(moments)
        if number % 2 and _wait_for_save(process, folder):
            time.sleep(moments.uniform(0, _WITHIN_SAVE_SECONDS))
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process, signal.SIGKILL)
        seconds = time.monotonic() - began
        if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != -signal.SIGKILL:
            return done
        in_save = bool(_hidden_folders(folder) - left_over)
        done.append(Kill(seconds, in_save, saved_iteration(folder)))
    return done


def saved_iteration(folder: Path) -> int:
    """Return the iteration `last_checkpoint` stands for, -1 without one."""
    try:
        name = (folder / "last_checkpoint").read_text().strip()
    except FileNotFoundError:
        return -1
    return json.loads((folder / name / "manifest.json").read_text())["iteration"]


def _hidden_folders(folder: Path) -> set[int]:
    """Identify the folders of unfinished saves."""
    found = set()
    for path in folder.glob(".partial-*"):
        with contextlib.suppress(FileNotFoundError):  # it has just been finished
            found.add(path.stat().st_ino)
    return found


def _wait_for_save(process: int, folder: Path) -> bool:
    """Wait until a save begins; False if the process ends before."""
    before = _hidden_folders(folder)
    while not _hidden_folders(folder) - before:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.001)
    return True


def loss_curve(folder: Path, tolerance: float) -> dict[int, float]:
    """Read iteration -> total loss from `metrics.json`.

    Raises:
        ValueError: a step that was done twice had another loss.
    """
    curve: dict[int, float] = {}
    for line in (folder / "metrics.json").read_text().splitlines():
        row = json.loads(line)
        if "total_loss" not in row:
            continue
        iteration, loss = row["iteration"], row["total_loss"]
        if deviation(curve.setdefault(iteration, loss), loss) > tolerance:
            raise ValueError(
                f"{folder}: iteration {iteration} had the losses {curve[iteration]} and {loss}."
            )
    return curve


def deviation(one: float, other: float) -> float:
    """Return the relative difference of two losses."""
    return abs(one - other) / max(abs(one), abs(other), 1e-12)


def compare(whole: Path, killed: Path, tolerance: float) -> str:
    """Say in one sentence how far two finished runs agree.

    Raises:
        ValueError: a step is missing or a loss differs by more than the tolerance.
    """
    curves = [loss_curve(folder, tolerance) for folder in (whole, killed)]
    # The row of a step is written after its checkpoint, so a kill may come between the two.
    steps = curves[0].keys() & curves[1].keys()
    worst = max(deviation(curves[0][step], curves[1][step]) for step in steps)
    if worst > tolerance:
        raise ValueError(f"The losses differ by {worst:.1e}, more than {tolerance:.1e}.")
    weights = [
        load_file(folder / "model_final" / "model.safetensors") for folder in (whole, killed)
    ]
    equal = weights[0].keys() == weights[1].keys() and all(
        torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items()
    )
    return (
        f"{len(steps)} of {len(curves[0])} steps have a loss in both: the largest relative "
        f"difference is {worst:.1e}; the final weights are {'' if equal else 'not '}identical."
    )


def _start(output: Path, train_args: list[str]) -> subprocess.Popen[bytes]:
    output.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(ROOT / "train_net.py"), "--resume", *train_args]
    opts = ["OUTPUT_DIR", str(output), "SOLVER.LOG_PERIOD", "1"]
    with (output / "output.txt").open("a") as log:
        return subprocess.Popen(
            [*command, *opts], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def _finish(output: Path, train_args: list[str]) -> tuple[float, float]:
    """Run to the end; returns the seconds until the first row of metrics, and all seconds."""
    process, began = _start(output, train_args), time.monotonic()
    first = 0.0
    while process.poll() is None:
        if not first and (output / "metrics.json").exists():
            first = time.monotonic() - began
        time.sleep(0.05)
    if process.returncode:
        raise ValueError(f"The run failed with {process.returncode}, see {output}/output.txt.")
    return first, time.monotonic() - began


def run(args: argparse.Namespace) -> None:
    """Do both runs and print what happened."""
    if args.output.exists():
        raise ValueError(f"{args.output} exists already; name a new folder.")
    whole, killed = args.output / "whole", args.output / "killed"
    first, seconds = _finish(whole, args.train_args)
    print(f"undisturbed: {seconds:.0f} s, the first step after {first:.0f} s", flush=True)
    # So that the run is about at its end after the last kill.
    longest = first + 2 * (seconds - first) / args.kills
    started = []  # a Popen that is given up would wait for its process too

    def start() -> int:
        started.append(_start(killed, args.train_args))
        return started[-1].pid

    kills = kill_repeatedly(
        start,
        lambda moments: time.sleep(moments.uniform(0, longest)),
        killed,
        kills=args.kills,
        seed=args.seed,
    )
    for number, kill in enumerate(kills, start=1):
        saving = ", during a save" if kill.in_save else ""
        print(
            f"kill {number:2}: after {kill.seconds:5.1f} s{saving}; saved up to iteration "
            f"{kill.saved_iteration}"
        )
    _finish(killed, args.train_args)
    print(f"{len(kills)} kills. {compare(whole, killed, args.tolerance)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    return run_main(run, parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
