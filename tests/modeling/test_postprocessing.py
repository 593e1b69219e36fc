import pytest
import torch

from rose_d2.modeling.postprocessing import (
    SemanticScores,
    best_first,
    boxed,
    classes_at,
    instance_inference,
    panoptic_inference,
    panoptic_levels,
    referring_inference,
    semantic_inference,
    semantic_labels,
)

LEVELS = ("exact", "normalised", "synonym", "hyponym", "hypernym")
STUFF_ROLE = 3
OPTIONS = {"score_threshold": 0.2, "overlap_threshold": 0.5, "stuff_role": STUFF_ROLE}


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


def test_a_class_counts_from_its_own_level_on(make_candidates):
    everywhere = {(0, 4): 0.9}
    candidates = make_candidates(
        (0.9, "lawn", 2, 0, everywhere),
        (0.8, "dog", 0, 0, everywhere),
        (0.7, "poodle", 0, 0, everywhere),
        (0.6, "blob", -1, 0, everywhere),
        (0.5, "Cats", 1, 0, everywhere),
        rules=["synonym", "exact", "hyponym", "unmapped", "normalised"],
    )
    expected = {
        "exact": [-1, 0, -1, -1, -1],
        "normalised": [-1, 0, -1, -1, 1],
        "synonym": [2, 0, -1, -1, 1],
        "wordnet synonym": [2, 0, -1, -1, 1],
        "hyponym": [2, 0, 0, -1, 1],
        "similarity": [2, 0, 0, -1, 1],
    }
    assert {level: classes_at(candidates, level).tolist() for level in expected} == expected


def test_best_first_is_stable_and_leaves_out():
    scores = torch.tensor([0.2, 0.7, 0.7, 0.9])
    assert best_first(scores).tolist() == [3, 1, 2, 0]
    assert best_first(scores, scores < 0.8).tolist() == [1, 2, 0]


def test_boxes_are_tight_around_logits_above_zero(make_candidates):
    candidates = make_candidates((0.5, "a", 0, 0, {(0, 1): 0.51, (1, 2): 0.5}), size=(1, 3))
    instances = boxed(candidates)
    assert instances.pred_masks.tensor.tolist() == [[[True, False, False]]]
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 1, 1]]
    assert not candidates.has("pred_boxes")


class TestScores:
    @pytest.fixture
    def make_scores(self, make_candidates):
        """Scores of rows (class id, score of each of the columns); every objectness is 1."""

        def make(*rows, num_classes=3, non_object=0.05, merge="max"):
            width = len(rows[0]) - 1
            candidates = make_candidates(
                *(
                    (1.0, "a", row[0], 0, {(x, x + 1): row[x + 1] for x in range(width)})
                    for row in rows
                ),
                size=(1, width),
            )
            classes = candidates.pred_classes
            return SemanticScores(candidates, classes, num_classes, non_object, merge)

        return make

    def test_they_are_objectness_times_probability(self, make_candidates):
        candidates = make_candidates((0.5, "a", 0, 0, {(0, 1): 0.8, (1, 2): 0.4}), size=(1, 3))
        scores = SemanticScores(candidates, candidates.pred_classes, 1, 0.05)
        expected = torch.tensor([[[0.4, 0.2, 0.0]]])
        torch.testing.assert_close(scores.tensor, expected, atol=1e-6, rtol=0)

    def test_maximum_of_the_candidates_of_a_class(self, make_scores):
        scores = make_scores(
            (0, 0.4, 0.4, 0.0, 0.0),
            (0, 0.0, 0.5, 0.3, 0.0),
            (-1, 1.0, 1.0, 1.0, 1.0),
            (1, 0.0, 0.0, 0.35, 0.0),
            num_classes=2,
        )
        expected = torch.tensor([[[0.4, 0.5, 0.3, 0.0]], [[0.0, 0.0, 0.35, 0.0]]])
        torch.testing.assert_close(scores.tensor, expected)
        assert scores.shape == (2, 1, 4)
        assert scores.labels().dtype == torch.int16
        assert scores.labels().tolist() == [[0, 0, 1, 2]]

    def test_sum_of_the_candidates_of_a_class(self, make_scores):
        scores = make_scores((2, 0.25, 0.5), (1, 0.5, 0.25), (2, 0.5, 0.0), merge="sum")
        torch.testing.assert_close(scores.tensor[2], torch.tensor([[0.75, 0.5]]))
        assert scores.labels().tolist() == [[2, 2]]

    @pytest.mark.parametrize("merge", ["max", "sum"])
    def test_ties_go_to_the_smaller_class_and_before_no_object(self, make_scores, merge):
        rows = (2, 0.5, 0.75, 0.0), (0, 0.25, 0.75, 0.25), (1, 0.0, 0.0, 0.5)
        scores = make_scores(*rows, non_object=0.5, merge=merge)
        assert scores.labels().tolist() == [[2, 0, 1]]

    @pytest.mark.parametrize("non_object", [0.0, 0.3])
    @pytest.mark.parametrize("merge", ["max", "sum"])
    def test_labels_are_the_best_channel(self, make_scores, merge, non_object):
        generator = torch.Generator().manual_seed(0)
        # Few values, so that scores often tie.
        rows = [
            (class_id, *(torch.randint(0, 4, (500,), generator=generator) / 5).tolist())
            for class_id in (31, 4, 4, 17, 0, 31)
        ]
        scores = make_scores(*rows, num_classes=40, non_object=non_object, merge=merge)
        best, classes = scores.tensor.max(dim=0)
        expected = torch.where(best >= non_object, classes, 40)
        assert (expected == 40).any() == (non_object > 0)
        assert torch.equal(scores.labels().long(), expected)
        assert torch.equal(semantic_labels(scores.tensor, non_object), scores.labels())

    def test_unknown_merge_is_refused(self, make_scores):
        with pytest.raises(ValueError, match="'mean'.*'max' or 'sum'"):
            make_scores((0, 0.5), merge="mean")


