"""The GPU that is not there: it takes real code, and refuses what a real one would."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rose_d2.config.read import read_config
from rose_d2.profiling.memory_plan import plan_training
from rose_d2.profiling.pretended_gpu import (
    backward,
    inference,
    pretended_gpu,
    training_step,
)

PARTS = {"SigLIP and projector", "LLM prefill", "heads", "SAM encoder", "SAM decoder"}
PARTS |= {"name decoding"}
INFERENCE_PARTS = PARTS | {"mask NMS", "merging and drawing"}
OTHERS = {"everything else", "backward", "optimizer"}
LARGE = pytest.mark.parametrize("name", ["rose_7b", "rose_0p5b"])


def test_the_cpu_has_values_and_the_gpu_has_none():
    with pretended_gpu():
        there = torch.tensor([1.0, 2.0], device="cuda")
        here = torch.tensor([3, 0])
        assert there.device.type == "cuda" and here.tolist() == [3, 0]
        assert here.nonzero().tolist() == [[0]]
        assert there[here.clamp(max=1)].shape == (2,)
        with pytest.raises(RuntimeError, match="same device"):
            there + here
        with pytest.raises(RuntimeError):  # the CPU would have to wait
            there.sum().item()
        with pytest.raises(RuntimeError):
            there.nonzero()
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert (there[None] @ there[:, None]).dtype == torch.bfloat16


def test_the_backward_pass_gives_what_pytorchs_own_gives():
    """On tensors with values; a layer that is computed again, a shared weight, a broadcast bias."""
    torch.manual_seed(0)
    first, second = nn.Linear(3, 4), nn.Linear(4, 3)

    def loss():
        hidden = checkpoint(first, torch.ones(5, 3), use_reentrant=False).relu()
        return (first(second(hidden)) + second.bias.sum()).square().mean()

    parameters = [*first.parameters(), *second.parameters()]
    expected = torch.autograd.grad(loss(), parameters)
    backward(loss())
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def small(cfg):
    cfg.MODEL.DEVICE = "cuda"
    cfg.SOLVER.AMP.ENABLED = True
    return cfg


@pytest.mark.slow
def test_a_small_step_runs_on_it(tiny_cfg):
    cost = training_step(small(tiny_cfg), 2)
    assert set(cost.flops) == PARTS | OTHERS
    assert all(cost.flops[name] > 0 for name in PARTS | {"backward"})
    assert cost.recomputed_flops == cost.flops["optimizer"] == 0 < cost.peak_memory
    assert all(work.seconds > 0 for work in cost.parts.values())
    tiny_cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = True
    again = training_step(tiny_cfg, 2)
    assert again.recomputed_flops > 0 and again.peak_memory < cost.peak_memory


def test_a_tensor_made_on_the_cpu_in_a_step_is_found(tiny_cfg, monkeypatch):
    from rose_d2.modeling.patch_analyzer import StandardPatchAnalyzer

    propose = StandardPatchAnalyzer.propose

    def broken(self, lmm_output):
        lmm_output.patch_features = lmm_output.patch_features + torch.zeros(1, 1, 32)
        return propose(self, lmm_output)

    monkeypatch.setattr(StandardPatchAnalyzer, "propose", broken)
    with pytest.raises(RuntimeError, match="same device"):
        training_step(small(tiny_cfg), 1)


@pytest.mark.slow
def test_small_inference_runs_on_it(tiny_cfg):
    assert set(inference(small(tiny_cfg), 2).flops) == INFERENCE_PARTS | {"everything else"}


@pytest.mark.slow
@LARGE
def test_a_step_of_true_size(name):
    """Shapes, types and devices of forward, recomputation, backward and AdamW."""
    cfg = read_config(f"configs/{name}.yaml")
    cost = training_step(cfg, 2)
    # 2304 patches and about 90 words, twice the weights each, in both images; attention beside.
    weights = {"rose_7b": 6.5e9, "rose_0p5b": 0.36e9}[name]
    assert cost.flops["LLM prefill"] > 2 * 2 * 2350 * weights
    assert (
        0.6
        < cost.recomputed_flops
        / (
            cost.flops["LLM prefill"]
            + cost.flops["SigLIP and projector"]
            + cost.flops["name decoding"]
        )
        < 1.1
    )
    planned = plan_training(cfg, cfg.SOLVER.IMS_PER_BATCH // 2, 10)
    assert cost.peak_memory / planned.rows["activations"] == pytest.approx(1, abs=0.6)


@pytest.mark.slow
@LARGE
def test_inference_of_true_size(name):
    flops = inference(read_config(f"configs/{name}.yaml"), 1).flops
    assert set(flops) == INFERENCE_PARTS | {"everything else"}
    assert all(flops[part] for part in INFERENCE_PARTS)
