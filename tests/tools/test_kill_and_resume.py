import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "tools/kill_and_resume.py"


@pytest.fixture(scope="module")
def tool():
    return load_script(SCRIPT)


def finished_run(folder, losses, weight=1.0):
    """A run with rows (iteration, loss) and one final weight."""
    (folder / "model_final").mkdir(parents=True)
    rows = [{"iteration": iteration, "total_loss": loss} for iteration, loss in losses]
    rows.append({"iteration": len(rows), "toy/metric": 1.0})
    (folder / "metrics.json").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    save_file({"weight": torch.tensor([weight])}, folder / "model_final/model.safetensors")
    return folder


def test_equal_runs_though_steps_came_twice_and_a_row_is_missing(tool, tmp_path):
    whole = finished_run(tmp_path / "whole", [(0, 3.0), (1, 2.0), (2, 1.0)])
    killed = finished_run(tmp_path / "killed", [(0, 3.0), (2, 1.0), (2, 1.0)])
    text = tool.compare(whole, killed, 1e-5)
    assert text.startswith("2 of 3 steps") and "is 0.0e+00; the final weights are identical" in text


def test_other_weights_are_said(tool, tmp_path):
    whole = finished_run(tmp_path / "whole", [(0, 3.0)])
    killed = finished_run(tmp_path / "killed", [(0, 3.0)], weight=2.0)
    assert "weights are not identical" in tool.compare(whole, killed, 1e-5)


def test_another_curve_is_refused(tool, tmp_path):
    whole = finished_run(tmp_path / "whole", [(0, 3.0), (1, 2.0)])
    killed = finished_run(tmp_path / "killed", [(0, 3.0), (1, 2.2)])
    with pytest.raises(ValueError, match=r"differ by 9\.1e-02"):
        tool.compare(whole, killed, 1e-5)


def test_a_step_that_was_repeated_differently_is_refused(tool, tmp_path):
    killed = finished_run(tmp_path / "killed", [(0, 3.0), (1, 2.0), (1, 2.1)])
    with pytest.raises(ValueError, match=r"iteration 1 had the losses 2\.0 and 2\.1"):
        tool.loss_curve(killed, 1e-5)


def test_saved_iteration_is_that_of_the_last_checkpoint(tool, tmp_path):
    assert tool.saved_iteration(tmp_path) == -1
    (tmp_path / "model_0000004").mkdir()
    (tmp_path / "model_0000004" / "manifest.json").write_text('{"iteration": 4}')
    (tmp_path / "last_checkpoint").write_text("model_0000004")
    assert tool.saved_iteration(tmp_path) == 4


def test_a_folder_in_use_is_refused(tool, tmp_path, refusal):
    arguments = ["--output", tmp_path, "--", "--config-file", "any.yaml"]
    assert "exists already" in refusal(tool, arguments)
