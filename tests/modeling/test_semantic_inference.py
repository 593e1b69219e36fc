import pytest
import torch

from rose_d2.modeling.postprocessing import SemanticScores, semantic_inference

LEVELS = ("exact", "normalised", "synonym", "hyponym", "hypernym")


def _rows(*rows):
    return [torch.tensor([row]) for row in rows]


class TestScores:
    def test_maximum_of_the_candidates_of_a_class(self):
        scores = SemanticScores((1, 4), 2, 0.05)
        for class_id, row in zip(
            (0, 0, 1),
            _rows([0.4] * 2 + [0.0] * 2, [0.0, 0.5, 0.3, 0.0], [0.0, 0.0, 0.35, 0.0]),
            strict=True,
        ):
            scores.add(class_id, row)
        assert torch.equal(
            scores.dense(),
            torch.tensor([[[0.4, 0.5, 0.3, 0.0]], [[0.0, 0.0, 0.35, 0.0]], [[0.05] * 4]]),
        )
        assert scores.labels().dtype == torch.int16
        assert scores.labels().tolist() == [[0, 0, 1, 2]]

    def test_sum_of_the_candidates_of_a_class(self):
        scores = SemanticScores((1, 2), 3, 0.05, merge="sum")
        for class_id, row in zip(
            (2, 1, 2), _rows([0.25, 0.5], [0.5, 0.25], [0.5, 0.0]), strict=True
        ):
            scores.add(class_id, row)
        assert scores.dense()[2].tolist() == [[0.75, 0.5]]
        assert scores.labels().tolist() == [[2, 2]]

    def test_ties_go_to_the_smaller_class_and_before_no_object(self):
        scores = SemanticScores((1, 3), 3, 0.5)
        for class_id, row in zip(
            (2, 0, 1), _rows([0.5, 0.75, 0.0], [0.25, 0.75, 0.25], [0.0, 0.0, 0.5]), strict=True
        ):
            scores.add(class_id, row)
        assert scores.labels().tolist() == [[2, 0, 1]]

    @pytest.mark.parametrize("merge", ["max", "sum"])
    def test_labels_are_the_best_channel(self, merge):
        generator = torch.Generator().manual_seed(0)
        scores = SemanticScores((8, 9), 40, 0.3, merge)
        for class_id in (31, 4, 4, 17, 0, 31):
            # Few values, so that scores often tie.
            scores.add(class_id, torch.randint(0, 5, (8, 9), generator=generator) / 5)
        assert torch.equal(scores.labels().long(), scores.dense().argmax(dim=0))

    def test_unknown_merge_is_refused(self):
        with pytest.raises(ValueError, match="'mean'.*'max' or 'sum'"):
            SemanticScores((2, 2), 2, 0.05, merge="mean")


class TestLevels:
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
        assert sem_seg.shape == (4, 2, 4)
        assert (sem_seg[0] == 0).all()
        expected = torch.tensor([0.0, 0.45, 0.45, 0.0])
        torch.testing.assert_close(sem_seg[1, 0], expected, atol=1e-6, rtol=0)
        assert (sem_seg[3] == 0.05).all()
        labels = outputs["levels"]["synonym"]["sem_seg_labels"]
        assert torch.equal(labels.long(), sem_seg.argmax(dim=0))

    def test_without_candidates_everything_is_no_object(self, make_candidates):
        outputs = semantic_inference(make_candidates(rules=[]), LEVELS, "exact", 3, 0.05)
        assert (outputs["sem_seg"].argmax(dim=0) == 3).all()
        assert (outputs["levels"]["hypernym"]["sem_seg_labels"] == 3).all()
        assert len({id(level) for level in outputs["levels"].values()}) == 1
