import math
from types import SimpleNamespace

import pytest
import torch
import toy_training
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from scripts import run_script
from toy_training import NoDropoutROSE, ToyROSE, seed_all, toy_config, toy_item

from rose_d2.engine.step_engine import TorchStepEngine
from rose_d2.engine.trainer import build_step_engine


def items(*indices):
    return [toy_item(index) for index in indices]


def run_engine(engine, batches):
    engine.data_iterator = iter(batches)
    with EventStorage() as storage:
        for _ in range(len(batches) // engine.accumulation_steps):
            engine.run_step()
        return {name: value for name, (value, _) in storage.latest().items()}


def make_engine(cfg, model_class=NoDropoutROSE):
    seed_all(0)
    return TorchStepEngine(cfg, model_class(cfg))


def gradients(engine):
    return {name: p.grad for name, p in engine.model.named_parameters() if p.requires_grad}


def test_accumulation_equals_the_larger_batch(tmp_path):
    whole = make_engine(toy_config(tmp_path))
    parts = make_engine(toy_config(tmp_path, "SOLVER.ACCUMULATION_STEPS", 10))
    whole_metrics = run_engine(whole, [items(*range(20))])
    part_metrics = run_engine(parts, [items(i, i + 1) for i in range(0, 20, 2)])
    for name, gradient in gradients(whole).items():
        torch.testing.assert_close(gradients(parts)[name], gradient, atol=1e-7, rtol=1e-5)
    for name in ("loss_text", "loss_mask_dice", "total_loss", "grad_norm"):
        assert part_metrics[name] == pytest.approx(whole_metrics[name], rel=1e-5)
    assert part_metrics["total_loss"] == pytest.approx(
        part_metrics["loss_text"] + part_metrics["loss_mask_dice"]
    )


def test_gradients_are_cleared_between_steps(tmp_path):
    cfg = toy_config(tmp_path)
    engine = make_engine(cfg)
    run_engine(engine, [items(0), items(0)])  # the first step has learning rate 0
    twice = gradients(engine)
    once = make_engine(cfg)
    run_engine(once, [items(0)])
    for name, gradient in gradients(once).items():
        torch.testing.assert_close(twice[name], gradient)


def test_clipping_scales_the_norm_over_all_parameters(tmp_path):
    free = make_engine(toy_config(tmp_path))
    free_norm = run_engine(free, [items(0, 1)])["grad_norm"]
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 0.01)
    clipped = make_engine(toy_config(tmp_path, *clip))
    assert run_engine(clipped, [items(0, 1)])["grad_norm"] == pytest.approx(free_norm)
    norm = math.sqrt(sum(g.square().sum().item() for g in gradients(clipped).values()))
    assert norm == pytest.approx(0.01, rel=1e-3)
    for name, gradient in gradients(free).items():
        expected = gradient * 0.01 / free_norm
        torch.testing.assert_close(gradients(clipped)[name], expected, atol=1e-6, rtol=1e-3)


def test_per_parameter_clipping_is_refused(tmp_path):
    clip = ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm")
    with pytest.raises(ValueError, match="full_model"):
        make_engine(toy_config(tmp_path, *clip))


