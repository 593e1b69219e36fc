import math

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from rose_d2.engine.metrics import TaskLossHook, sum_by_task, task_metrics


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


class TwoTaskModel(nn.Module):
    """Its loss is the value each item comes with."""

    def forward(self, batched_inputs):
        values = torch.tensor([item["value"] for item in batched_inputs])
        self.image_losses = {"loss_text": values}
        return {"loss_text": values.mean()}


class Trainer:
    iter, start_iter, max_iter = 0, 0, 5


def test_hook_averages_over_its_period_and_leaves_out_evaluation():
    model = TwoTaskModel()
    model.image_losses = {}
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
    assert not model._forward_hooks
    # detectron2's progress line would show it.
    assert not any("loss" in name for name in hook.trainer.storage.latest())


def test_a_model_without_losses_by_image_has_no_such_metrics():
    hook = TaskLossHook(nn.Linear(1, 1), period=1)
    hook.trainer = Trainer()
    with EventStorage() as hook.trainer.storage:
        hook.before_train()
        hook.after_step()
        hook.after_train()
        assert hook.trainer.storage.latest() == {}
