import importlib.util
from pathlib import Path

import pytest

from rose_d2.data.benchmark import COCO_LIKE
from rose_d2.data.datasets.registration import unregister

SCRIPT = Path(__file__).parents[2] / "tools" / "benchmark.py"


@pytest.fixture
def benchmark():
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    unregister(COCO_LIKE)


def test_speed_is_printed_with_its_stages(benchmark, capsys):
    command = ["data", "--config-file", "configs/rose_tiny.yaml", "--num", "3"]
    assert benchmark.main(command) == 0
    shown = capsys.readouterr().out
    assert f"{COCO_LIKE}: " in shown and "images a second in one process" in shown
    assert shown.count(" %  ") == 5


def test_an_unknown_dataset_is_one_sentence(benchmark, capsys):
    assert benchmark.main(["data", "--dataset", "nothing", "--num", "1"]) == 1
    error = capsys.readouterr().err
    assert "'nothing', which is not registered" in error
    assert error.count("\n") == 1
