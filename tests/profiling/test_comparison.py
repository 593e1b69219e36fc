"""ROSE beside others: both sides do the same."""

import dataclasses

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from segment_anything import SamPredictor

from rose_d2.data.build import load_dataset_dicts
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.evaluation.semantic import RoseSemSegEvaluator
from rose_d2.profiling.comparison import (
    Comparison,
    MadeUpAnswers,
    as_sam,
    compare_evaluators,
    compare_mappers,
    compare_with_generate,
    compare_with_stack,
    generate_names,
)


def test_a_comparison_is_told_by_its_pairs():
    comparison = Comparison("names", "ours", "theirs", [1.0, 2.0, 4.0], [3.0, 4.0, 4.0], 5, 50)
    assert comparison.ratios == [3.0, 2.0, 1.0]
    report = comparison.report()
    assert "2000.0 ms  ours, 5 passes" in report and "4000.0 ms  theirs, 50 passes" in report
    assert "2.0 times as long (1.0 to 3.0 in 3 pairs)" in report
    uncounted = dataclasses.replace(comparison, our_passes=None, their_passes=None)
    assert "passes" not in uncounted.report()


@pytest.mark.slow
def test_a_stack_takes_passes_for_every_object_and_patches_do_not(tiny_cfg):
    few, many = (compare_with_stack(tiny_cfg, number, 1) for number in (2, 6))
    # The prompt, the shared prefix, what stands behind it, and the tokens of the longest name.
    assert few.our_passes <= many.our_passes <= 2 + 16
    assert many.their_passes >= 3 * few.their_passes - 3
    assert len(many.our_seconds) == len(many.their_seconds) == 1


def test_names_are_those_of_transformers(tiny_model):
    model = tiny_model.eval()
    compared = compare_with_generate(model, 5, 1)
    assert min(compared.our_seconds + compared.their_seconds) > 0
    decoder = model.inference.category_decoder
    embeddings = torch.randn(3, model.backbone.hidden_size)
    assert generate_names(decoder, embeddings) == list(decoder.generate(embeddings).names)


def test_the_mask_heads_parts_are_segment_anythings_model(tiny_model):
    predictor = SamPredictor(as_sam(tiny_model.mask_head))
    predictor.set_image(np.zeros((48, 64, 3), np.uint8))
    masks, _, _ = predictor.predict(np.array([[30, 20]]), np.array([1]))
    assert masks.shape == (3, 48, 64)


@pytest.mark.parametrize(
    ("kind", "key"), [("coco", "AP"), ("coco_panoptic_seg", "PQ"), ("sem_seg", "mIoU")]
)
def test_evaluators_give_the_numbers_of_detectron2s(scenes, kind, key):
    compared = compare_evaluators(scenes.names[kind], 2)
    value = float(compared.title.split(", ")[1].removesuffix(" by both"))
    assert compared.title.startswith(f"{key} of 2 images") and 0 < value < 100
    assert len(compared.our_seconds) == len(compared.their_seconds) == 2
    assert min(compared.our_seconds + compared.their_seconds) > 0


def test_numbers_that_differ_are_no_comparison(scenes, monkeypatch):
    evaluate = RoseSemSegEvaluator.evaluate

    def wrong(self):
        results = evaluate(self)
        results["sem_seg"]["mIoU"] += 1e-3
        return results

    monkeypatch.setattr(RoseSemSegEvaluator, "evaluate", wrong)
    with pytest.raises(ValueError, match="^mIoU of .* by detectron2"):
        compare_evaluators(scenes.names["sem_seg"], 1)
    with pytest.raises(ValueError, match="evaluator type refcoco"):
        compare_evaluators(scenes.names["refcoco"], 1)


def test_made_up_answers_are_the_same_again(scenes):
    (record, *_) = load_dataset_dicts(scenes.names["coco"], filter_empty=False)
    first, again = (MadeUpAnswers(scenes.names["coco"], "coco")(record) for _ in range(2))
    truth = load_objects(record)
    assert len(first["instances"]) == 2 * len(truth)
    assert torch.equal(first["instances"].scores, again["instances"].scores)
    moved = first["instances"].pred_masks[: len(truth)]
    assert torch.equal(moved, truth.masks.roll((2, 2), (1, 2)))


def test_mappers_make_samples_of_the_same_dicts(scenes, tiny_cfg, monkeypatch):
    made = []
    theirs = DatasetMapper.__call__

    def recorded(self, dataset_dict):
        made.append(theirs(self, dataset_dict))
        return made[-1]

    monkeypatch.setattr(DatasetMapper, "__call__", recorded)
    compared = compare_mappers(tiny_cfg, scenes.names["coco"], 2, 3)
    assert len(made) == 1 + 2 * 3 and len(compared.our_seconds) == 2
    longest = tiny_cfg.MODEL.MASK_HEAD.IMAGE_SIZE
    assert {max(sample["image"].shape[1:]) for sample in made} == {longest}
    assert all(sample["instances"].gt_masks.tensor.any() for sample in made)
