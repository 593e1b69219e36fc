"""The device script, on the CPU with the tiny config."""

from pathlib import Path

import pytest
import torch
from scripts import load_script

SCRIPT = Path(__file__).parents[2] / "tools" / "check_gpu.py"
ROWS = ("tiny model against the CPU", "one process of NCCL", "training step, 2 images")


@pytest.fixture
def tool():
    return load_script(SCRIPT)


@pytest.mark.slow
def test_every_row_is_run(tool, monkeypatch, capsys):
    sizes = ["MODEL.LMM.IMAGE_SIZE", "84", "MODEL.MASK_HEAD.IMAGE_SIZE", "64", "TEST.TOP_K", "5"]
    command = ["--config-file", "configs/rose_tiny.yaml", "--num", "1", "--opts", *sizes]
    monkeypatch.setattr(tool, "INFERENCE_IMAGES", (1,))
    assert tool.main(command) == 0
    shown = capsys.readouterr().out.splitlines()
    for row in (*ROWS, "inference, 1 images"):
        assert any(line.split()[0] == "ok" and row in line for line in shown if line.strip()), row
    assert any("GB planned" in line for line in shown if "training step, 2" in line)


def test_a_failure_is_a_row_and_the_others_are_run(tool, monkeypatch, capsys):
    def fail(*args):
        raise RuntimeError("CUDA out of memory.\nTried to allocate 2 GB")

    monkeypatch.setattr(tool, "compare_with_cpu", lambda device: ("largest deviation 1", False))
    monkeypatch.setattr(tool, "train", fail)
    monkeypatch.setattr(tool, "infer", lambda cfg, count, num: (f"{count} s", True))
    assert tool.main(["--config-file", "configs/rose_tiny.yaml"]) == 1
    shown = capsys.readouterr().out
    assert "FAILED  training step, 2 images       RuntimeError: CUDA out of memory. Tried" in shown
    assert "FAILED  tiny model against the CPU" in shown
    assert "ok      inference, 4 images           4 s" in shown
    assert "all_reduce with gloo" in shown


def test_a_device_that_computes_something_else_is_found(tool, monkeypatch):
    broken = torch.nn.Module.to

    def to(module, device):
        module = broken(module, device)
        with torch.no_grad():
            module.patch_analyzer.objectness.copies[0].layers[2].bias += 1
        return module

    cpu = torch.device("cpu")
    said, is_fine = tool.compare_with_cpu(cpu)
    assert is_fine and "0.0e+00" in said
    built = tool.build_model

    def build(cfg):
        model = built(cfg)
        model.to = lambda device: to(model, device)
        return model

    monkeypatch.setattr(tool, "build_model", build)
    assert not tool.compare_with_cpu(cpu)[1]
