"""Ten weights that train and thirty that do not, on four GPUs."""

import json

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rose_d2.profiling.memory_model import AllKept, LiveBytes, StepState, step_state


@pytest.fixture
def model():
    layers = nn.ModuleList([nn.Linear(10, 1, bias=False), nn.Linear(30, 1, bias=False)])
    layers[1].requires_grad_(False)
    return layers


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    tiny_cfg.MODEL.DEVICE = "cuda"
    tiny_cfg.SOLVER.ENGINE = "deepspeed"
    tiny_cfg.SOLVER.AMP.ENABLED = True
    tiny_cfg.SOLVER.IMS_PER_BATCH = 8
    settings = tmp_path / "deepspeed.json"
    settings.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 7}}))
    tiny_cfg.SOLVER.DEEPSPEED.CONFIG_FILE = str(settings)
    return tiny_cfg


def test_torch_divides_nothing(cfg, model):
    cfg.SOLVER.ENGINE = "torch"
    assert step_state(cfg, model, 4) == StepState(160, 40, 80, 40, 40, "made")
    cfg.SOLVER.ACCUMULATION_STEPS = 2
    cfg.MODEL.DEVICE = "cpu"
    assert step_state(cfg, model, 1) == StepState(160, 40, 80, 0, 80, "moved")


def test_stage_1_divides_the_optimizer(cfg, model):
    cfg.SOLVER.DEEPSPEED.ZERO_STAGE = 1
    # 40 weights of two bytes; ten gradients in float32 and bfloat16; 3 of 10 weights, 12 bytes.
    assert step_state(cfg, model, 4) == StepState(80, 60, 36, 14, 0, "made")


def test_stage_2_divides_the_gradients(cfg, model):
    cfg.SOLVER.DEEPSPEED.ZERO_STAGE = 2
    # One bucket is filled while another is sent.
    assert step_state(cfg, model, 4) == StepState(80, 12, 36, 28, 12, "moved")


def test_stage_3_divides_the_weights(cfg, model):
    cfg.SOLVER.DEEPSPEED.ZERO_STAGE = 3
    # All 40 weights are whole at once, because fewer than DeepSpeed's limit.
    assert step_state(cfg, model, 4) == StepState(20, 12, 36, 14 + 80, 12, "moved")
    assert step_state(cfg, model, 1).communication == 14


def test_full_precision_takes_four_bytes(cfg, model):
    cfg.SOLVER.AMP.ENABLED = False
    assert step_state(cfg, model, 4) == StepState(160, 12, 36, 56, 12, "moved")


def test_an_unknown_engine_is_refused(cfg, model):
    cfg.SOLVER.ENGINE = "jax"
    with pytest.raises(ValueError, match="SOLVER.ENGINE is 'jax'; memory can be planned for"):
        step_state(cfg, model, 4)


def test_without_values_all_is_kept():
    with FakeTensorMode(allow_non_fake_inputs=True):
        unknown = torch.empty(3, 4)
    rows = torch.arange(3)
    with AllKept():
        assert torch.argsort(unknown[:, 0], descending=True).tolist() == [0, 1, 2]
        assert rows[unknown[:, 0] > 0.5].tolist() == [0, 1, 2]
        assert (unknown > 0.5).any()
        assert unknown.tolist() == [[0.0] * 4] * 3
        # What has values is obeyed.
        assert unknown[torch.tensor([True, False, True])].shape == (2, 4)
        assert rows[rows > 0].tolist() == [1, 2]
        assert not (rows > 5).any()


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
