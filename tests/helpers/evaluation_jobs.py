"""Evaluations of one checkpoint on the same scenes in several ways, side by side.

`python evaluation_jobs.py WEIGHTS FOLDER [JOB ...]` writes FOLDER/<job>/results.json and, of the
first job, the scores of its saved predictions into FOLDER/one process/rescored. A script because
processes are forked here, so that they need not import everything again.
"""

import functools
import os
import sys
import traceback
from pathlib import Path

import torch.multiprocessing
from scripts import load_script

import rose_d2.engine.trainer  # noqa: F401  (before processes are forked)
from rose_d2.engine.launch import run_job

ROOT = Path(__file__).parents[2]
DATASETS = tuple(f"clipart_{task}_val" for task in ("instance", "sem_seg", "panoptic", "refer"))
# Job: number of processes and images per batch.
JOBS = {
    "one process": (1, 2),
    "two processes": (2, 2),
    "four processes": (4, 2),
    "batches of three": (1, 3),
}


def fork(function, output: Path) -> int:
    """Run `function` in a child that prints into a file; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    file = os.open(output, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1), os.dup2(file, 2)
    status = 1
    try:
        status = function() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def evaluate(train_net, weights: str, folder: Path, num_processes: int, batch_size: int) -> None:
    args = train_net.parse_args(
        [
            *("--config-file", str(ROOT / "configs/rose_tiny.yaml"), "--eval-only"),
            *("--save-predictions", "--num-gpus", str(num_processes), "--dist-url", "auto"),
            *("MODEL.WEIGHTS", weights, "OUTPUT_DIR", str(folder)),
            *("DATASETS.TEST", str(DATASETS), "DATALOADER.NUM_WORKERS", "0"),
            *("TEST.IMS_PER_BATCH", str(batch_size)),
        ]
    )
    run_job(train_net.main, args)


def main(weights: str, folder: Path, jobs: list[str]) -> int:
    train_net = load_script(ROOT / "train_net.py")
    score = load_script(ROOT / "tools" / "score.py")
    spawn = torch.multiprocessing.start_processes
    torch.multiprocessing.start_processes = functools.partial(spawn, start_method="fork")
    running = []
    for job in jobs:
        run = functools.partial(evaluate, train_net, weights, folder / job, *JOBS[job])
        running.append(fork(run, folder / f"{job}.txt"))
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in running)
    predictions = str(folder / jobs[0] / "predictions")
    rescoring = fork(functools.partial(score.main, [predictions]), folder / "rescored.txt")
    return failed + (os.waitpid(rescoring, 0)[1] != 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
