from pathlib import Path

import pytest
from scripts import load_script

from rose_d2.profiling.memory_plan import MemoryPlan

SCRIPT = Path(__file__).parents[2] / "tools" / "plan_memory.py"
TINY = ["--config-file", "configs/rose_tiny.yaml"]


@pytest.fixture
def plan_memory(monkeypatch):
    module = load_script(SCRIPT)

    def plan_training(cfg, num_gpus, num_objects):
        if num_gpus == 3:
            raise ValueError("3 GPUs cannot share")
        size = 7_000_000_000 if cfg.MODEL.LMM.GRADIENT_CHECKPOINTING else 11_000_000_000
        return MemoryPlan("training", {"weights": 2}, {"forward and backward": size, "update": 1})

    plan = MemoryPlan("inference", {"weights": 10**9}, {"names": 10**9})
    monkeypatch.setattr(module, "plan_training", plan_training)
    monkeypatch.setattr(module, "plan_inference", lambda cfg, batch_size: [plan] * batch_size)
    return module


def test_the_configured_training_decides(plan_memory, capsys):
    assert plan_memory.main([*TINY, "--gpu-memory", "12", "--only", "training"]) == 2
    shown = capsys.readouterr().out
    assert "11.000 GB  at the fullest moment: forward and backward" in shown
    assert "DOES NOT FIT: 10.800 GB are available" in shown
    assert "    fits: 10.800 GB" in shown  # with gradient checkpointing
    changed = ["--opts", "MODEL.LMM.GRADIENT_CHECKPOINTING", "True"]
    assert plan_memory.main([*TINY, "--gpu-memory", "12", *changed]) == 0


def test_inference_is_planned_too(plan_memory, capsys):
    command = [*TINY, "--gpu-memory", "1", "--only", "inference", "--inference-batch", "2"]
    assert plan_memory.main(command) == 0
    assert capsys.readouterr().out.count("DOES NOT FIT: 0.900 GB") == 2
    assert plan_memory.main([*command, "--reserve", "0"]) == 0
    assert capsys.readouterr().out.count("    fits: 1.000 GB") == 2


def test_a_mistake_is_one_sentence(plan_memory, capsys):
    assert plan_memory.main([*TINY, "--gpu-memory", "80", "--num-gpus", "3"]) == 1
    assert capsys.readouterr().err == "plan_memory.py: error: 3 GPUs cannot share\n"
