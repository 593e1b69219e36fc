import math
import time
from collections import OrderedDict

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.checkpoint import checkpoint

from rose_d2.engine.metrics import (
    StepFlops,
    TaskLossHook,
    ThroughputHook,
    measured_peak,
    sum_by_task,
    task_metrics,
)
from rose_d2.modeling.supervision import Supervisor

# A product of (5, 8) with (8, 16), its backward pass without that of the input.
STEP_FLOPS = 2 * (2 * 5 * 8 * 16)
SECONDS = 0.05
FIRST, SECOND = 2 * 5 * 8 * 16, 2 * 5 * 16 * 4


def batch(tasks, text, mask):
    return tasks, {"loss_text": torch.tensor(text), "loss_mask_bce": torch.tensor(mask)}


def test_terms_are_averaged_over_the_images_of_a_task_on_all_ranks():
    one = sum_by_task([batch(["semantic", "referring"], [1.0, 2.0], [10.0, 20.0])])
    two = sum_by_task([batch(["referring"], [4.0], [0.0]), batch(["referring"], [6.0], [1.0])])
    assert task_metrics([one, two]) == pytest.approx(
        {
            "task/semantic/text": 1.0,
            "task/semantic/mask_bce": 10.0,
            "task/semantic/total": 11.0,
            "task/semantic/images": 1,
            "task/referring/text": 4.0,
            "task/referring/mask_bce": 7.0,
            "task/referring/total": 11.0,
            "task/referring/images": 3,
        }
    )


def test_nan_of_one_image_does_not_spread():
    sums = sum_by_task([batch(["semantic"] * 2, [math.nan, 3.0], [1.0, 2.0])])
    metrics = task_metrics([sums])
    assert metrics["task/semantic/text"] == 3.0
    assert metrics["task/semantic/mask_bce"] == 1.5


class ValueSupervisor(Supervisor):
    """Its loss is the value each item comes with."""

    def __init__(self):
        self._hooks = OrderedDict()

    def losses(self, batched_inputs):
        values = torch.tensor([item["value"] for item in batched_inputs])
        for hook in self._hooks.values():
            hook(batched_inputs, {"loss_text": values})


class SupervisedModel(nn.Module):
    def __init__(self):
        super().__init__()
        self.supervisor = ValueSupervisor()

    def forward(self, batched_inputs):
        return self.supervisor.losses(batched_inputs) if self.training else []


class Trainer:
    iter, start_iter, max_iter = 0, 0, 5


def test_hook_averages_over_its_period_and_leaves_out_evaluation():
    model = SupervisedModel()
    hook = TaskLossHook(model, period=2)
    hook.trainer = Trainer()
    rows = []
    with EventStorage() as hook.trainer.storage:
        hook.before_train()
        for value in (1.0, 3.0, 10.0, 20.0, 7.0):
            model.train()([{"task": "semantic", "value": value}])
            model.eval()([{"task": "semantic", "value": -100.0}])
            hook.after_step()
            rows.append(hook.trainer.storage.latest().get("task/semantic/text", (None,))[0])
            hook.trainer.iter += 1
        hook.after_train()
    assert rows == [None, 2.0, 2.0, 15.0, 7.0]
    assert not model.supervisor._hooks
    # detectron2's progress line would show it.
    assert not any("loss" in name for name in hook.trainer.storage.latest())


def test_the_real_model_tells_the_terms_of_every_image(tiny_model, make_input):
    hook = TaskLossHook(tiny_model, period=1)
    hook.trainer = Trainer()
    items = [make_input("semantic"), make_input("referring")]
    with EventStorage() as hook.trainer.storage:
        hook.before_train()
        tiny_model.train()(items)
        with torch.no_grad():
            tiny_model.eval()(items)
        hook.after_step()
        hook.after_train()
        latest = {name: value for name, (value, _) in hook.trainer.storage.latest().items()}
    assert latest["task/semantic/images"] == latest["task/referring/images"] == 1
    assert latest["task/semantic/mask_bce"] > 0 and latest["task/referring/total"] > 0
    assert latest["task/semantic/ranking"] == 0 < latest["task/referring/ranking"]