class TestSemanticLevels:
    @pytest.fixture
    def outputs(self, make_candidates):
        """A poodle over a dog over grass, on 2 x 4 pixels; dog 0, cat 1, grass 2."""
        candidates = make_candidates(
            (0.9, "poodle", 0, 0, {(0, 2): 0.9}),
            (0.8, "grass", 2, 3, {(0, 4): 0.75}),
            (0.5, "Cats", 1, 0, {(1, 3): 0.9}),
            (1.0, "blob", -1, 0, {(0, 4): 0.9}),
            size=(2, 4),
            rules=["hyponym", "exact", "synonym", "unmapped"],
        )
        return semantic_inference(candidates, LEVELS, "synonym", 3, 0.05)

    def test_a_pixel_goes_to_the_next_candidate_where_the_best_does_not_count_yet(self, outputs):
        labels = {level: out["sem_seg_labels"] for level, out in outputs["levels"].items()}
        assert list(labels) == list(LEVELS)
        assert all(
            label.shape == (2, 4) and label.dtype == torch.int16 for label in labels.values()
        )
        # grass 0.6 everywhere; from "synonym" on a cat of 0.45, from "hyponym" on a dog of 0.81
        assert labels["exact"][0].tolist() == [2, 2, 2, 2]
        assert labels["synonym"][1].tolist() == [2, 2, 2, 2]
        assert labels["hyponym"][0].tolist() == [0, 0, 2, 2]

    def test_levels_that_map_nothing_further_are_one_object(self, outputs):
        levels = outputs["levels"]
        assert levels["normalised"] is levels["exact"]
        assert levels["synonym"] is not levels["normalised"]
        assert levels["hyponym"] is not levels["synonym"]
        assert levels["hypernym"] is levels["hyponym"]

    def test_scores_are_those_of_the_headline_level(self, outputs):
        sem_seg = outputs["sem_seg"]
        assert sem_seg.shape == (3, 2, 4)
        assert (sem_seg[0] == 0).all()
        expected = torch.tensor([0.0, 0.45, 0.45, 0.0])
        torch.testing.assert_close(sem_seg[1, 0], expected, atol=1e-6, rtol=0)
        assert outputs["non_object_score"] == 0.05
        labels = outputs["levels"]["synonym"]["sem_seg_labels"]
        assert labels is outputs["sem_seg_labels"]
        assert torch.equal(labels.long(), sem_seg.argmax(dim=0))

    def test_without_candidates_everything_is_no_object(self, make_candidates):
        outputs = semantic_inference(make_candidates(rules=[]), LEVELS, "exact", 3, 0.05)
        assert not outputs["sem_seg"].any() and (outputs["sem_seg_labels"] == 3).all()
        assert (outputs["levels"]["hypernym"]["sem_seg_labels"] == 3).all()
        assert len({id(level) for level in outputs["levels"].values()}) == 1


def _panoptic(make_candidates, *rows, is_thing=None, overlap=0.5):
    options = OPTIONS | {"overlap_threshold": overlap}
    return panoptic_inference(make_candidates(*rows), is_thing=is_thing, **options)


