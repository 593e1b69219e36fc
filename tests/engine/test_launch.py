"""What ends a job, and what its user reads; the jobs are those of failing_jobs.py."""

import argparse
import json

import pytest
from scripts import run_script

from rose_d2.data.mixture import DatasetView
from rose_d2.engine.launch import Place, is_users_mistake, run_job, started_by_launcher

NO_PREDICTIONS = "failing_jobs.py: No predictions in "
COMMON = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Launcher "<scenario>-<machine>" -> exit status, seconds since the failure and its output."""
    folder = tmp_path_factory.mktemp("jobs")
    run_script("tests/helpers/failing_jobs.py", folder, output=folder / "output.txt")
    ended = json.loads((folder / "ended.json").read_text())
    for name, job in ended.items():
        job["output"] = (folder / f"{name}.txt").read_text()
    return ended


@pytest.mark.slow
def test_every_failed_job_ends_within_a_minute(jobs):
    failed = {name: job for name, job in jobs.items() if "early" not in name}
    assert len(failed) == 12
    for name, job in failed.items():
        assert job["status"] == 1, (name, job["output"][-2000:])
        assert job["seconds"] < 60, name


@pytest.mark.slow
def test_a_failed_evaluator_ends_the_process_that_waits_in_a_collective(jobs):
    assert "ZeroDivisionError: the evaluator is broken" in jobs["evaluator raises-0"]["output"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scenario", "machine", "error"),
    [
        ("model raises on another machine", 0, "ZeroDivisionError: the model is broken"),
        ("main machine raises", 1, "ZeroDivisionError: machine 0 is broken"),
        ("killed on another machine", 0, "ended by SIGKILL"),
    ],
)
def test_other_machines_hear_the_first_error(jobs, scenario, machine, error):
    lines = jobs[f"{scenario}-{machine}"]["output"].splitlines()
    (stopped,) = [line for line in lines if "stopped, because process" in line]
    assert error in stopped
    assert not any("Traceback" in line for line in lines)


@pytest.mark.slow
def test_a_killed_process_is_named_with_its_signal(jobs):
    assert "process 1 was ended by SIGKILL; the machine may" in jobs["killed-0"]["output"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["alone-0", "mistake of the user-0", "mistake on another machine-1"]
)
def test_a_mistake_of_the_user_is_one_sentence(jobs, name):
    output = jobs[name]["output"]
    assert output.count(NO_PREDICTIONS) == 1 and "Traceback" not in output


@pytest.mark.slow
def test_a_process_that_finishes_first_stops_nobody(jobs):
    for machine in (0, 1):
        job = jobs[f"one finishes early-{machine}"]
        assert job["status"] == 0, job["output"]


def caught(function):
    try:
        function()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def test_only_refusals_of_this_package_are_the_users_mistakes():
    assert is_users_mistake(caught(lambda: DatasetView.parse("nothing")))
    assert not is_users_mistake(caught(lambda: int("nothing")))
    assert not is_users_mistake(caught(lambda: 1 / 0))
    assert not is_users_mistake(ValueError("never raised"))


@pytest.mark.parametrize("name", ["LOCAL_WORLD_SIZE", "LOCAL_SIZE"])
def test_place_is_read_from_torchrun_and_deepspeed(name):
    assert started_by_launcher({**COMMON, name: "4"}) == Place(5, 8, 1, 4)


def test_nobody_started_a_process_without_all_of_it():
    assert started_by_launcher(COMMON) is None
    assert started_by_launcher({"LOCAL_RANK": "0", "LOCAL_SIZE": "1"}) is None


def test_processes_are_counted_once(monkeypatch):
    for name, value in {**COMMON, "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    args = argparse.Namespace(num_gpus=2, num_machines=1)
    with pytest.raises(SystemExit, match="--num-gpus 2 .*started 8 processes already"):
        run_job(print, args)
