"""Killed and preempted trainings go on as if nothing had happened; see interrupted_training.py."""

import json

import pytest
import torch
from safetensors.torch import load_file
from scripts import run_script

KILLS = 8
ITERATIONS, MOVED_ITERATIONS = 150, 24
IMAGES = 8  # per iteration: 4 at once, 2 times
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trainings(tmp_path_factory):
    """The folder the script has worked in, and its report."""
    folder = tmp_path_factory.mktemp("trainings")
    script = "tests/helpers/interrupted_training.py"
    run_script(script, folder, KILLS, output=folder / "output.txt")
    return folder, json.loads((folder / "report.json").read_text())


def read_rows(folder, rank=0):
    path = folder / f"steps-{rank}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def steps(folder):
    """Iteration -> (loss, samples), which have to be the same however often it was done."""
    done = {}
    for row in read_rows(folder):
        step = (row["loss"], row["samples"])
        assert done.setdefault(row["iteration"], step) == step
    return done


def test_killed_runs_resume_every_time_on_the_same_curve(trainings):
    folder, report = trainings
    assert (report["whole"], report["killed"]) == (0, 0)
    assert len(report["kills"]) == KILLS
    assert any(kill["in_save"] for kill in report["kills"])
    whole = steps(folder / "whole")
    assert sorted(whole) == list(range(ITERATIONS))
    assert steps(folder / "killed") == whole
    one, other = (
        load_file(folder / name / "model_final/model.safetensors") for name in ("whole", "killed")
    )
    for name, tensor in one.items():
        assert torch.equal(other[name], tensor), name


def test_a_kill_loses_only_the_steps_since_the_last_save(trainings):
    folder, report = trainings
    saved = [-1] + [kill["saved_iteration"] for kill in report["kills"]]
    assert saved == sorted(saved) and saved[-1] > 0
    rows = read_rows(folder / "killed")
    for row, after in zip(rows, rows[1:]):
        if row["pid"] != after["pid"]:
            assert row["iteration"] - 2 <= after["iteration"] - 1 in saved


def test_every_process_saves_and_stops_after_the_same_step(trainings):
    _, report = trainings
    for stop, processes in zip(report["stops"], (2, 1, 2), strict=True):
        assert stop["status"] == 75
        assert set(stop["last_iterations"]) == {stop["saved_iteration"]}
        assert stop["world_size"] == processes


def test_stopping_is_told_once_and_without_traceback(trainings):
    folder, report = trainings
    lines = (folder / "moved" / "output.txt").read_text().splitlines()
    told = [line for line in lines if "Stopped by SIGTERM" in line]
    assert len(told) == 3
    for line, stop in zip(told, report["stops"], strict=True):
        assert f"iteration {stop['saved_iteration']} is saved in" in line
    assert not any("Traceback" in line or "failed" in line for line in lines)


def test_no_sample_comes_twice_or_is_lost_on_two_one_and_two_processes(trainings):
    folder, report = trainings
    assert (report["plain"], report["moved"]) == (0, 0)
    seen = {}
    for rank in (0, 1):
        for row in read_rows(folder / "moved", rank):
            seen.setdefault(row["iteration"], []).extend(row["samples"])
    assert sorted(seen) == list(range(MOVED_ITERATIONS))
    for iteration, samples in seen.items():
        assert sorted(samples) == list(range(iteration * IMAGES, (iteration + 1) * IMAGES))


def test_the_curve_does_not_depend_on_the_number_of_processes(trainings):
    folder, _ = trainings
    moved, plain = steps(folder / "moved"), steps(folder / "plain")
    for iteration, (loss, _) in plain.items():
        assert moved[iteration][0] == pytest.approx(loss, rel=1e-5)
    assert plain[0][0] != pytest.approx(plain[MOVED_ITERATIONS - 1][0], rel=0.01)
