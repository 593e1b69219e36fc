import pytest
import torch

from rose_d2.modeling.category_decoder import CategoryDecoder
from rose_d2.profiling.inputs import DATASET, synthetic_inputs, without_downloads
from rose_d2.profiling.steps import (
    BACKBONE_PARTS,
    PartTimes,
    StepCost,
    held_bytes,
    measure_inference,
    measure_peak_memory,
    measure_training,
    report_step,
)

CPU = torch.device("cpu")

CANDIDATE_PARTS = ("heads", "SAM decoder", "name decoding")


@pytest.mark.slow
def test_the_parts_of_a_training_step_make_up_its_time(tiny_cfg):
    tiny_cfg.MODEL.LMM.GRADIENT_CHECKPOINTING = True
    tiny_cfg.SOLVER.IMS_PER_BATCH, tiny_cfg.SOLVER.ACCUMULATION_STEPS = 1, 2
    cost = measure_training(tiny_cfg, 1)
    measured = {*BACKBONE_PARTS, *CANDIDATE_PARTS, "backward", "optimizer", "everything else"}
    assert set(cost.parts) == measured
    assert min(cost.parts.values()) > 0
    assert sum(cost.parts.values()) == pytest.approx(cost.seconds)
    assert cost.num_images == 2
    assert 0 < cost.recomputed_flops < cost.flops
    report = report_step("training", tiny_cfg, cost)
    assert report.startswith("training, on ") and "name decoding" in report


def test_all_candidates_are_named_at_inference(tiny_cfg, monkeypatch):
    tiny_cfg.TEST.TOP_K = 5
    named = []
    generate = CategoryDecoder.generate

    def count(self, embeddings, trie=None):
        named.append(len(embeddings))
        return generate(self, embeddings, trie)

    monkeypatch.setattr(CategoryDecoder, "generate", count)
    cost = measure_inference(tiny_cfg, 2, 1)
    assert set(named) == {10}  # of both images, together
    after = {"mask NMS", "merging and drawing", "everything else"}
    assert set(cost.parts) == {*BACKBONE_PARTS, *CANDIDATE_PARTS, *after}
    assert cost.images_per_second == pytest.approx(2 / cost.seconds)


def test_a_part_within_another_counts_for_that_one(tiny_model, tiny_cfg):
    decoder = tiny_model.inference.category_decoder
    with PartTimes(tiny_model) as times, torch.no_grad():
        decoder.generate(torch.zeros(2, tiny_model.backbone.hidden_size))
        assert set(times.seconds()) == {"name decoding"}
        tiny_model.perceive(synthetic_inputs(tiny_cfg, 1, training=False))
        assert set(times.seconds()) == {*BACKBONE_PARTS, "heads"}
    assert "generate" not in vars(decoder)


def test_the_allocator_is_asked_for_the_peak():
    weight = torch.zeros(250)

    def work():
        made = torch.zeros(100_000)
        del made
        torch.zeros(10_000)

    assert held_bytes(weight, weight[:3]) == 1000
    assert measure_peak_memory(CPU, work, 1000) == pytest.approx(401_000, rel=0.01)


def test_synthetic_inputs_look_like_the_mapper_s(tiny_cfg):
    inputs = synthetic_inputs(tiny_cfg, 2, training=True)
    assert [item["dataset_name"] for item in inputs] == [DATASET] * 2
    assert inputs[0]["image"].shape == (3, 84, 84)
    assert inputs[0]["sam_image"].shape == (3, 48, 64)
    assert inputs[0]["instances"].gt_masks.tensor.flatten(1).any(dim=1).all()


def test_nothing_is_read(tiny_cfg):
    tiny_cfg.MODEL.LMM.PRETRAINED = "somewhere"
    tiny_cfg.MODEL.MASK_HEAD.SAM_CHECKPOINT = "missing.pth"
    changed = without_downloads(tiny_cfg)
    assert changed.MODEL.LMM.PRETRAINED == changed.MODEL.MASK_HEAD.SAM_CHECKPOINT == ""
    assert tiny_cfg.MODEL.LMM.PRETRAINED == "somewhere"


def test_memory_of_deepspeed_is_not_measured_on_a_cpu(tiny_cfg):
    tiny_cfg.SOLVER.ENGINE = "deepspeed"
    with pytest.raises(ValueError, match="'deepspeed', whose memory cannot be measured"):
        measure_training(tiny_cfg, 1)


def test_what_is_computed_again_is_achieved_but_not_needed():
    cost = StepCost(2.0, 4, {}, 0, flops=30, recomputed_flops=10)
    assert cost.images_per_second == 2
    assert cost.flops_per_second == 20
