import torch

from rose_d2.profiling.memory_model import LiveBytes


def test_the_peak_outlives_what_made_it():
    with LiveBytes() as live:
        first = torch.zeros(1000)
        second = torch.zeros(500)
        assert live.current == 6000
        del first
        assert live.current == 2000
        third = second + 1
        assert live.current == 4000
    assert live.peak == 6000
    assert len(third) == 500


def test_views_and_known_tensors_take_nothing():
    weight = torch.zeros(1000)
    with LiveBytes([weight]) as live:
        weight.add_(1)
        made = torch.zeros(100)
        views = made[:50], made.view(10, 10)
    assert live.peak == 400
    assert len(views) == 2


def test_what_autograd_saves_is_alive():
    weight = torch.ones(100, requires_grad=True)
    with LiveBytes([weight]) as live:
        loss = weight.exp().sum()
        assert live.current == 404
        loss.backward()
        assert live.peak >= 404 + 400
    del loss
    assert live.current == 400  # the gradient


def test_a_restart_begins_with_what_is_alive():
    with LiveBytes() as live:
        kept = torch.zeros(10)
        torch.zeros(100)
        assert live.restart() == 440
        assert live.peak == 40
    assert len(kept) == 10
