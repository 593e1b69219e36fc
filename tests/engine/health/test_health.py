import json
import os
import socket
import subprocess
import sys

import pytest
from scripts import ROOT
from toy_training import ToyROSE, toy_config

from rose_d2.engine.non_finite import dumped_ranks
from rose_d2.engine.trainer import build_health_hooks
from rose_d2.engine.watchdog import WatchdogHook


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folder in which health_jobs.py has run."""
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = ROOT / "tests/helpers/health_jobs.py"
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), str(port)],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return folder


def test_all_ranks_skip_and_stop_together(two_processes):
    decisions = [json.loads((two_processes / f"guard_{r}.json").read_text()) for r in (0, 1)]
    assert decisions[0] == decisions[1]
    passed, skipped, message = decisions[0]
    assert (passed, skipped) == (False, True)
    assert "at iteration 2: loss_text = nan on rank 1, images 000001.jpg." in message
    folder = two_processes / "non_finite" / "iter_0000002"
    # The images of the rank at fault are enough, and the weights are there once.
    assert dumped_ranks(folder) == [1]
    assert (folder / "model.safetensors").is_file()


def test_watchdog_names_the_rank_without_data(two_processes):
    logs = [(two_processes / f"log_{rank}.txt").read_text() for rank in (0, 1)]
    # On a busy machine there may be more than this stall.
    reports = [line for line in logs[0].splitlines() if "waiting for data" in line]
    report = next(line for line in reports if "in iteration 4" in line)
    assert "Stalled: rank 1 " in report
    assert "health_jobs.py" in report and "in stands_still" in report
    assert "Ranks that wait for it: 1." in report
    # The whole stack is in the log of the process it is about.
    assert "in stands_still" in logs[1]


def test_metrics_cover_both_ranks(two_processes):
    lines = (two_processes / "metrics.json").read_text().splitlines()
    row = next(row for row in map(json.loads, lines) if row["iteration"] == 2)
    # Iterations 0 to 2 have images 0 to 11, of each four the first two on rank 0.
    assert row["task/semantic/text"] == pytest.approx((0 + 1 + 4 + 5 + 8 + 9) / 6)
    assert row["task/referring/text"] == pytest.approx((2 + 3 + 6 + 7 + 10 + 11) / 6)
    assert row["task/semantic/images"] == row["task/referring/images"] == 6
    assert {"images_per_second", "mfu", "host_memory_gib", "data_time", "eta_seconds"} <= set(row)


def test_watchdog_can_be_left_out(tmp_path):
    def watchdogs(seconds):
        cfg = toy_config(tmp_path, "SOLVER.WATCHDOG_SECONDS", seconds)
        hooks = build_health_hooks(cfg, engine=None, model=ToyROSE())
        return [hook for hook in hooks if isinstance(hook, WatchdogHook)]

    assert len(watchdogs(60.0)) == 1 and watchdogs(0.0) == []
    with pytest.raises(ValueError, match=r"WATCHDOG_SECONDS is -1\.0"):
        watchdogs(-1.0)
