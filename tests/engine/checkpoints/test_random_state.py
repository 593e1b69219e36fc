import random

import numpy as np
import pytest
import torch

from rose_d2.engine import preemption as module
from rose_d2.engine.preemption import (
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


@pytest.fixture
def as_rank(monkeypatch):
    """Pretend to be a process of several."""

    def become(rank, world_size):
        monkeypatch.setattr(module.comm, "get_rank", lambda: rank)
        monkeypatch.setattr(module.comm, "get_world_size", lambda: world_size)

    return become


def state_after(seed):
    random.seed(seed), np.random.seed(seed), torch.manual_seed(seed)
    return capture_random_state()


def resumed_draw(states):
    """What a process draws first after resuming, whatever it drew before."""
    torch.manual_seed(random.randrange(100))
    hook = RandomStateHook()
    hook.load_state_dict({"ranks": states})
    hook.before_train()
    return draw()


def test_as_many_processes_go_on_with_their_own_numbers(as_rank, caplog):
    states = [state_after(1), state_after(2)]
    expected = draw()
    as_rank(1, 2)
    assert resumed_draw(states) == expected and not caplog.text


def test_fewer_processes_go_on_and_warn(as_rank, caplog):
    states = [state_after(1), state_after(2)]
    restore_random_state(states[0])
    expected = draw()
    as_rank(0, 1)
    assert resumed_draw(states) == expected
    assert "2 processes, this run has 1" in caplog.text


def test_more_processes_draw_numbers_of_their_own_that_can_be_repeated(as_rank):
    states = [state_after(1)]
    draws = []
    for rank in range(4):
        as_rank(rank, 4)
        draws.append(resumed_draw(states))
        assert resumed_draw(states) == draws[-1]
    for generator in zip(*draws, strict=True):
        assert len(set(generator)) == 4
