"""Lets the tests of this folder run the scripts of tests/helpers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def run_script():
    """Run a script on the CPU, one thread a process, and demand that it succeeds."""

    def run(script: Path, *arguments, timeout: float) -> None:
        environment = {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        result = subprocess.run(
            [sys.executable, script, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]

    return run
