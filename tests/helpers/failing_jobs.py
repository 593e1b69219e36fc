"""Jobs in which something fails, run at once; a script because each job ends its processes.

`python failing_jobs.py FOLDER` runs every scenario and writes, per launcher, what it printed and,
into `ended.json`, its exit status and how many seconds after the failure it ended.
"""

import argparse
import functools
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch.multiprocessing
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from scripts import free_port

from rose_d2.engine.launch import run_job
from rose_d2.evaluation.loop import inference_on_dataset
from rose_d2.evaluation.predictions import PredictionStore

FAILING = 1  # rank
PATIENCE = 240  # seconds; the jobs take about 5
# Scenario: machines. Every one has two processes in all, except "alone".
SCENARIOS = {
    "evaluator raises": 1,
    "model raises on another machine": 2,
    "mistake of the user": 1,
    "mistake on another machine": 2,
    "main machine raises": 2,
    "killed": 1,
    "killed on another machine": 2,
    "one finishes early": 2,
    "alone": 1,
}


class Gathering(DatasetEvaluator):
    """Gathers at the end, and may fail before."""

    def __init__(self, broken: bool) -> None:
        self.broken = broken

    def process(self, inputs, outputs):
        if self.broken:
            raise ZeroDivisionError("the evaluator is broken")

    def evaluate(self):
        return {"ranks": comm.all_gather(comm.get_rank())}


def broken_model(inputs):
    raise ZeroDivisionError("the model is broken")


def main(args: argparse.Namespace) -> None:
    scenario, folder = args.scenario, args.folder
    failing = 0 if scenario in ("main machine raises", "alone") else FAILING
    fails = comm.get_rank() == failing
    comm.synchronize()
    if scenario == "one finishes early":
        time.sleep(3 * comm.get_rank())
        return
    (folder / f"{scenario}.failed").touch()
    if fails and "killed" in scenario:
        os.kill(os.getpid(), signal.SIGKILL)
    if fails and ("mistake" in scenario or scenario == "alone"):
        PredictionStore(folder / "nowhere", None)
    model = broken_model if fails and "model" in scenario else lambda inputs: inputs
    evaluator = Gathering(fails and "evaluator" in scenario)
    if fails and scenario == "main machine raises":
        raise ZeroDivisionError("machine 0 is broken")
    inference_on_dataset(model, [[{"image_id": 1}]], evaluator)


def launch_machine(folder: Path, scenario: str, machine: int, port: int) -> int:
    """Fork the launcher of one machine; returns its process id."""
    pid = os.fork()
    if pid:
        return pid
    num_machines = SCENARIOS[scenario]
    output = os.open(folder / f"{scenario}-{machine}.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    args = argparse.Namespace(
        num_gpus=1 if scenario == "alone" else 2 // num_machines,
        num_machines=num_machines,
        machine_rank=machine,
        dist_url=f"tcp://127.0.0.1:{port}",
        scenario=scenario,
        folder=folder,
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
    finally:
        sys.stderr.flush()
        os._exit(status)


def run_all(folder: Path) -> None:
    # Forked, the processes need not import everything again.
    fork = functools.partial(torch.multiprocessing.start_processes, start_method="fork")
    torch.multiprocessing.start_processes = fork
    launchers = {}
    for scenario, num_machines in SCENARIOS.items():
        port = free_port()
        for machine in range(num_machines):
            pid = launch_machine(folder, scenario, machine, port)
            launchers[pid] = f"{scenario}-{machine}"
    ended = {}

    def give_up(*_) -> None:
        for name in launchers.values():
            print(f"{name} is still running; it printed:\n{(folder / f'{name}.txt').read_text()}")
        sys.stdout.flush()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE)
    while launchers:
        pid, status = os.wait()
        name = launchers.pop(pid)
        failed = folder / f"{name.rpartition('-')[0]}.failed"
        seconds = time.time() - failed.stat().st_mtime if failed.exists() else 0.0
        ended[name] = {"status": os.waitstatus_to_exitcode(status), "seconds": seconds}
    (folder / "ended.json").write_text(json.dumps(ended, indent=1))


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
