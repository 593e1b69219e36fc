"""A released checkpoint is small, loads, and keeps no folder of the machine it was made on."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
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


def test_missing_run_is_one_sentence(tool, tmp_path, refusal):
    assert "last_checkpoint" in refusal(tool, ["--run", tmp_path, "--output", tmp_path / "out"])
