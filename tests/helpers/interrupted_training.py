"""Trainings that are killed, or told to end by SIGTERM, and resumed; a script, for it forks.

`python interrupted_training.py FOLDER 20` trains the toy model on the real stream of samples, with
workers, once undisturbed and then interrupted in several ways, one of them 20 times by SIGKILL.
It writes `report.json`.
"""

import argparse
import functools
import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch.multiprocessing
import torch.utils.data as torchdata
import torch.utils.tensorboard  # noqa: F401  (once for all the forked processes)
from detectron2.utils import comm
from scripts import load_script
from toy_training import ToyTrainer, seed_all, toy_config, toy_item

from rose_d2.data.build import obey_only_the_parent
from rose_d2.data.mixture import MixtureBatchSampler, MixtureStream
from rose_d2.engine.launch import run_job

ITERATIONS = 150
OPTS = ("SOLVER.MAX_ITER", ITERATIONS, "SOLVER.ACCUMULATION_STEPS", 2)
TERMINATED_AFTER = 5  # steps of each start that is ended by SIGTERM


class ToyDataset(torchdata.Dataset):
    def __getitem__(self, item):
        return {**toy_item(100 * item.dataset + item.index), "sample": item.sample}


class StreamTrainer(ToyTrainer):
    """Writes down, per process, which samples each step saw and what its loss was."""

    @classmethod
    def build_train_loader(cls, cfg, start_iter=0):
        stream = MixtureStream(names=["a", "b"], sizes=[37, 11], weights=[3.0, 1.0], seed=cfg.SEED)
        sampler = MixtureBatchSampler(
            stream,
            total_batch_size=cfg.SOLVER.IMS_PER_BATCH,
            rank=comm.get_rank(),
            world_size=comm.get_world_size(),
            start=start_iter * cfg.SOLVER.ACCUMULATION_STEPS,
        )
        return torchdata.DataLoader(
            ToyDataset(),
            batch_sampler=sampler,
            num_workers=1,
            collate_fn=list,
            worker_init_fn=lambda worker: obey_only_the_parent(),
        )

    def run_step(self):
        engine, samples = self._trainer, []
        batches = engine.data_iterator

        def recorded():
            for batch in batches:
                samples.extend(item["sample"] for item in batch)
                yield batch

        engine.data_iterator = recorded()
        super().run_step()
        engine.data_iterator = batches
        row = {"iteration": self.iter, "rank": comm.get_rank(), "pid": os.getpid()}
        row["samples"] = samples
        if comm.is_main_process():
            row["loss"] = self.storage.latest()["total_loss"][0]
        with open(Path(self.cfg.OUTPUT_DIR) / f"steps-{row['rank']}.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def main(args):
    cfg = toy_config(args.folder, *OPTS, *args.opts)
    # What a resuming start draws before training must not matter.
    resuming = (args.folder / "last_checkpoint").exists()
    seed_all(os.getpid() if resuming else cfg.SEED)
    trainer = StreamTrainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def rows(folder: Path, rank: int = 0) -> list[dict]:
    path = folder / f"steps-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def start(folder: Path, *opts, processes: int = 1) -> int:
    """Fork a job as leader of a process group; it appends what it prints to `output.txt`."""
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    output = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1), os.dup2(output, 2)
    args = argparse.Namespace(
        folder=folder,
        opts=opts,
        num_gpus=processes,
        num_machines=1,
        machine_rank=0,
        dist_url="auto",
    )
    status = 0
    try:
        run_job(main, args)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
        if status != error.code:
            sys.stderr.write(f"{error.code}\n")
    except BaseException:
        traceback.print_exc()
        status = 1
    if multiprocessing.active_children():
        sys.stderr.write("Traceback: a worker of the loader is still there\n")
    sys.stderr.flush()
    os._exit(status)


def finish(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def terminate(folder: Path, kill, *opts, processes: int) -> dict:
    """Start, wait some steps, let `kill(pid of the job)` send SIGTERM; says how the job ended."""
    before = len(rows(folder))
    pid = start(folder, *opts, processes=processes)
    while len(rows(folder)) < before + TERMINATED_AFTER:
        assert os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        time.sleep(0.01)
    kill(pid)
    began = time.monotonic()
    status = finish(pid)
    last = [rows(folder, rank)[-1]["iteration"] for rank in range(processes)]
    name = (folder / "last_checkpoint").read_text()
    manifest = json.loads((folder / name / "manifest.json").read_text())
    return {
        "status": status,
        "seconds": time.monotonic() - began,
        "last_iterations": last,
        "saved_iteration": manifest["iteration"],
        "world_size": manifest["world_size"],
    }


def run_killed(folder: Path, kills: int) -> dict:
    """Train once undisturbed and once with kills."""
    tool = load_script("tools/kill_and_resume.py")
    rarely, often = (("SOLVER.CHECKPOINT_PERIOD", period) for period in (100, 2))
    whole, killed = folder / "whole", folder / "killed"
    status = finish(start(whole, *rarely))

    def wait(moments):
        """Until some steps more are done, or for a part of a start."""
        goal = moments.randint(0, 6)
        before = len(rows(killed))
        while len(rows(killed)) < before + goal:
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.01 if goal else 0.3))

    done = tool.kill_repeatedly(lambda: start(killed, *often), wait, killed, kills=kills, seed=0)
    resumed = finish(start(killed, *rarely))
    return {"whole": status, "kills": [kill._asdict() for kill in done], "killed": resumed}


def run_moved(folder: Path) -> dict:
    """Train once on one process and once on two, one and two, with SIGTERM between them."""
    opts = ("SOLVER.CHECKPOINT_PERIOD", 100, "MODEL.META_ARCHITECTURE", "NoDropoutROSE")
    opts += ("SOLVER.MAX_ITER", 24)
    moved = folder / "moved"

    def to_one_rank(pid):
        os.kill(rows(moved, 1)[-1]["pid"], signal.SIGTERM)

    def to_group(pid):
        os.killpg(pid, signal.SIGTERM)

    def to_launcher(pid):
        os.kill(pid, signal.SIGTERM)

    return {
        "plain": finish(start(folder / "plain", *opts)),
        "stops": [
            terminate(moved, to_one_rank, *opts, processes=2),
            terminate(moved, to_group, *opts, processes=1),
            terminate(moved, to_launcher, *opts, processes=2),
        ],
        "moved": finish(start(moved, *opts, processes=2)),
    }


def run_all(folder: Path, kills: int) -> None:
    # Forked, the processes need not import everything again.
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = fork
    report = run_killed(folder, kills) | run_moved(folder)
    (folder / "report.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), int(sys.argv[2]))