class TestPanoptic:
    def test_pixels_go_to_the_best_candidate_that_covers_them(self, make_candidates):
        seg, info = _panoptic(
            make_candidates,
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

    def test_a_segment_that_lost_most_of_its_mask_is_dropped_and_leaves_void(self, make_candidates):
        rows = [(0.9, "dog", 0, 0, {(0, 4): 0.9}), (0.8, "cat", 1, 0, {(2, 5): 0.9})]
        seg, info = _panoptic(make_candidates, *rows, is_thing=[True, True])
        assert [s["category_name"] for s in info] == ["dog"]
        assert seg[0].tolist() == [1, 1, 1, 1, 0, 0]
        seg, _ = _panoptic(make_candidates, *rows, is_thing=[True, True], overlap=0.3)
        assert seg[0].tolist() == [1, 1, 1, 1, 2, 0]

    def test_stuff_of_one_class_merges_before_it_competes(self, make_candidates):
        seg, info = _panoptic(
            make_candidates,
            (0.5, "grass", 1, 0, {(0, 3): 0.9}),
            (0.9, "lawn", 1, 0, {(1, 6): 0.9}),
            (0.8, "dog", 0, 3, {(5, 6): 0.99}),
            is_thing=[True, False],
        )
        assert [(s["category_name"], s["isthing"]) for s in info] == [("lawn", False)]
        assert info[0]["score"] == pytest.approx(0.9)
        assert seg[0].tolist() == [1] * 6

    def test_two_things_of_one_class_stay_apart(self, make_candidates):
        seg, info = _panoptic(
            make_candidates,
            (0.9, "dog", 0, 0, {(0, 3): 0.9}),
            (0.8, "dog", 0, 0, {(3, 6): 0.9}),
            is_thing=[True],
        )
        assert len(info) == 2 and seg[1].tolist() == [1, 1, 1, 2, 2, 2]

    def test_with_a_vocabulary_unmapped_names_do_not_compete(self, make_candidates):
        seg, info = _panoptic(
            make_candidates,
            (0.9, "zebra", -1, 0, {(0, 6): 0.9}),
            (0.5, "dog", 0, 0, {(0, 2): 0.9}),
            is_thing=[True],
        )
        assert [s["category_name"] for s in info] == ["dog"]
        assert seg[0].tolist() == [1, 1, 0, 0, 0, 0]

    def test_without_a_vocabulary_roles_decide_and_stuff_merges_by_name(self, make_candidates):
        seg, info = _panoptic(
            make_candidates,
            (0.9, "sky", -1, STUFF_ROLE, {(0, 2): 0.9}),
            (0.8, "dog", -1, 0, {(2, 3): 0.9}),
            (0.7, "sky", -1, STUFF_ROLE, {(3, 5): 0.9}),
            (0.6, "sea", -1, STUFF_ROLE, {(5, 6): 0.9}),
        )
        assert seg[0].tolist() == [1, 1, 2, 1, 1, 3]
        assert [s["isthing"] for s in info] == [False, True, False]
        assert [s["category_id"] for s in info] == [-1, -1, -1]

    def test_no_candidates(self, make_candidates):
        seg, info = _panoptic(make_candidates)
        assert info == [] and (seg == 0).all() and seg.shape == (2, 6)


class TestPanopticLevels:
    """A poodle on grass that a cat also claims: dog 0, cat 1 and grass 2, on 2 x 4 pixels."""

    levels = ("exact", "normalised", "synonym", "hyponym", "hypernym", "part")
    rows = (
        (0.9, "poodle", 0, 0, {(0, 2): 0.9}),
        (0.8, "grass", 2, 3, {(0, 4): 0.75}),
        (0.7, "kitten", 1, 0, {(0, 2): 0.95, (2, 3): 0.6}),
        (0.1, "ear", 1, 0, {(3, 4): 0.99}),
        (1.0, "blob", -1, 0, {(0, 4): 0.9}),
    )
    rules = ("hyponym", "normalised", "hypernym", "part", "unmapped")

    @pytest.fixture
    def outputs(self, make_candidates):
        candidates = make_candidates(*self.rows, size=(2, 4), rules=self.rules)
        return panoptic_levels(candidates, self.levels, is_thing=[True, True, False], **OPTIONS)

    def test_a_pixel_goes_to_the_next_candidate_where_the_best_does_not_count_yet(self, outputs):
        maps = {level: out["panoptic_seg"][0] for level, out in outputs.items()}
        infos = {level: out["panoptic_seg"][1] for level, out in outputs.items()}
        assert list(outputs) == list(self.levels)
        assert maps["exact"].tolist() == [[0] * 4] * 2 and infos["exact"] == []
        assert maps["synonym"][0].tolist() == [1, 1, 1, 1]
        assert [info["category_id"] for info in infos["synonym"]] == [2]
        # 0.81 of the poodle beats 0.6 of the grass, and 0.665 of the kitten.
        assert maps["hyponym"][1].tolist() == [1, 1, 2, 2]
        assert [info["category_id"] for info in infos["hyponym"]] == [0, 2]

    def test_levels_that_change_nothing_are_one_object(self, outputs):
        assert outputs["normalised"] is not outputs["exact"]
        assert outputs["synonym"] is outputs["normalised"]
        assert outputs["hyponym"] is not outputs["synonym"]
        assert outputs["hypernym"] is not outputs["hyponym"]
        # The ear is below the score threshold.
        assert outputs["part"] is outputs["hypernym"]

    def test_each_level_is_panoptic_inference_of_its_classes(self, outputs, make_candidates):
        rows = [(score, name, -1, role, mask) for score, name, _, role, mask in self.rows]
        rows[1] = self.rows[1]
        candidates = make_candidates(*rows, size=(2, 4))
        expected = panoptic_inference(candidates, is_thing=[True, True, False], **OPTIONS)
        got = outputs["synonym"]["panoptic_seg"]
        assert torch.equal(got[0], expected[0]) and got[1] == expected[1]

    def test_no_candidates(self, make_candidates):
        outputs = panoptic_levels(
            make_candidates(rules=[]), self.levels, is_thing=[True], **OPTIONS
        )
        assert len({id(output) for output in outputs.values()}) == 1
        assert outputs["exact"]["panoptic_seg"][1] == []
