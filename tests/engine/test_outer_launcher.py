import argparse

import pytest

from rose_d2.engine.launch import Place, run_job, started_by_launcher

COMMON = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}


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
