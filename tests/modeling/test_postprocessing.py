import pytest
import torch
from detectron2.structures import Instances

from rose_d2.modeling.postprocessing import (
    instance_inference,
    panoptic_inference,
    referring_inference,
    semantic_inference,
)
from rose_d2.structures.category_names import CategoryNames

STUFF_ROLE = 3


def _logit(probability):
    return torch.logit(torch.tensor(probability)).item()


def _candidates(*rows, size=(2, 6)):
    """Rows of (score, name, class id, role, {columns: mask probability}); other columns are 0."""
    logits = torch.full((len(rows), *size), -20.0)
    for index, (*_, columns) in enumerate(rows):
        for (left, right), probability in columns.items():
            logits[index, :, left:right] = _logit(probability)
    return Instances(
        size,
        scores=torch.tensor([row[0] for row in rows]),
        mask_logits=logits,
        pred_category_names=CategoryNames([row[1] for row in rows]),
        name_scores=torch.zeros(len(rows)),
        pred_classes=torch.tensor([row[2] for row in rows], dtype=torch.long),
        pred_roles=torch.tensor([row[3] for row in rows], dtype=torch.long),
        pred_patches=torch.arange(10, 10 + len(rows)),
    )


class TestSemantic:
    candidates = _candidates(
        (0.5, "dog", 0, 0, {(0, 2): 0.8}),
        (0.9, "dog", 0, 0, {(1, 3): 0.6}),
        (0.8, "zebra", -1, 0, {(0, 6): 0.9}),
        (0.4, "sky", 1, 3, {(3, 5): 0.9}),
    )

    def test_channel_is_the_maximum_of_objectness_times_probability(self):
        sem_seg = semantic_inference(self.candidates, 2, 0.05)
        assert sem_seg.shape == (3, 2, 6)
        expected = torch.tensor([0.4, 0.54, 0.54, 0, 0, 0])
        torch.testing.assert_close(sem_seg[0, 0], expected, atol=1e-5, rtol=0)
        assert (sem_seg[2] == 0.05).all()
        assert sem_seg.argmax(dim=0)[1].tolist() == [0, 0, 0, 1, 1, 2]

    def test_sum_adds_the_candidates_of_a_class(self):
        sem_seg = semantic_inference(self.candidates, 2, 0.05, merge="sum")
        expected = torch.tensor([0.4, 0.94, 0.54, 0, 0, 0])
        torch.testing.assert_close(sem_seg[0, 0], expected, atol=1e-5, rtol=0)

    def test_without_candidates_everything_is_no_object(self):
        assert (semantic_inference(_candidates(), 2, 0.05).argmax(dim=0) == 2).all()

    def test_unknown_merge_is_refused(self):
        with pytest.raises(ValueError, match="'mean'.*'max' or 'sum'"):
            semantic_inference(self.candidates, 2, 0.05, merge="mean")


