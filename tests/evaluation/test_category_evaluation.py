import math
from collections import Counter

import numpy as np
import pytest
from detectron2.utils import comm

from rose_d2.evaluation.category_evaluation import (
    CategoryNameEvaluator,
    ObjectMatch,
    name_metrics,
)


def _make(scenes, kind="coco_panoptic_seg", bounds=(32.0, 96.0)):
    evaluator = CategoryNameEvaluator(scenes.names[kind], view_size=100, scale_bounds=bounds)
    evaluator.reset()
    return evaluator


def _run(scenes, outputs, kind="coco_panoptic_seg", **options):
    evaluator = _make(scenes, kind, **options)
    for sample in scenes.dicts[kind]:
        evaluator.process([sample], [outputs[sample["image_id"]]])
    return evaluator.evaluate()["names"]


def _second_scene_only(scenes, instances_from, rows):
    return {
        1: {"instances": instances_from(scenes.ids[1], [])},
        2: {"instances": instances_from(scenes.ids[2], rows)},
    }


@pytest.mark.parametrize("kind", ["coco", "coco_panoptic_seg", "sem_seg"])
def test_ground_truth_scores_100(scenes, perfect, kind):
    if kind == "coco":
        for output in perfect.values():
            output["instances"] = output["instances"][output["instances"].pred_classes < 2]
    results = _run(scenes, perfect, kind)
    for metric in ("IoU_found", "IoU_all", "recall", "name_exact", "name_normalised", "name_class"):
        assert results[metric] == 100
    assert results["rule-exact"] == 100 and results["rule-unmapped"] == 0


def test_pairs_are_one_to_one_best_iou_first(scenes, instances_from):
    ids = scenes.ids[2]
    left, right = ids == 21, ids == 22  # 480 and 390 pixels
    both = left | right
    part = left.copy()
    part[25:] = False  # half of the left cat: IoU 0.5, so it is found
    rows = [(both, "cat", 1, 0.9), (part, "Cats", 1, 0.8), (ids == 20, "zebra", -1, 0.7)]
    results = _run(scenes, _second_scene_only(scenes, instances_from, rows), "coco")
    # `both` has IoU 480/870 with the left cat, more than `part`; the right one keeps nothing.
    assert results["IoU_found"] == pytest.approx(100 * 480 / 870)
    assert results["IoU_all"] == pytest.approx(100 * 480 / 870 / 4)
    assert results["recall"] == 25 and results["name_exact"] == 100
    assert results["rule-exact"] == pytest.approx(100 / 3)
    assert results["rule-normalised"] == pytest.approx(100 / 3)
    assert results["rule-unmapped"] == pytest.approx(100 / 3)


def test_an_iou_of_exactly_one_half_is_found(scenes, instances_from):
    half = scenes.ids[2] == 21
    half[25:] = False
    rows = [(half, "the Cats", 1, 0.9)]
    results = _run(scenes, _second_scene_only(scenes, instances_from, rows), "coco")
    assert results["recall"] == 25 and results["IoU_found"] == 50
    assert results["name_exact"] == 0 and results["name_normalised"] == 100


def test_a_right_name_of_the_wrong_class_is_wrong(scenes, perfect):
    instances = perfect[2]["instances"]
    instances.pred_category_names = type(instances.pred_category_names)(["grass", "dog", "cat"])
    instances.pred_classes[1] = 0
    results = _run(scenes, perfect)
    assert results["recall"] == 100
    assert results["name_exact"] == results["name_class"] == pytest.approx(100 * 6 / 7)


def test_a_class_that_spelling_does_not_explain_came_from_similarity(scenes, perfect):
    instances = perfect[2]["instances"]
    instances.pred_category_names = type(instances.pred_category_names)(["lawn", "cat", "cat"])
    results = _run(scenes, perfect)
    assert results["rule-similarity"] == pytest.approx(100 / 7)
    assert results["name_class"] == 100
    assert results["name_normalised"] == pytest.approx(100 * 6 / 7)


# In a square view of 100: the dog (20 x 10 of 60 x 40) has scale 100 * sqrt(200 / 2400) = 28.9,
# the first cat (12 x 20) 31.6, the cats of scene 2 (480 and 390 of 1500) 56.6 and 51.0.
def test_recall_per_size_in_the_square_view(scenes, perfect):
    instances = perfect[1]["instances"]
    perfect[1]["instances"] = instances[[0, 1, 3]]  # sky, grass, cat; the dog is missed
    results = _run(scenes, perfect, bounds=(30.0, 52.0))
    assert results["recall-small"] == 0
    assert results["recall-medium"] == 100
    assert results["recall-large"] == 100
    assert results["recall-stuff"] == 100
    results = _run(scenes, perfect, bounds=(32.0, 57.0))
    assert results["recall-small"] == 50 and math.isnan(results["recall-large"])


def test_no_prediction(scenes, instances_from):
    outputs = {i: {"instances": instances_from(ids, [])} for i, ids in scenes.ids.items()}
    results = _run(scenes, outputs)
    assert results["recall"] == results["IoU_all"] == 0
    assert math.isnan(results["name_exact"]) and math.isnan(results["rule-exact"])


def test_without_annotated_objects_only_the_rules_are_reported(scenes, perfect):
    for sample in scenes.dicts["sem_seg"]:
        del sample["pan_seg_file_name"]
    rules = ("exact", "normalised", "synonym", "similarity", "unmapped")
    assert set(_run(scenes, perfect, "sem_seg")) == {f"rule-{rule}" for rule in rules}


def test_metrics_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 10**6, size=(500, 2)).tolist()
    matches = [ObjectMatch(a, a + b, i % 4, 1, 1, 1) for i, (a, b) in enumerate(pixels)]
    assert name_metrics(matches) == name_metrics(matches[::-1])


def test_counts_of_other_processes_are_gathered(scenes, perfect, monkeypatch):
    other = {list: [ObjectMatch(0, 10, 0, 0, 0, 0)], Counter: Counter({"unmapped": 3})}
    monkeypatch.setattr(comm, "all_gather", lambda value: [value, other[type(value)]])
    evaluator = _make(scenes)
    evaluator.process(scenes.dicts["coco_panoptic_seg"][1:], [perfect[2]])
    results = evaluator.evaluate()["names"]
    assert results["recall"] == 75 and results["rule-unmapped"] == 50
