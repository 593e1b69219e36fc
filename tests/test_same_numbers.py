"""The numbers of a checkpoint do not depend on how many processes compute them."""

import json
import math

import pytest
from scripts import ROOT, finish_script, run_script, start_script

WEIGHTS = ROOT / "checkpoints" / "rose_tiny"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """results.json of every way to evaluate the shipped checkpoint on five scenes."""
    root, folder = tmp_path_factory.mktemp("datasets"), tmp_path_factory.mktemp("jobs")
    options = {"output": folder / "output.txt", "env": {"DETECTRON2_DATASETS": root}}
    sizes = ("--num-train", 1, "--num-val", 5, "--num-val-unseen", 1, "--num-workers", 1)
    run_script("datasets/prepare_clipart.py", "--root", root, *sizes, **options)
    jobs = ("one process", "two processes", "batches of three")
    job = start_script("tests/helpers/evaluation_jobs.py", WEIGHTS, folder, *jobs, **options)
    status, _ = finish_script(job, options["output"])
    assert status == 0, "\n".join(path.read_text()[-2000:] for path in folder.glob("*.txt"))
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
