import random

import numpy as np
import torch

from rose_d2.engine.random_state import (
    RandomStateHook,
    capture_random_state,
    preserved_random_state,
    restore_random_state,
)


def draw():
    return random.gauss(0, 1), np.random.randn(), torch.rand(1).item()


def test_state_survives_a_weights_only_file(tmp_path):
    random.gauss(0, 1), np.random.randn()  # both keep a second value for the next call
    torch.save(capture_random_state(), tmp_path / "state.pth")
    expected = [draw() for _ in range(3)]
    restore_random_state(torch.load(tmp_path / "state.pth", weights_only=True))
    assert [draw() for _ in range(3)] == expected


def test_preserved_even_after_an_error():
    state = capture_random_state()
    expected = draw()
    restore_random_state(state)
    try:
        with preserved_random_state():
            draw()
            raise KeyError
    except KeyError:
        pass
    assert draw() == expected


def test_another_number_of_processes_warns_and_starts_anew(caplog):
    hook = RandomStateHook()
    state = hook.state_dict()
    hook.load_state_dict({"ranks": state["ranks"] * 2})
    hook.before_train()
    assert "2 processes, this run has 1" in caplog.text