@pytest.fixture(params=[True, False], ids=["instructions", "no-instructions"])
def has_bfloat16(request, monkeypatch):
    """Pretend that the CPU has instructions for bfloat16, or that it has none."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: request.param)
    return request.param


def test_amp_computes_in_bfloat16_where_it_pays_and_keeps_float32_weights(tmp_path, has_bfloat16):
    seen = []
    engine = make_engine(toy_config(tmp_path, "SOLVER.AMP.ENABLED", True))
    engine.model.head.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    run_engine(engine, [items(0, 1)])
    assert seen == [torch.bfloat16 if has_bfloat16 else torch.float32]
    assert all(p.dtype is torch.float32 for p in engine.model.parameters())


def test_what_trains_is_float32_beside_frozen_bfloat16(tiny_cfg, make_input, has_bfloat16, caplog):
    tiny_cfg.MODEL.LMM.DTYPE, tiny_cfg.SOLVER.AMP.ENABLED = "bfloat16", True
    tiny_cfg.MODEL.TRAINABLE.LANGUAGE_MODEL = False
    model = build_model(tiny_cfg)
    engine = TorchStepEngine(tiny_cfg, model)
    assert ("training will be slow" in caplog.text) != has_bfloat16
    run_engine(engine, [[make_input()]])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.dtype is torch.float32, name
    assert model.backbone.model.model.language_model.norm.weight.dtype is torch.bfloat16
    with torch.no_grad(), engine.evaluation():
        assert model.eval()([make_input()])[0]["open_instances"]


def test_weights_in_bfloat16_need_mixed_precision(tmp_path):
    model = NoDropoutROSE(None).to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"\['bfloat16'\] and SOLVER\.AMP is off"):
        TorchStepEngine(toy_config(tmp_path), model)


@pytest.mark.parametrize(("dtype", "hint"), [("float16", "bfloat16"), ("int8", "one of")])
def test_amp_dtype_that_cannot_work_is_refused(tmp_path, dtype, hint):
    cfg = toy_config(tmp_path, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", dtype)
    with pytest.raises(ValueError, match=hint):
        make_engine(cfg)


def test_nan_loss_stops_with_its_terms_and_images_before_the_weights_change(tmp_path):
    engine = make_engine(toy_config(tmp_path, "SOLVER.ACCUMULATION_STEPS", 2))
    before = {name: tensor.clone() for name, tensor in engine.model.state_dict().items()}
    broken = [{**item, "loss_weight": math.nan} for item in items(8, 9)]
    with pytest.raises(FloatingPointError) as error:
        run_engine(engine, [items(0, 1), broken])
    message = str(error.value)
    assert "loss_mask_dice = nan" in message and "loss_text" not in message
    assert "000008.jpg, 000009.jpg" in message and "000001.jpg" not in message
    for name, tensor in engine.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_nan_gradient_of_a_finite_loss_stops(tmp_path):
    engine = make_engine(toy_config(tmp_path))
    engine.model.head.weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(FloatingPointError, match=r"head\.weight.*000003\.jpg"):
        run_engine(engine, [items(3)])


def test_accumulation_below_one_is_refused(tmp_path):
    with pytest.raises(ValueError, match="ACCUMULATION_STEPS is 0"):
        make_engine(toy_config(tmp_path, "SOLVER.ACCUMULATION_STEPS", 0))


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    # In each step one process sees 2 x 4 images, two see 2 x 2 each.
    opts = ["MODEL.META_ARCHITECTURE", "NoDropoutROSE", "SOLVER.MAX_ITER", "3"]
    opts += ["SOLVER.ACCUMULATION_STEPS", "2"]
    toy_training.main(SimpleNamespace(opts=[tmp_path / "one", *opts], resume=False))
    command = ("tests/helpers/toy_training.py", "--num-gpus", 2, tmp_path / "two", *opts)
    run_script(*command, output=tmp_path / "output.txt", fork=True)
    one, two = (
        torch.load(tmp_path / name / "gradients.pt", weights_only=True) for name in ("one", "two")
    )
    for name, gradient in one.items():
        torch.testing.assert_close(two[name], gradient, atol=1e-6, rtol=1e-4)
    assert one["head.weight"].abs().max() > 1e-3


def test_engine_is_chosen_by_name(tmp_path):
    assert isinstance(build_step_engine(toy_config(tmp_path), ToyROSE()), TorchStepEngine)


def test_unknown_engine_lists_the_known_ones(tmp_path):
    with pytest.raises(ValueError, match=r"'warp'.*deepspeed.*torch"):
        build_step_engine(toy_config(tmp_path, "SOLVER.ENGINE", "warp"), ToyROSE())
