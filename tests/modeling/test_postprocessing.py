import pytest
import torch

from rose_d2.modeling.postprocessing import instance_inference, referring_inference


class TestInstance:
    def test_threshold_order_masks_and_boxes(self, make_candidates):
        instances = instance_inference(
            make_candidates(
                (0.3, "dog", 0, 0, {(0, 2): 0.8}),
                (0.9, "cat", -1, 1, {(2, 5): 0.6, (5, 6): 0.4}),
                (0.29, "sky", 1, 3, {(0, 6): 0.9}),
                (0.8, "empty", 1, 3, {(0, 6): 0.4}),
            ),
            score_threshold=0.3,
        )
        assert list(instances.pred_category_names) == ["cat", "dog"]
        torch.testing.assert_close(instances.scores, torch.tensor([0.9, 0.3]))
        assert instances.pred_classes.tolist() == [-1, 0]
        assert instances.pred_patches.tolist() == [11, 10]
        assert instances.pred_masks.dtype == torch.bool
        assert instances.pred_masks[0, 0].tolist() == [False, False, True, True, True, False]
        assert instances.pred_boxes.tensor.tolist() == [[2, 0, 5, 2], [0, 0, 2, 2]]
        assert not instances.has("mask_logits")

    def test_no_candidates(self, make_candidates):
        instances = instance_inference(make_candidates(), 0.0)
        assert len(instances) == 0 and instances.pred_masks.shape == (0, 2, 6)


class TestReferring:
    def test_the_best_objectness_answers_whatever_its_score(self, make_candidates):
        out = referring_inference(
            make_candidates((0.01, "a", -1, 0, {(0, 2): 0.9}), (0.02, "b", -1, 0, {(3, 5): 0.51}))
        )
        assert out["ref_seg"][0].tolist() == [False, False, False, True, True, False]
        assert out["ref_patch"] == 11
        assert out["ref_score"] == pytest.approx(0.02)
        assert list(out["instances"].pred_category_names) == ["b"]

    def test_no_candidates_give_an_empty_answer(self, make_candidates):
        out = referring_inference(make_candidates())
        assert not out["ref_seg"].any() and out["ref_seg"].shape == (2, 6)
        assert (out["ref_patch"], out["ref_score"]) == (-1, 0.0)

    def test_several_targets_are_united_after_nms(self, make_candidates):
        rows = [
            (0.6, "a", -1, 0, {(0, 2): 0.9}),
            (0.9, "b", -1, 0, {(4, 6): 0.9}),
            (0.8, "c", -1, 0, {(3, 6): 0.9}),
            (0.1, "d", -1, 0, {(2, 3): 0.9}),
        ]
        options = {"multi_target": True, "nms_threshold": 0.5}
        out = referring_inference(make_candidates(*rows), score_threshold=0.5, **options)
        assert list(out["instances"].pred_category_names) == ["b", "a"]
        assert out["ref_seg"][0].tolist() == [True, True, False, False, True, True]
        assert out["ref_patch"] == 11
        nothing = referring_inference(make_candidates(*rows), score_threshold=0.95, **options)
        assert not nothing["ref_seg"].any() and nothing["ref_patch"] == -1
