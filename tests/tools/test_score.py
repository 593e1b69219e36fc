from pathlib import Path

import pytest
from scripts import load_script

from rose_d2.evaluation.predictions import PredictionStore

SCRIPT = Path(__file__).parents[2] / "tools" / "score.py"


@pytest.fixture
def score():
    return load_script(SCRIPT)


@pytest.fixture
def predictions(tmp_path):
    for name in ("a_val", "b_val"):
        PredictionStore(tmp_path / name, {"dataset": name})
    (tmp_path / "rescored").mkdir()
    return tmp_path


def test_datasets_are_found_in_the_folder_or_beside_others(score, predictions):
    assert score.find_folders(predictions, None) == [predictions / "a_val", predictions / "b_val"]
    assert score.find_folders(predictions, ["b_val"]) == [predictions / "b_val"]
    assert score.find_folders(predictions / "a_val", None) == [predictions / "a_val"]


def test_what_is_not_there_is_one_sentence(score, predictions, capsys):
    command = [str(predictions), "--dataset", "c_val"]
    assert score.main(command) == 1
    error = capsys.readouterr().err
    assert "No predictions of c_val" in error and "there are a_val, b_val" in error
    assert error.count("\n") == 1
