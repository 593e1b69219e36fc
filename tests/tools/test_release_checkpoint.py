"""A released checkpoint is small, loads, and keeps no folder of the machine it was made on."""

import json
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from safetensors.torch import load_file, save_file
from scripts import load_script

from rose_d2.checkpoint.checkpointer import RoseCheckpointer

SCRIPT = Path(__file__).parents[2] / "tools" / "release_checkpoint.py"


@pytest.fixture
def tool():
    return load_script(SCRIPT)


def test_release_loads_and_names_no_folder(tool, tiny_cfg, tiny_model, tmp_path):
    run, output = tmp_path / "secret" / "run", tmp_path / "rose_tiny"
    run.mkdir(parents=True)
    tiny_cfg.OUTPUT_DIR = str(run)
    (run / "config.yaml").write_text(tiny_cfg.dump())
    (run / "metrics.json").write_text(
        '{"iteration": 1, "loss": 3}\n{"iteration": 2}\n{"iteration": 1, "loss": 4}\n'
    )
    (run / "log.txt").write_text(
        f"[d2.utils.env]: python {run}\n[11/22 16:00:00 d2.utils.events]: eta: 0 iter: 1\n"
    )
    RoseCheckpointer(tiny_model, str(run)).save("model_final")
    tool.main(["--run", str(run), "--output", str(output)])
    loaded = build_model(tiny_cfg)
    RoseCheckpointer(loaded).load(str(output))
    for name, value in tiny_model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    original = (run / "model_final" / "model.safetensors").stat().st_size
    assert (output / "model.safetensors").stat().st_size < 0.6 * original
    metrics = (output / "metrics.json").read_text()
    assert metrics == '{"iteration": 1, "loss": 4}\n{"iteration": 2}\n'
    assert "iter: 1" in (output / "log.txt").read_text()
    for file in ("config.yaml", "log.txt", "metrics.json"):
        assert "secret" not in (output / file).read_text(), file


def test_a_run_that_went_on_is_averaged_with_what_it_started_from(tool, tmp_path, refusal):
    run, first = tmp_path / "run", tmp_path / "first"
    for folder, value, steps in ((run, 1.0, (0, 1)), (first, 3.0, (0, 4))):
        folder.mkdir()
        (folder / "config.yaml").write_text("OUTPUT_DIR: ''\n")
        (folder / "log.txt").write_text(f"[d2.utils.events]: {folder.name}\n")
        lines = [json.dumps({"iteration": step, "loss": value}) for step in steps]
        (folder / "metrics.json").write_text("\n".join(lines))
        weights = {"heads.weight": torch.full((2,), value), "steps": torch.tensor(int(value))}
        save_file(weights, folder / "model.safetensors")
    arguments = ["--run", run, "--checkpoint", ".", "--after", first, "--output", first]
    tool.main([*map(str, arguments), "--share", "0.75"])
    weights = load_file(first / "model.safetensors")
    assert weights["heads.weight"].tolist() == [1.5, 1.5] and weights["steps"] == 1
    rows = [json.loads(line) for line in (first / "metrics.json").read_text().splitlines()]
    assert [(row["iteration"], row["loss"]) for row in rows] == [(0, 3), (4, 3), (5, 1), (6, 1)]
    assert (first / "log.txt").read_text() == "[d2.utils.events]: first\n[d2.utils.events]: run\n"
    save_file({"other": torch.zeros(1)}, first / "model.safetensors")
    assert "not of one model: heads.weight, other, steps" in refusal(tool, arguments)


@pytest.mark.parametrize("arguments", [["--share", "0.5"], ["--share", "0"], ["--share", "2"]])
def test_wrong_shares_are_refused(tool, capsys, arguments):
    with pytest.raises(SystemExit):
        tool.parse_args(["--run", "a", "--output", "b", *arguments])
    assert "--share is above 0 and at most 1" in capsys.readouterr().err


def test_missing_run_is_one_sentence(tool, tmp_path, refusal):
    assert "last_checkpoint" in refusal(tool, ["--run", tmp_path, "--output", tmp_path / "out"])
