import dataclasses

import pytest

from rose_d2.modeling.inference import InferenceSettings


@pytest.fixture
def settings(tiny_cfg):
    return InferenceSettings.from_config(tiny_cfg)


def test_settings_are_the_test_keys(tiny_cfg):
    tiny_cfg.TEST.NMS.LONGEST_SIDE = 99
    tiny_cfg.TEST.VOCABULARY.LEVEL = "exact"
    settings = InferenceSettings.from_config(tiny_cfg)
    assert (settings.top_k, settings.score_thresh, settings.nms_thresh) == (100, 0.05, 0.6)
    assert (settings.nms_longest_side, settings.headline_level) == (99, "exact")


@pytest.mark.parametrize(
    ("task", "changes", "floor"),
    [
        ("instance", {"score_thresh": 0.3, "non_object_score": 0.1}, 0.3),
        ("semantic", {"score_thresh": 0.3, "non_object_score": 0.1}, 0.1),
        ("semantic", {"score_thresh": 0.05, "non_object_score": 0.1}, 0.05),
        # Many candidates below the score of "no object" may together exceed it.
        ("semantic", {"score_thresh": 0.3, "semantic_merge": "sum"}, 0.0),
        ("panoptic", {"score_thresh": 0.3, "panoptic_score_thresh": 0.2}, 0.2),
        ("panoptic", {"score_thresh": 0.05, "panoptic_score_thresh": 0.5}, 0.05),
        ("referring", {"score_thresh": 0.3, "non_object_score": 0.1}, 0.3),
    ],
)
def test_candidates_without_a_trace_are_left_out(settings, task, changes, floor):
    assert dataclasses.replace(settings, **changes).objectness_floor(task) == floor