def test_a_model_without_losses_by_image_has_no_such_metrics():
    hook = TaskLossHook(nn.Linear(1, 1), period=1)
    hook.trainer = Trainer()
    with EventStorage() as hook.trainer.storage:
        hook.before_train()
        hook.after_step()
        hook.after_train()
        assert hook.trainer.storage.latest() == {}


class TimedTrainer:
    iter, start_iter, max_iter = 10, 10, 14


def run(**settings):
    """Four steps of a layer; returns the storage after each."""
    model = nn.Linear(8, 16)
    settings = {"peak_tflops": 0.0, "period": 2} | settings
    hook = ThroughputHook(model, images_per_step=6, dtypes=[torch.float32], **settings)
    hook.trainer = TimedTrainer()
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


class TwoLayers(nn.Module):
    """Products of (5, 8) with (8, 16) and of (5, 16) with (16, 4)."""

    def __init__(self, *, checkpointed=False, reentrant=False, frozen=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.second = nn.Linear(16, 4)
        self.first.requires_grad_(not frozen)
        self.checkpointed = checkpointed
        self.reentrant = reentrant

    def forward(self, x):
        if self.checkpointed:
            x = checkpoint(self.block, x, use_reentrant=self.reentrant)
        else:
            x = self.block(x)
        return self.second(x)

    def block(self, x):
        return self.first(x).tanh()


def count(model, x):
    counter = StepFlops(model)
    with counter:
        model(x).sum().backward()
    return counter


def test_forward_and_backward_are_those_of_the_matrix_products():
    counter = count(TwoLayers(), torch.ones(5, 8))
    # The input needs no gradient, so the first layer has only one product in the backward pass.
    assert (counter.forward, counter.backward) == (FIRST + SECOND, FIRST + 2 * SECOND)
    assert counter.recomputed == 0
    assert counter.model_flops == 2 * FIRST + 3 * SECOND


def test_frozen_weights_cost_no_gradient():
    counter = count(TwoLayers(frozen=True), torch.ones(5, 8, requires_grad=True))
    assert counter.backward == FIRST + 2 * SECOND


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputation_is_counted_apart(reentrant):
    model = TwoLayers(checkpointed=True, reentrant=reentrant)
    counter = count(model, torch.ones(5, 8, requires_grad=True))
    assert counter.recomputed == FIRST
    assert counter.model_flops == 3 * (FIRST + SECOND)


class ProductFunction(torch.autograd.Function):
    """A matrix product whose operators see gradients switched off, as in DeepSpeed's ZeRO-3."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.T @ x


class CustomLayer(nn.Linear):
    def forward(self, x):
        return ProductFunction.apply(x, self.weight)


def test_recomputation_of_a_custom_function_is_counted_apart():
    model = TwoLayers(checkpointed=True)
    model.first = CustomLayer(8, 16, bias=False)
    counter = count(model, torch.ones(5, 8, requires_grad=True))
    assert counter.recomputed == FIRST
    assert counter.model_flops == 3 * (FIRST + SECOND)


def test_several_micro_batches_add_up():
    model = TwoLayers()
    with StepFlops(model) as counter:
        for _ in range(3):
            model(torch.ones(5, 8)).sum().backward()
    assert counter.model_flops == 3 * (2 * FIRST + 3 * SECOND)


def test_nothing_is_left_of_the_counter():
    model = TwoLayers()
    counter = count(model, torch.ones(5, 8))
    flops = counter.model_flops
    model(torch.ones(5, 8)).sum().backward()
    assert counter.model_flops == flops
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_peak_is_a_rate_and_draws_no_random_numbers():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    peak = measured_peak(torch.device("cpu"), torch.float32)
    # Any processor lies between 0.1 GFLOP/s and 1 PFLOP/s.
    assert 1e8 < peak < 1e15
    assert torch.equal(torch.get_rng_state(), state)
    assert measured_peak(torch.device("cpu"), torch.float32) == peak
