import time

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from rose_d2.engine.metrics import StepFlops, ThroughputHook

# A product of (5, 8) with (8, 16), its backward pass without that of the input.
STEP_FLOPS = 2 * (2 * 5 * 8 * 16)
SECONDS = 0.05


class Trainer:
    iter, start_iter, max_iter = 10, 10, 14


def run(**settings):
    """Four steps of a layer; returns the storage after each."""
    model = nn.Linear(8, 16)
    settings = {"peak_tflops": 0.0, "period": 2} | settings
    hook = ThroughputHook(model, images_per_step=6, dtypes=[torch.float32], **settings)
    hook.trainer = Trainer()
    rows = []
    with EventStorage() as hook.trainer.storage:
        hook.before_train()
        for hook.trainer.iter in range(10, 14):
            hook.before_step()
            model(torch.ones(5, 8)).sum().backward()
            time.sleep(SECONDS)
            hook.after_step()
            rows.append({k: v for k, (v, _) in hook.trainer.storage.latest().items()})
        hook.after_train()
    return rows


def test_rates_are_those_of_a_step_but_the_first():
    rows = run(peak_tflops=1e-6)
    assert "images_per_second" not in rows[0] and "mfu" not in rows[0]
    rate = rows[1]["images_per_second"]
    assert 0 < rate < 6 / SECONDS
    # Both come from the same time: 1e6 operations per second are the peak.
    assert rows[1]["mfu"] == pytest.approx(STEP_FLOPS * (rate / 6) / 1e6)


def test_peak_is_measured_if_none_is_given(caplog):
    caplog.set_level("INFO")
    rows = run()
    assert 0 < rows[-1]["mfu"] < 1
    assert f"{STEP_FLOPS / 1e12:.4g} TFLOP per process" in caplog.text
    assert "measured by a matrix product" in caplog.text


def test_utilisation_can_be_left_out():
    rows = run(peak_tflops=-1.0)
    assert "mfu" not in rows[-1] and "images_per_second" in rows[-1]


def test_memory_is_read_every_period_and_at_the_end():
    rows = run(peak_tflops=-1.0, period=3)
    assert ["host_memory_gib" in row for row in rows] == [False, True, True, True]
    assert 0.01 < rows[-1]["host_memory_gib"] < 1000


def test_counting_changes_no_bit_of_the_gradients(tiny_model, make_input):
    batched_inputs = [make_input(), make_input("panoptic")]

    def gradients(counter):
        tiny_model.train().zero_grad()
        torch.manual_seed(1)
        with EventStorage(), counter:
            sum(tiny_model(batched_inputs).values()).backward()
        return [p.grad.clone() for p in tiny_model.parameters() if p.grad is not None]

    counter = StepFlops(tiny_model)
    counted, plain = gradients(counter), gradients(torch.enable_grad())
    assert all(torch.equal(one, other) for one, other in zip(counted, plain, strict=True))
    assert 0 < counter.forward < counter.backward and counter.recomputed == 0
