import math
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from rose_d2.evaluation.names import (
    CategoryNameEvaluator,
    ObjectMatch,
    mean_name_similarity,
    name_metrics,
    share_of_right_classes,
)
from rose_d2.vocabulary.vocabulary import LEVELS, MAPPING_RULES

EXACT, SYNONYM, UNMAPPED = (MAPPING_RULES.index(r) for r in ("exact", "synonym", "unmapped"))


def _make(scenes, kind="coco_panoptic_seg", bounds=(32.0, 96.0), **options):
    evaluator = CategoryNameEvaluator(
        scenes.names[kind], view_size=100, scale_bounds=bounds, **options
    )
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
    assert set(_run(scenes, perfect, "sem_seg")) == {f"rule-{rule}" for rule in MAPPING_RULES}


def test_counts_of_other_processes_are_gathered(scenes, perfect, monkeypatch):
    unmapped = MAPPING_RULES.index("unmapped")
    other = [ObjectMatch(0, 10, 0, unmapped, 0)], Counter({unmapped: 3}), Counter(), False
    monkeypatch.setattr(comm, "gather", lambda state, dst: [state, other])
    evaluator = _make(scenes)
    evaluator.process(scenes.dicts["coco_panoptic_seg"][1:], [perfect[2]])
    results = evaluator.evaluate()["names"]
    assert results["recall"] == 75 and results["rule-unmapped"] == 50


@pytest.fixture
def lawn(perfect, name_rules):
    """Grass called "lawn" by hyponym, a cat called "Cats", a dog called "sky"; 7 objects."""
    first, second = perfect[1]["instances"], perfect[2]["instances"]
    names = type(first.pred_category_names)
    first.pred_category_names = names(["sky", "lawn", "sky", "Cats"])
    first.pred_classes[2] = 2
    name_rules(first, ["exact", "hyponym", "exact", "normalised"])
    name_rules(second, ["exact", "exact", "unmapped"])
    second.pred_category_names = names(["grass", "cat", "thing"])
    second.mapped_classes[2] = -1
    return perfect


def test_shares_of_right_classes_per_level(scenes, lawn):
    evaluator = _make(scenes, levels=LEVELS)
    for sample in scenes.dicts["coco_panoptic_seg"]:
        evaluator.process([sample], [lawn[sample["image_id"]]])
    results = evaluator.evaluate()
    expected = dict.fromkeys(LEVELS, 400 / 7) | {"exact": 300 / 7}
    expected |= dict.fromkeys(LEVELS[LEVELS.index("hyponym") :], 500 / 7)
    assert results["names_levels"] == pytest.approx(expected)
    assert list(results["names_levels"]) == list(LEVELS)
    names = results["names"]
    assert names["name_class"] == results["names_levels"]["synonym"]
    assert names["name_exact"] == pytest.approx(300 / 7)
    assert names["rule-exact"] == pytest.approx(400 / 7)
    assert names["rule-hyponym"] == names["rule-unmapped"] == pytest.approx(100 / 7)


def test_without_rules_there_are_no_levels(scenes, perfect):
    evaluator = _make(scenes, levels=LEVELS)
    evaluator.process(scenes.dicts["coco_panoptic_seg"][:1], [perfect[1]])
    assert set(evaluator.evaluate()) == {"names"}


def test_similarity_of_the_names_of_found_objects(scenes, lawn):
    """The dog is drawn too badly to be found, so its name does not count."""
    lawn[1]["instances"].pred_masks[2, 6:] = False
    table = {"sky": (1, 0), "grass": (0, 2), "lawn": (3, 4), "cat": (0, 1), "Cats": (0, -1)}
    asked = []

    def embed(names):
        asked.append(names)
        return torch.tensor([table.get(name, (1.0, 0.0)) for name in names])

    results = _run(scenes, lawn, embed_names=embed)
    # sky 1, lawn 0.8, Cats -1, grass 1, cat 1, thing 0.
    assert results["name_similarity"] == pytest.approx(100 * (1 + 0.8 - 1 + 1 + 1 + 0) / 6)
    assert len(asked) == 1 and list(asked[0]) == sorted(set(asked[0]))


def test_a_missing_text_tower_costs_one_number(scenes, perfect, caplog):
    def embed(names):
        raise OSError("no such model")

    results = _run(scenes, perfect, embed_names=embed)
    assert "name_similarity" not in results and results["recall"] == 100
    assert "no such model" in caplog.text


def test_metrics_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 10**6, size=(500, 2)).tolist()
    matches = [ObjectMatch(a, a + b, i % 4, EXACT, 1) for i, (a, b) in enumerate(pixels)]
    assert name_metrics(matches) == name_metrics(matches[::-1])


def test_only_found_objects_have_names():
    found, missed = ObjectMatch(9, 10, 0, SYNONYM, 1), ObjectMatch(4, 10, 1, EXACT, 1)
    metrics = name_metrics([found, missed])
    assert metrics["recall-small"] == 100 and metrics["recall-medium"] == 0
    assert metrics["name_exact"] == 0 and metrics["name_class"] == 100
    assert share_of_right_classes([found, missed], "normalised") == 0
    assert share_of_right_classes([found, missed], "synonym") == 100
    assert math.isnan(share_of_right_classes([missed], "synonym"))


def test_what_no_rule_gave_is_right_at_no_level():
    match = ObjectMatch(9, 10, 0, UNMAPPED, 0)
    assert share_of_right_classes([match], "similarity") == 0


def test_mean_similarity_weighs_by_count_and_not_by_order():
    vectors = {"a": (1.0, 0.0), "b": (0.0, 3.0), "c": (3.0, 4.0)}
    pairs = Counter({("c", "a"): 3, ("b", "b"): 1})

    def embed(names):
        return torch.tensor([vectors[name] for name in names])

    expected = pytest.approx(100 * (3 * 0.6 + 1) / 4)
    assert mean_name_similarity(pairs, embed) == expected
    turned = Counter(dict(reversed(pairs.items())))
    assert mean_name_similarity(turned, embed) == mean_name_similarity(pairs, embed)
