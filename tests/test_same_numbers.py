"""The numbers of a checkpoint do not depend on how many processes compute them."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WEIGHTS = ROOT / "checkpoints" / "rose_tiny"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """results.json of every way to evaluate the shipped checkpoint on five scenes."""
    root, folder = tmp_path_factory.mktemp("datasets"), tmp_path_factory.mktemp("jobs")
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(root),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    sizes = ("--num-train", "1", "--num-val", "5", "--num-val-unseen", "1", "--num-workers", "1")
    prepare = [sys.executable, ROOT / "datasets/prepare_clipart.py", "--root", root, *sizes]
    subprocess.run(prepare, env=environment, check=True, capture_output=True)
    jobs = ("one process", "two processes", "batches of three")
    command = [sys.executable, ROOT / "tests/helpers/evaluation_jobs.py", WEIGHTS, folder, *jobs]
    result = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    printed = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.txt"))
    assert result.returncode == 0, result.stderr[-2000:] + printed
    paths = {job: folder / job / "results.json" for job in jobs}
    paths["rescored"] = folder / jobs[0] / "rescored" / "results.json"
    return {name: json.loads(path.read_text()) for name, path in paths.items()}


def flatten(node, prefix=()):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flatten(value, (*prefix, key))
        else:
            yield (*prefix, key), value


def test_there_is_something_to_compare(reports):
    results = reports["one process"]["results"]
    assert results["clipart_instance_val"]["segm"]["AP"] > 5
    assert results["clipart_sem_seg_val"]["sem_seg"]["mIoU"] > 5
    assert results["clipart_panoptic_val"]["panoptic_seg"]["PQ"] > 5
    assert results["clipart_refer_val"]["referring"]["cIoU"] > 5


def test_two_processes_give_the_same_numbers(reports):
    assert reports["two processes"]["results"] == reports["one process"]["results"]


def test_saved_predictions_give_the_same_numbers(reports):
    assert reports["rescored"] == reports["one process"]


def test_larger_batches_give_nearly_the_same_numbers(reports):
    batches = dict(flatten(reports["batches of three"]["results"]))
    for key, value in flatten(reports["one process"]["results"]):
        if value is None:
            assert batches[key] is None, key
        else:
            assert math.isclose(batches[key], value, abs_tol=0.1), key
