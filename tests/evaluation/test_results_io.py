import json
import math

import numpy as np
import pytest
import torch

from rose_d2.evaluation.results_io import write_results


def test_numbers_survive_and_nan_becomes_null(tmp_path):
    path = tmp_path / "deep" / "results.json"
    results = {"clipart": {"segm": {"AP": np.float64(12.5), "APl": math.nan}, "n": torch.tensor(3)}}
    write_results(results, str(path), {"seed": 1, "versions": ("a", np.int64(2))})
    assert json.loads(path.read_text()) == {
        "seed": 1,
        "versions": ["a", 2],
        "results": {"clipart": {"segm": {"AP": 12.5, "APl": None}, "n": 3}},
    }
    assert [p.name for p in path.parent.iterdir()] == ["results.json"]


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_results({"a": {}}, str(path))
    with pytest.raises(TypeError):
        write_results({"b": {"bad": object()}}, str(path))
    assert json.loads(path.read_text()) == {"results": {"a": {}}}


def test_provenance_cannot_hide_the_results(tmp_path):
    with pytest.raises(ValueError, match="rename"):
        write_results({}, str(tmp_path / "results.json"), {"results": 1})
