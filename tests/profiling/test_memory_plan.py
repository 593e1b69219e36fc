"""The plan against the allocator, on configs small enough to run."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from rose_d2.engine.metrics import StepFlops
from rose_d2.profiling import memory_model
from rose_d2.profiling.inputs import FEW_OBJECTS, synthetic_inputs
from rose_d2.profiling.memory_model import AllKept, build_without_memory
from rose_d2.profiling.memory_plan import MemoryPlan, plan_inference, plan_training
from rose_d2.profiling.steps import measure_inference, measure_training_peak


@pytest.fixture
def recipe_cfg(tiny_cfg):
    """What the 7B recipe trains and recomputes, in small, with tied embeddings as in 0.5B."""
    tiny_cfg.MODEL.LORA.ENABLED = True
    tiny_cfg.MODEL.LORA.DROPOUT = 0.0  # else one of two models draws random numbers and one not
    tiny_cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = True
    tiny_cfg.MODEL.LMM.TEXT_CONFIG.tie_word_embeddings = True
    trainable = tiny_cfg.MODEL.TRAINABLE
    trainable.VISION_TOWER = trainable.PROJECTOR = trainable.LANGUAGE_MODEL = False
    trainable.SAM_IMAGE_ENCODER = trainable.SAM_PROMPT_ENCODER = False
    tiny_cfg.SOLVER.ACCUMULATION_STEPS = 2
    tiny_cfg.SOLVER.IMS_PER_BATCH = 2
    return tiny_cfg


@pytest.mark.slow
def test_training_takes_what_was_planned(tiny_cfg):
    tiny_cfg.SOLVER.IMS_PER_BATCH = 2
    measured = measure_training_peak(tiny_cfg)
    assert plan_training(tiny_cfg, 1, FEW_OBJECTS).peak == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_trained_weights_in_float32_take_what_was_planned(recipe_cfg):
    recipe_cfg.MODEL.LMM.DTYPE, recipe_cfg.SOLVER.AMP.ENABLED = "bfloat16", True
    recipe_cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = False
    measured = measure_training_peak(recipe_cfg)
    assert plan_training(recipe_cfg, 1, FEW_OBJECTS).peak == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_inference_takes_what_was_planned(tiny_cfg):
    tiny_cfg.MODEL.LMM.DTYPE = "bfloat16"
    measured = measure_inference(tiny_cfg, 2, num_steps=1).peak_memory
    in_bf16, *_ = plan_inference(tiny_cfg, 2)
    assert in_bf16.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
def test_inference_is_planned_with_all_candidates_kept(tiny_cfg):
    """Of the images before, no mask of full size is kept, 480 x 640; of this one a few are."""
    tiny_cfg.TEST.TOP_K = 7
    (one, *_), (two, *_) = plan_inference(tiny_cfg, 1), plan_inference(tiny_cfg, 2)
    assert one.rows["merging"] > 4 * 480 * 640
    assert two.rows["merging"] - one.rows["merging"] < 480 * 640


@pytest.mark.slow
def test_checkpointing_saves_activations_only(recipe_cfg):
    plan = plan_training(recipe_cfg, 1)
    assert "with gradient checkpointing" in plan.title
    recipe_cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = False
    whole = plan_training(recipe_cfg, 1)
    assert whole.rows["activations"] > plan.rows["activations"]
    assert whole.rows["weights"] == plan.rows["weights"]


@pytest.mark.slow
def test_accumulating_takes_what_was_planned(recipe_cfg):
    measured = measure_training_peak(recipe_cfg)
    assert plan_training(recipe_cfg, 1, FEW_OBJECTS).peak == pytest.approx(measured, rel=0.15)


def test_quantised_linear_layers_take_their_bits(tiny_cfg):
    # 16, 8 and 4.5 bits.
    bf16, eight, four = (plan.rows["weights"] for plan in plan_inference(tiny_cfg, 1))
    assert (bf16 - eight) * (2 - 0.5625) == pytest.approx(bf16 - four)
    tiny_cfg.MODEL.LMM.QUANTIZE = "nf4"
    (asked,) = plan_inference(tiny_cfg, 1)
    assert asked.title.startswith("inference in nf4") and asked.rows["weights"] == four


def test_a_model_without_memory_runs_like_the_real_one(recipe_cfg):
    inputs = synthetic_inputs(recipe_cfg, 1, training=True)
    model = build_without_memory(recipe_cfg).train()
    real = build_model(recipe_cfg).train()
    assert model.backbone.is_tied
    assert {n: p.shape for n, p in model.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
    with EventStorage():
        torch.manual_seed(0)
        with AllKept(), StepFlops(model) as planned:
            model(inputs)
        torch.manual_seed(0)
        with StepFlops(real) as counted:
            real(inputs)
    assert planned.forward == counted.forward > 0
    assert all(type(p.data) is not torch.Tensor for p in model.parameters())


def test_the_largest_load_is_a_scene_full_of_objects(tiny_cfg, monkeypatch):
    made = []

    def inputs(*args, **options):
        made.append(synthetic_inputs(*args, **options))
        return made[-1]

    monkeypatch.setattr(memory_model, "synthetic_inputs", inputs)
    tiny_cfg.SOLVER.IMS_PER_BATCH = 1
    assert "of 200 objects per GPU" in plan_training(tiny_cfg, 1).title
    assert [len(item["instances"]) for item in made[0]] == [200]


def test_images_must_be_shared_evenly(tiny_cfg):
    tiny_cfg.SOLVER.IMS_PER_BATCH = 3
    with pytest.raises(ValueError, match="IMS_PER_BATCH is 3, which 2 GPUs cannot share"):
        plan_training(tiny_cfg, 2)


def test_the_fullest_moment_is_the_peak():
    assert MemoryPlan("", {}, {"a": 3, "b": 5, "c": 4}).peak == 5
