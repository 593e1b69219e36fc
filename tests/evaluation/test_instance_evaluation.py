import copy
import json

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from rose_d2.evaluation import instance
from rose_d2.evaluation.instance import RoseCOCOEvaluator
from rose_d2.vocabulary.vocabulary import LEVELS


@pytest.fixture
def run(scenes, evaluate):
    """Scores outputs with a new evaluator."""

    def score(outputs, **options):
        return evaluate(RoseCOCOEvaluator(scenes.names["coco"], **options), "coco", outputs)

    return score


@pytest.fixture
def things(perfect):
    """The perfect outputs without stuff."""
    for output in perfect.values():
        instances = output["instances"]
        output["instances"] = instances[instances.pred_classes < 2]
    return perfect


def put_first(instances, output):
    output["instances"] = Instances.cat([instances, output["instances"]])


def test_ground_truth_scores_100(run, things):
    results = run(things)
    assert results["segm"]["AP"] == pytest.approx(100)
    assert results["bbox"]["AP"] == pytest.approx(100)
    assert results["segm"]["AP-cat"] == pytest.approx(100)
    assert set(results) == {"bbox", "segm"}


@pytest.mark.parametrize("limit", [5, 100, 200])
def test_another_number_of_predictions_per_image(run, things, limit):
    assert run(things, max_dets_per_image=limit)["segm"]["AP"] == pytest.approx(100)


def test_unmapped_names_neither_crash_nor_count(run, things):
    for output in things.values():
        wrong = copy.deepcopy(output["instances"])
        wrong.pred_classes[:] = -1
        wrong.scores += 0.05
        put_first(wrong, output)
    assert run(things)["segm"]["AP"] == pytest.approx(100)


def test_a_prediction_on_the_crowd_is_not_an_error(run, scenes, things, instances_from):
    put_first(instances_from(scenes.ids[1], [(scenes.ids[1] == 14, "dog", 0, 0.99)]), things[1])
    assert run(things)["segm"]["AP"] == pytest.approx(100)


def test_a_better_scored_false_positive_costs_half_a_class(run, scenes, things, instances_from):
    put_first(instances_from(scenes.ids[2], [(scenes.ids[2] == 20, "dog", 0, 0.99)]), things[2])
    results = run(things)
    assert results["segm"]["AP-dog"] == pytest.approx(50)
    assert results["segm"]["AP-cat"] == pytest.approx(100)


def test_a_doubtful_name_ranks_behind_a_certain_one(run, scenes, things, instances_from):
    grass = instances_from(scenes.ids[2], [(scenes.ids[2] == 20, "dog", 0, 0.99)])
    grass.name_scores = torch.tensor([-2.0])
    for output in things.values():
        output["instances"].name_scores = torch.zeros(len(output["instances"]))
    put_first(grass, things[2])
    before = things[2]["instances"].scores.clone()
    assert run(things)["segm"]["AP-dog"] == pytest.approx(100)
    assert things[2]["instances"].scores.equal(before)
    assert run(things, rank_by_name=False)["segm"]["AP-dog"] == pytest.approx(50)


def test_no_prediction_is_zero(run, scenes, instances_from):
    outputs = {i: {"instances": instances_from(ids, [])} for i, ids in scenes.ids.items()}
    results = run(outputs)
    assert results["segm"]["AP"] == 0 and results["bbox"]["AP"] == 0


def test_an_empty_mask_finds_nothing(run, scenes, instances_from):
    ids = scenes.ids
    nothing = [(np.zeros(ids[2].shape, dtype=bool), "cat", 1, 0.9)]
    outputs = {
        1: {"instances": instances_from(ids[1], [])},
        2: {"instances": instances_from(ids[2], nothing)},
    }
    assert run(outputs)["segm"]["AP"] == 0


def test_without_annotated_objects_there_is_no_number(scenes, evaluate, things):
    path = scenes.root / "instances.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    results = evaluate(RoseCOCOEvaluator(scenes.names["coco"], levels=["exact"]), "coco", things)
    assert np.isnan(results["segm"]["AP"]) and np.isnan(results["bbox"]["AP"])


class TestLevels:
    @pytest.fixture
    def mapped(self, things, name_rules):
        """The dog by synonym; the cats by name, by normalisation and by hypernym."""
        name_rules(things[1]["instances"], ["synonym", "exact"])
        name_rules(things[2]["instances"], ["normalised", "hypernym"])
        return things

    def test_by_hand(self, run, mapped):
        results = run(mapped, levels=LEVELS)
        # One, two and three cats of three: precision is 1 up to recall 1/3 (34 of the 101
        # points), 2/3 (67) and 1; the dog comes with the synonyms.
        thirds = {1: 34 / 101, 2: 67 / 101, 3: 1}
        expected = dict.fromkeys(LEVELS, 50 * (1 + thirds[2]))
        expected["exact"], expected["normalised"] = 50 * thirds[1], 50 * thirds[2]
        expected |= dict.fromkeys(LEVELS[LEVELS.index("hypernym") :], 100)
        for task in ("bbox", "segm"):
            assert results[f"{task}_levels"] == pytest.approx(expected)
            assert list(results[f"{task}_levels"]) == list(LEVELS)
            assert results[task]["AP"] == results[f"{task}_levels"]["synonym"]

    def test_boxes_and_masks_are_levels_of_their_own(self, run, mapped):
        """The dog's mask shrinks to two of ten rows under its old box."""
        mapped[1]["instances"].pred_masks[0, 6:] = False
        results = run(mapped, levels=LEVELS)
        assert results["bbox_levels"]["similarity"] == pytest.approx(100)
        assert results["segm_levels"]["similarity"] == pytest.approx(50)

    def test_a_level_that_adds_nothing_costs_nothing(self, run, mapped, monkeypatch):
        asked = []

        def count(ground_truth, results, task, **options):
            asked.append((task, len(results)))
            return evaluate_coco(ground_truth, results, task, **options)

        evaluate_coco = instance.evaluate_coco
        monkeypatch.setattr(instance, "evaluate_coco", count)
        run(mapped, levels=LEVELS)
        assert sorted(asked) == [(task, n) for task in ("bbox", "segm") for n in (1, 2, 3, 4)]

    def test_older_outputs_have_no_levels(self, run, things):
        assert set(run(things, levels=LEVELS)) == {"bbox", "segm"}

    def test_only_the_headline_is_written_and_in_the_official_form(self, run, mapped, tmp_path):
        out = tmp_path / "out"
        run(mapped, levels=LEVELS, output_dir=str(out))
        rows = json.loads((out / "coco_instances_results.json").read_text())
        assert sorted(row["category_id"] for row in rows) == [1, 2, 2]
        keys = {"image_id", "category_id", "bbox", "score", "segmentation"}
        assert all(set(row) == keys for row in rows)


def test_open_ap_is_reported_beside_the_headline(run, scenes, things):
    things[1]["instances"].pred_classes[0] = 1  # the dog called a cat
    plain = run(things)
    hard = run(things, similarity=np.eye(2))
    assert hard["open_segm"]["Open AP"] == pytest.approx(plain["segm"]["AP"], abs=1e-9)
    soft = run(things, similarity=np.array([[1, 0.5], [0.5, 1]]))
    assert soft["open_segm"]["Open AP"] > plain["segm"]["AP"]
