"""AP against an independent implementation, and one library against the other."""

import copy
import json
import time
from collections import defaultdict

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rose_d2.data.datasets.coco import load_coco_instances
from rose_d2.evaluation import instance
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.evaluation.instance import (
    FASTER,
    OFFICIAL,
    COCOeval_faster,
    RoseCOCOEvaluator,
    evaluate_coco,
    installed_implementation,
    open_average_precision,
)
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.vocabulary.vocabulary import LEVELS

IMPLEMENTATIONS = [OFFICIAL, *([FASTER] if COCOeval_faster else [])]
IDS = {3: 0, 5: 1, 7: 2}


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
    grass.name_scores = torch.tensor([0.1])
    for output in things.values():
        output["instances"].name_scores = torch.ones(len(output["instances"]))
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


def test_without_annotated_objects_there_is_no_evaluation(scenes):
    path = scenes.root / "instances.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="no object is left of 0 annotations in 2 images"):
        RoseCOCOEvaluator(scenes.names["coco"])


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
        # The headline's three once more, by objectness alone.
        assert sorted(asked) == [(task, n) for task in ("bbox", "segm") for n in (1, 2, 3, 3, 4)]

    def test_the_papers_ranking_stands_beside_the_headline(self, run, mapped):
        for output in mapped.values():
            instances = output["instances"]
            instances.name_scores = torch.linspace(1.0, 0.1, len(instances))
        by_both, by_objectness = run(mapped), run(mapped, rank_by_name=False)
        for task in ("bbox", "segm"):
            assert by_both[task]["AP_objectness"] == by_objectness[task]["AP"]
            assert "AP_objectness" not in by_objectness[task]

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


def plain_average_precision(images, num_classes, max_dets=100):
    """101-point AP over ten thresholds in percent, from boolean masks."""
    averages = []
    for class_id in range(num_classes):
        for threshold in np.linspace(0.5, 0.95, 10):
            records, positives = [], 0
            for objects, predictions in images:
                truth = [mask for mask, c, crowd in objects if c == class_id and not crowd]
                crowds = [mask for mask, c, crowd in objects if c == class_id and crowd]
                ours = sorted((p for p in predictions if p[1] == class_id), key=lambda p: -p[2])
                positives += len(truth)
                free = dict(enumerate(truth))
                for mask, _, score in ours[:max_dets]:
                    ious = {k: (t & mask).sum() / (t | mask).sum() for k, t in free.items()}
                    best = max(ious, key=lambda k: (ious[k], k), default=None)
                    area = max(mask.sum(), 1)
                    if best is not None and ious[best] >= threshold:
                        del free[best]
                        records.append((score, 1))
                    elif not any((t & mask).sum() / area >= threshold for t in crowds):
                        records.append((score, 0))
            if positives:
                hits = np.array([hit for _, hit in sorted(records, key=lambda r: -r[0])])
                found = np.cumsum(hits)
                precision, recall = found / np.arange(1, len(hits) + 1), found / positives
                points = [precision[recall >= r] for r in np.linspace(0, 1, 101)]
                averages.append(np.mean([p.max() if len(p) else 0.0 for p in points]))
    return 100 * np.mean(averages)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("seed", range(4))
