"""Training as torchrun and DeepSpeed's launcher start it; the job is launched_training.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from scripts import ROOT, free_port

SCRIPT = ROOT / "tests/helpers/launched_training.py"
pytestmark = pytest.mark.slow


def torchrun() -> list[str]:
    flags = ["--nproc-per-node", "2", "--master-port", str(free_port())]
    return [sys.executable, "-m", "torch.distributed.run", *flags]


def deepspeed() -> list[str]:
    flags = ["--num_accelerators", "2", "--master_port", str(free_port())]
    return [str(Path(sys.executable).with_name("deepspeed")), *flags]


def test_torchrun_and_deepspeeds_launcher_train_the_same(tmp_path):
    environment = {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(SCRIPT.parents[2]),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    weights = []
    for launcher in (torchrun, deepspeed):
        folder = tmp_path / launcher.__name__
        command = [*launcher(), str(SCRIPT), str(folder)]
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        assert result.returncode == 0, result.stderr[-3000:]
        for rank in (0, 1):  # rank, processes, rank on the machine, processes on the machine
            place = json.loads((folder / f"place-{rank}.json").read_text())
            assert place == [rank, 2, rank, 2]
        weights.append(load_file(folder / "model_final" / "model.safetensors"))
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor)
