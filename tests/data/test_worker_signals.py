import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from rose_d2.data import build
from rose_d2.data.build import obey_only_the_parent


def work(ready):
    obey_only_the_parent()
    ready.set()
    time.sleep(60)


def sigterm_is_pending(pid):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (pending,) = [line.split()[1] for line in lines if line.startswith("ShdPnd:")]
    return int(pending, 16) >> (signal.SIGTERM - 1) & 1


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="the signal's sender is not told")
def test_only_the_parent_ends_a_worker():
    ready = multiprocessing.get_context("fork").Event()
    worker = multiprocessing.get_context("fork").Process(target=work, args=(ready,), daemon=True)
    worker.start()
    ready.wait()
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    while sigterm_is_pending(worker.pid):
        time.sleep(0.01)
    worker.join(timeout=0.5)
    assert worker.is_alive()
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=10)
    assert worker.exitcode == 0


def test_workers_of_all_loaders_are_prepared(monkeypatch, tiny_cfg):
    called = []
    monkeypatch.setattr(build, "obey_only_the_parent", lambda: called.append(1))
    monkeypatch.setattr(build.cv2, "setNumThreads", lambda threads: None)
    item = {"file_name": "a.jpg", "image_id": 1, "task": "instance", "dataset_name": "toy"}
    monkeypatch.setattr(build, "load_training_dicts", lambda cfg, name: [item])
    tiny_cfg.SOLVER.IMS_PER_BATCH = 1
    for loader in (
        build.build_rose_train_loader(tiny_cfg),
        build.build_rose_test_loader(tiny_cfg, "toy", [item]),
    ):
        loader.worker_init_fn(0)
    assert len(called) == 2
