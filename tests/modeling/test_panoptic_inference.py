import pytest
import torch

from rose_d2.modeling.postprocessing import panoptic_inference, panoptic_levels

STUFF_ROLE = 3
OPTIONS = {"score_threshold": 0.2, "overlap_threshold": 0.5, "stuff_role": STUFF_ROLE}


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


class TestLevels:
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
