import pytest
from toy_training import ToyROSE, toy_config

from rose_d2.engine.step_engine import TorchStepEngine
from rose_d2.engine.trainer import build_step_engine


def test_engine_is_chosen_by_name(tmp_path):
    assert isinstance(build_step_engine(toy_config(tmp_path), ToyROSE()), TorchStepEngine)


def test_unknown_engine_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'warp'.*deepspeed.*torch"):
        build_step_engine(toy_config(tmp_path, "SOLVER.ENGINE", "warp"), ToyROSE())