def test_an_independent_implementation_agrees(random_instances, seed, implementation):
    truth, results, images = random_instances(seed)
    options = {"implementation": implementation}
    coco_eval = evaluate_coco(truth, results, "segm", **options)
    expected = plain_average_precision(images, 3)
    assert 5 < expected < 90
    assert 100 * coco_eval.stats[0] == pytest.approx(expected, abs=1e-9)
    few = evaluate_coco(truth, results, "segm", max_dets=1, **options)
    expected = plain_average_precision(images, 3, max_dets=1)
    assert 100 * few.stats[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.skipif(COCOeval_faster is None, reason="faster-coco-eval is not installed")
class TestFaster:
    @pytest.mark.parametrize("iou_type", ["bbox", "segm"])
    @pytest.mark.parametrize("max_dets", [2, 100, 200])
    def test_both_agree_in_every_number(self, random_instances, iou_type, max_dets):
        for seed in range(5):
            truth, results, _ = random_instances(seed, num_images=12)
            ours, theirs = (
                evaluate_coco(truth, results, iou_type, max_dets=max_dets, implementation=name)
                for name in (FASTER, OFFICIAL)
            )
            for metric in range(12):
                assert ours.stats[metric] == pytest.approx(theirs.stats[metric], abs=1e-12)
            precision = np.asarray(ours.eval["precision"])
            assert precision.shape == theirs.eval["precision"].shape
            np.testing.assert_allclose(precision, theirs.eval["precision"], rtol=0, atol=1e-12)

    @pytest.mark.slow
    def test_it_is_faster(self, random_instances):
        truth, results, _ = random_instances(0, num_images=300, num_classes=30)
        seconds = defaultdict(list)
        for _ in range(3):
            for name in (FASTER, OFFICIAL):
                start = time.process_time()
                evaluate_coco(truth, results, "segm", implementation=name)
                seconds[name].append(time.process_time() - start)
        assert min(seconds[FASTER]) < min(seconds[OFFICIAL])


def test_the_faster_one_is_taken_where_it_is_installed(monkeypatch):
    assert installed_implementation() == IMPLEMENTATIONS[-1]
    monkeypatch.setattr("rose_d2.evaluation.instance.COCOeval_faster", None)
    assert installed_implementation() == OFFICIAL


@pytest.mark.parametrize("ids", ["equal", "zero", "text", "none", "giant"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_ground_truth_scores_100_whatever_its_ids_are(
    random_instances, tmp_path, monkeypatch, implementation, ids
):
    """Ids of annotations, images and categories that pycocotools cannot tell apart."""
    if implementation == OFFICIAL:
        monkeypatch.setattr(instance, "COCOeval_faster", None)
    truth, _, _ = random_instances(1)
    content = truth.dataset
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = {"equal": 5, "zero": number, "text": f"uuid {number}"}.get(ids, number)
        if ids == "none":
            del annotation["id"], annotation["area"], annotation["bbox"]
        if ids in ("text", "giant"):
            annotation["image_id"] = _renamed(annotation["image_id"], ids)
            annotation["category_id"] = _renamed(annotation["category_id"], ids)
    for entry in [*content["images"], *content["categories"]]:
        if ids in ("text", "giant"):
            entry["id"] = _renamed(entry["id"], ids)
    for image in content["images"]:
        image["file_name"] = f"{image['id']}.png"
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(content))
    class_ids = {category["id"]: k for k, category in enumerate(content["categories"])}
    name = f"rose_test_ids_{ids}"
    MetadataCatalog.get(name).set(
        json_file=str(path), thing_dataset_id_to_contiguous_id=class_ids, thing_classes=list("abc")
    )
    try:
        evaluator = RoseCOCOEvaluator(name, distributed=False, output_dir=str(tmp_path))
        for record in load_coco_instances(path, "", class_ids):
            evaluator.process([record], [{"instances": _annotated_instances(record)}])
        assert evaluator.evaluate()["segm"]["AP"] == pytest.approx(100)
    finally:
        MetadataCatalog.pop(name)
    written = json.loads((tmp_path / "coco_instances_results.json").read_text())
    assert {row["image_id"] for row in written} <= {image["id"] for image in content["images"]}
    assert {row["category_id"] for row in written} <= set(class_ids)


def _renamed(number, ids):
    return f"no. {number}" if ids == "text" else (-1) ** number * (2**127 + number)


def _annotated_instances(record):
    """The objects of a dataset dict as a model would answer them."""
    objects = load_objects(record)
    output = Instances((record["height"], record["width"]))
    output.pred_masks = objects.masks
    output.pred_boxes = masks_to_boxes(objects.masks)
    output.scores = torch.ones(len(objects))
    output.pred_classes = torch.tensor(objects.classes, dtype=torch.int64)
    return output


def test_sizes_are_those_of_the_masks(random_instances):
    """A false positive of 100 pixels in a box of 10 000 is an error among the small objects."""
    truth, _, _ = random_instances(0, num_images=1, size=(100, 100))
    diagonal = np.eye(100, dtype=bool)
    first, second = coco_mask.encode(
        np.asfortranarray(np.stack([diagonal, diagonal[::-1]], axis=2), dtype=np.uint8)
    )
    entry = {"id": 1, "image_id": 1, "category_id": 3, "area": 100, "iscrowd": 0}
    entry |= {"bbox": [0, 0, 100, 100], "segmentation": first}
    truth.dataset["annotations"] = [entry]
    truth.createIndex()
    results = [{**entry, "score": 0.5}, {**entry, "segmentation": second, "score": 0.9}]
    coco_eval = evaluate_coco(truth, results, "segm")
    assert coco_eval.stats[3] == pytest.approx(0.5)  # small
    assert coco_eval.stats[5] == -1  # large


@pytest.mark.parametrize("max_dets", [1, 100])
@pytest.mark.parametrize("seed", range(4))
def test_the_identity_gives_ap(random_instances, seed, max_dets):
    truth, results, _ = random_instances(seed)
    options = {"max_dets": max_dets, "implementation": OFFICIAL}
    stats = evaluate_coco(truth, results, "segm", **options).stats
    hard = open_average_precision(truth, results, np.eye(3), IDS, max_dets=max_dets)
    for key, index in (("Open AP", 0), ("Open AP50", 1), ("Open AP75", 2)):
        assert hard[key] == pytest.approx(100 * stats[index], abs=1e-9)


def test_it_grows_with_the_similarity(random_instances):
    truth, results, _ = random_instances(0)
    scores = []
    for value in (0.0, 0.4, 1.0):
        similarity = np.where(np.eye(3, dtype=bool), 1.0, value)
        scores.append(open_average_precision(truth, results, similarity, IDS)["Open AP"])
    assert scores[0] < scores[1] < scores[2]


def _entry(mask, category_id, **more):
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"image_id": 1, "category_id": category_id, "segmentation": code, **more}


@pytest.fixture
def scene():
    """One image with two objects side by side, of the classes 3 and 5."""
    masks = np.zeros((2, 10, 20), dtype=bool)
    masks[0, 2:8, 2:8], masks[1, 2:8, 12:18] = True, True
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1, "height": 10, "width": 20}],
        "annotations": [
            _entry(masks[0], 3, id=1, iscrowd=0, area=36, bbox=[2, 2, 6, 6]),
            _entry(masks[1], 5, id=2, iscrowd=0, area=36, bbox=[12, 2, 6, 6]),
        ],
        "categories": [{"id": i, "name": str(i)} for i in IDS],
    }
    truth.createIndex()
    return truth, masks


