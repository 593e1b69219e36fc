import json

import numpy as np
import pytest
import torch

from rose_d2.evaluation import panoptic as panoptic_evaluation
from rose_d2.evaluation.panoptic import RosePanopticEvaluator


@pytest.fixture
def run_all(scenes, evaluate):
    """Scores outputs with a new evaluator."""

    def score(outputs, **options):
        evaluator = RosePanopticEvaluator(scenes.names["coco_panoptic_seg"], **options)
        return evaluate(evaluator, "coco_panoptic_seg", outputs)

    return score


@pytest.fixture
def run(run_all):
    return lambda outputs, **options: run_all(outputs, **options)["panoptic_seg"]


def test_ground_truth_scores_100(run, perfect):
    results = run(perfect)
    assert results["PQ"] == pytest.approx(100)
    assert results["PQ_th"] == pytest.approx(100) and results["PQ_st"] == pytest.approx(100)


def test_unmapped_and_vanished_segments_become_void(run, perfect):
    ids, segments = perfect[1]["panoptic_seg"]
    segments[0]["category_id"] = -1  # the only sky
    segments.append({"id": 99, "category_id": 0, "isthing": True})  # without a pixel
    results = run(perfect)
    # Sky: one missed, PQ 0; dog, cat and grass stay perfect.
    assert results["PQ"] == pytest.approx(75)
    assert results["PQ_th"] == pytest.approx(100) and results["PQ_st"] == pytest.approx(50)
    assert (ids == 10).any(), "the caller's id map must stay as it was"


def test_wrong_class_by_hand(run, perfect):
    for segment in perfect[2]["panoptic_seg"][1]:
        if segment["id"] == 21:
            segment["category_id"] = 0
    # cat: 2 right, 1 missed -> 2 / 2.5; dog: 1 right, 1 false -> 1 / 1.5.
    results = run(perfect)
    assert results["PQ_th"] == pytest.approx(100 * (2 / 2.5 + 1 / 1.5) / 2)


def test_no_prediction_is_zero(run, perfect):
    for output in perfect.values():
        output["panoptic_seg"] = torch.zeros_like(output["panoptic_seg"][0]), []
    assert run(perfect)["PQ"] == 0


def test_without_segments_there_is_no_number(scenes, run, perfect):
    path = scenes.root / "panoptic.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = []
    path.write_text(json.dumps(content))
    for output in perfect.values():
        output["panoptic_seg"] = torch.zeros_like(output["panoptic_seg"][0]), []
    results = run(perfect)
    assert set(results) == {a + b for a in ("PQ", "SQ", "RQ") for b in ("", "_th", "_st")}
    assert all(np.isnan(value) for value in results.values())


def test_a_missing_image_is_named(scenes, perfect):
    evaluator = RosePanopticEvaluator(scenes.names["coco_panoptic_seg"])
    evaluator.process(scenes.dicts["coco_panoptic_seg"][:1], [perfect[1]])
    with pytest.raises(ValueError, match="1 images of .* first image 2"):
        evaluator.evaluate()


class TestLevels:
    @pytest.fixture
    def levelled(self, perfect):
        """Cats have no class until the level "synonym"; "normalised" shares with "exact"."""
        for output in perfect.values():
            ids, segments = output["panoptic_seg"]
            others = [segment for segment in segments if segment["category_id"] != 1]
            void = torch.tensor([s["id"] for s in segments if s["category_id"] == 1])
            without = torch.where(torch.isin(ids, void), 0, ids), others
            output["levels"] = {
                "exact": {"panoptic_seg": without},
                "synonym": {"panoptic_seg": (ids, segments)},
            }
            output["levels"]["normalised"] = output["levels"]["exact"]
        return perfect

    def test_by_hand(self, run_all, levelled):
        results = run_all(levelled, headline_level="exact")
        levels = {"exact": 75, "synonym": 100, "normalised": 75}
        assert results["panoptic_seg_levels"] == pytest.approx(levels)
        assert results["panoptic_seg"]["PQ"] == pytest.approx(75)
        assert results["panoptic_seg"]["PQ_th"] == pytest.approx(50)

    def test_without_a_headline_level_the_answer_itself_counts(self, run_all, levelled):
        results = run_all(levelled)
        assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
        assert results["panoptic_seg_levels"]["exact"] == pytest.approx(75)

    def test_a_shared_answer_is_drawn_and_counted_once(self, scenes, levelled, monkeypatch):
        counted = []

        def count(pairs, *where):
            counted.append(pairs)
            return count_segments(pairs, *where)

        count_segments = panoptic_evaluation.count_segments
        monkeypatch.setattr(panoptic_evaluation, "count_segments", count)
        evaluator = RosePanopticEvaluator(
            scenes.names["coco_panoptic_seg"], headline_level="synonym"
        )
        for sample in scenes.dicts["coco_panoptic_seg"]:
            evaluator.process([sample], [levelled[sample["image_id"]]])
        assert [len(p["drawings"]) for p in evaluator._predictions] == [2, 2]
        evaluator.evaluate()
        assert len(counted) == 2

    def test_the_headline_is_written(self, run_all, levelled, tmp_path):
        run_all(levelled, headline_level="exact", output_dir=str(tmp_path))
        content = json.loads((tmp_path / "predictions.json").read_text())
        counts = [len(entry["segments_info"]) for entry in content["annotations"]]
        assert counts == [3, 1] and len(content["categories"]) == 4


class TestOpenPQ:
    def test_the_identity_gives_pq(self, run_all, perfect):
        perfect[2]["panoptic_seg"][1][1]["category_id"] = 0  # a cat called a dog
        results = run_all(perfect, similarity=np.eye(4))
        for key in ("PQ", "SQ", "RQ"):
            expected = pytest.approx(results["panoptic_seg"][key], abs=1e-9)
            assert results["open_panoptic_seg"][f"Open {key}"] == expected

    def test_a_similar_class_by_hand(self, run_all, perfect):
        perfect[2]["panoptic_seg"][1][1]["category_id"] = 0  # a cat called a dog
        similarity = np.eye(4)
        similarity[0, 1] = 0.25  # a dog is a quarter of a cat
        # cat: 2 + 1/4 right, 3/4 missed; dog: 1 right, 3/4 false; sky and grass are perfect.
        cat, dog = 2.25 / (2.25 + 0.375), 1 / (1 + 0.375)
        results = run_all(perfect, similarity=similarity)["open_panoptic_seg"]
        assert results["Open PQ"] == pytest.approx(100 * (cat + dog + 2) / 4)
        assert results["Open SQ"] == pytest.approx(100)

    def test_things_do_not_resemble_stuff(self, run_all, perfect):
        info = perfect[2]["panoptic_seg"][1][1]
        info["category_id"], info["isthing"] = 2, False  # a cat called sky
        results = run_all(perfect, similarity=np.ones((4, 4)))
        expected = pytest.approx(results["panoptic_seg"]["PQ"])
        assert results["open_panoptic_seg"]["Open PQ"] == expected

    def test_a_matrix_of_another_size_is_refused(self, run_all, perfect):
        with pytest.raises(ValueError, match=r"\(3, 3\) for 4 classes"):
            run_all(perfect, similarity=np.eye(3))