class TestInstance:
    def test_threshold_order_masks_and_boxes(self):
        instances = instance_inference(
            _candidates(
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

    def test_no_candidates(self):
        instances = instance_inference(_candidates(), 0.0)
        assert len(instances) == 0 and instances.pred_masks.shape == (0, 2, 6)


def _panoptic(*rows, is_thing=None, overlap=0.5):
    return panoptic_inference(
        _candidates(*rows),
        score_threshold=0.2,
        overlap_threshold=overlap,
        stuff_role=STUFF_ROLE,
        is_thing=is_thing,
    )


class TestPanoptic:
    def test_pixels_go_to_the_best_candidate_that_covers_them(self):
        seg, info = _panoptic(
            (0.6, "cat", 1, 0, {(2, 6): 0.9}),
            (0.9, "dog", 0, 0, {(0, 3): 0.9, (3, 6): 0.49}),
            (0.1, "low", 0, 0, {(0, 6): 0.99}),
            is_thing=[True, True],
        )
        assert seg.dtype == torch.int32 and seg[0].tolist() == [1, 1, 1, 2, 2, 2]
        assert [(s["id"], s["category_id"], s["category_name"]) for s in info] == [
            (1, 0, "dog"),
            (2, 1, "cat"),
        ]
        assert info[0]["score"] == pytest.approx(0.9) and info[0]["isthing"] is True

    def test_a_segment_that_lost_most_of_its_mask_is_dropped_and_leaves_void(self):
        rows = [(0.9, "dog", 0, 0, {(0, 4): 0.9}), (0.8, "cat", 1, 0, {(2, 5): 0.9})]
        seg, info = _panoptic(*rows, is_thing=[True, True])
        assert [s["category_name"] for s in info] == ["dog"]
        assert seg[0].tolist() == [1, 1, 1, 1, 0, 0]
        seg, _ = _panoptic(*rows, is_thing=[True, True], overlap=0.3)
        assert seg[0].tolist() == [1, 1, 1, 1, 2, 0]

    def test_stuff_of_one_class_merges_before_it_competes(self):
        seg, info = _panoptic(
            (0.5, "grass", 1, 0, {(0, 3): 0.9}),
            (0.9, "lawn", 1, 0, {(1, 6): 0.9}),
            (0.8, "dog", 0, 3, {(5, 6): 0.99}),
            is_thing=[True, False],
        )
        assert [(s["category_name"], s["isthing"]) for s in info] == [("lawn", False)]
        assert info[0]["score"] == pytest.approx(0.9)
        assert seg[0].tolist() == [1] * 6

    def test_two_things_of_one_class_stay_apart(self):
        seg, info = _panoptic(
            (0.9, "dog", 0, 0, {(0, 3): 0.9}), (0.8, "dog", 0, 0, {(3, 6): 0.9}), is_thing=[True]
        )
        assert len(info) == 2 and seg[1].tolist() == [1, 1, 1, 2, 2, 2]

    def test_with_a_vocabulary_unmapped_names_do_not_compete(self):
        seg, info = _panoptic(
            (0.9, "zebra", -1, 0, {(0, 6): 0.9}), (0.5, "dog", 0, 0, {(0, 2): 0.9}), is_thing=[True]
        )
        assert [s["category_name"] for s in info] == ["dog"]
        assert seg[0].tolist() == [1, 1, 0, 0, 0, 0]

    def test_without_a_vocabulary_roles_decide_and_stuff_merges_by_name(self):
        seg, info = _panoptic(
            (0.9, "sky", -1, STUFF_ROLE, {(0, 2): 0.9}),
            (0.8, "dog", -1, 0, {(2, 3): 0.9}),
            (0.7, "sky", -1, STUFF_ROLE, {(3, 5): 0.9}),
            (0.6, "sea", -1, STUFF_ROLE, {(5, 6): 0.9}),
        )
        assert seg[0].tolist() == [1, 1, 2, 1, 1, 3]
        assert [s["isthing"] for s in info] == [False, True, False]
        assert [s["category_id"] for s in info] == [-1, -1, -1]

    def test_no_candidates(self):
        seg, info = _panoptic()
        assert info == [] and (seg == 0).all() and seg.shape == (2, 6)


class TestReferring:
    def test_the_best_objectness_answers_whatever_its_score(self):
        out = referring_inference(
            _candidates((0.01, "a", -1, 0, {(0, 2): 0.9}), (0.02, "b", -1, 0, {(3, 5): 0.51}))
        )
        assert out["ref_seg"][0].tolist() == [False, False, False, True, True, False]
        assert out["ref_patch"] == 11
        assert out["ref_score"] == pytest.approx(0.02)
        assert list(out["instances"].pred_category_names) == ["b"]

    def test_no_candidates_give_an_empty_answer(self):
        out = referring_inference(_candidates())
        assert not out["ref_seg"].any() and out["ref_seg"].shape == (2, 6)
        assert (out["ref_patch"], out["ref_score"]) == (-1, 0.0)

    def test_several_targets_are_united_after_nms(self):
        rows = [
            (0.6, "a", -1, 0, {(0, 2): 0.9}),
            (0.9, "b", -1, 0, {(4, 6): 0.9}),
            (0.8, "c", -1, 0, {(3, 6): 0.9}),
            (0.1, "d", -1, 0, {(2, 3): 0.9}),
        ]
        options = {"multi_target": True, "nms_threshold": 0.5}
        out = referring_inference(_candidates(*rows), score_threshold=0.5, **options)
        assert list(out["instances"].pred_category_names) == ["b", "a"]
        assert out["ref_seg"][0].tolist() == [True, True, False, False, True, True]
        assert out["ref_patch"] == 11
        nothing = referring_inference(_candidates(*rows), score_threshold=0.95, **options)
        assert not nothing["ref_seg"].any() and nothing["ref_patch"] == -1