def _similar(predicted, annotated, value):
    similarity = np.eye(3)
    similarity[predicted, annotated] = value
    return similarity


def test_a_wrong_name_by_hand(scene):
    """The object of class 5 called 3: half a hit of 5, half an error of 3."""
    truth, masks = scene
    results = [_entry(masks[0], 3, score=0.8), _entry(masks[1], 3, score=0.9)]
    scores = open_average_precision(truth, results, _similar(0, 1, 0.5), IDS)
    # Class 3: half an error, then a hit: precision 1 / 1.5. Class 5: precision 1 up to recall
    # 0.5, which is 51 of the 101 points.
    assert scores["Open AP"] == pytest.approx(50 * (1 / 1.5 + 51 / 101))
    assert scores["Open AP75"] == pytest.approx(scores["Open AP50"])


def test_a_wrong_name_does_not_take_the_object_from_the_right_one(scene):
    truth, masks = scene
    results = [
        _entry(masks[0], 3, score=0.5),
        _entry(masks[1], 3, score=0.9),
        _entry(masks[1], 5, score=0.4),
    ]
    scores = open_average_precision(truth, results, _similar(0, 1, 0.5), IDS)
    # The error on class 3 stays whole, because its object is taken: precision 1 / 2.
    assert scores["Open AP"] == pytest.approx(50 * (1 / 2 + 1))


def test_a_prediction_with_an_object_of_its_own_does_not_take_another(scene):
    """Both objects in one place: the one of class 5 is missed, however similar."""
    truth, masks = scene
    truth.anns[2] |= {"segmentation": truth.anns[1]["segmentation"], "bbox": [2, 2, 6, 6]}
    results = [_entry(masks[0], 3, score=0.8)]
    scores = open_average_precision(truth, results, _similar(0, 1, 0.5), IDS)
    assert scores["Open AP"] == pytest.approx(50)


def test_nothing_predicted_and_nothing_annotated(scene):
    truth, masks = scene
    assert open_average_precision(truth, [], np.eye(3), IDS)["Open AP"] == 0
    truth.dataset["annotations"] = []
    truth.createIndex()
    results = [_entry(masks[0], 3, score=0.5)]
    assert np.isnan(open_average_precision(truth, results, np.eye(3), IDS)["Open AP"])


def test_a_matrix_of_another_size_is_refused(scene):
    with pytest.raises(ValueError, match=r"\(2, 2\) for 3 classes"):
        open_average_precision(scene[0], [], np.eye(2), IDS)
