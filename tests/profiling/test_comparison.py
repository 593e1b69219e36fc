"""ROSE beside others: both sides do the same."""

import dataclasses

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from rose_d2.profiling.comparison import (
    Comparison,
    as_sam,
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
