import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog

from rose_d2.refinement.regions import RefinementSettings
from rose_d2.refinement.synthetic_turns import (
    QUESTIONS,
    RefinedObject,
    refine_synthetic_turns,
    summarise,
    synthetic_region,
)

CLASSES = ["dog", "cat", "sky"]


def disc():
    ys, xs = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    return (ys - 30) ** 2 + (xs - 40) ** 2 < 400


@pytest.mark.parametrize("seed", range(4))
def test_a_corrupted_mask_lies_in_the_range_under_its_right_name(seed):
    region = synthetic_region("mask", disc(), 0, CLASSES, [0, 1], np.random.default_rng(seed))
    assert 0.5 <= region.iou(region.prior) <= 0.7
    assert (region.situation, region.name, region.target_class) == ("mask", "dog", 0)


def test_a_wrong_name_is_never_the_right_one():
    rng = np.random.default_rng(0)
    names = {
        synthetic_region("category", disc(), 0, CLASSES, [0, 1, 2], rng).name for _ in range(12)
    }
    assert names == {"cat", "sky"}


def test_a_missed_object_has_only_its_target():
    region = synthetic_region("missed", disc(), 1, CLASSES, [0, 1], np.random.default_rng(0))
    assert (region.prior, region.name, region.target_class) == (None, "", 1)
    assert torch.equal(region.target, disc())


def test_summary_averages_within_and_then_over_seeds():
    runs = [
        [RefinedObject("mask", 0.5, 0.9, True), RefinedObject("mask", 0.6, 0.05, False)],
        [RefinedObject("mask", 0.6, 0.8, True)],
    ]
    for run in runs:
        run += [RefinedObject("category", 0.6, 0.6, False), RefinedObject("missed", 0, 0.7, True)]
        run += [RefinedObject("named by mask", 1, 1, True), RefinedObject("named by box", 0, 1, 0)]
    summary = summarise(runs)
    assert summary["mask"]["iou_before"][0] == pytest.approx(57.5)
    assert summary["mask"]["iou_after"][0] == pytest.approx((47.5 + 80) / 2)
    assert summary["mask"]["iou_gain"] == pytest.approx((6.25, (20 + 7.5) / np.sqrt(2)))
    assert summary["mask"]["worse"][0] == pytest.approx(25)
    assert summary["mask"]["lost"][0] == pytest.approx(25)
    assert summary["mask"]["name_exact"][0] == pytest.approx(75)
    assert summary["category"]["worse"] == (0, 0)
    assert summary["missed"]["recovered_and_named"] == (100, 0)


def test_one_object_of_every_image_is_refined_in_every_situation(scene, make_item, datasets):
    records = DatasetCatalog.get(datasets["coco"])
    records = [{**record, "dataset_name": datasets["coco"]} for record in records]
    records.append({**records[0], "annotations": []})
    model = scene.model(None, [(scene.dog, 0, 0.5)] * 10).eval()
    entries = refine_synthetic_turns(
        model,
        records,
        lambda record: make_item("instance", image_id=record["image_id"]),
        CLASSES,
        min_pixels=16,
        batch_size=4,
    )
    assert [entry.situation for entry in entries] == list(QUESTIONS) * 2
    assert model.batch_sizes == [4, 4, 2]
    for entry in entries:
        assert entry.name_right == (entry.iou_after == 1.0)  # the answer is always the dog
        before = {"missed": 0, "named by mask": 1, "named by box": 0}.get(entry.situation)
        assert entry.iou_before == before or 0.5 <= entry.iou_before <= 0.7
    by_mask, by_box = model.turns[3:5]
    assert "[" not in by_mask["conversation"].instruction and by_mask["prior_mask"].any()
    assert str(list(by_box["named_box"])) in by_box["conversation"].instruction
    assert not by_box["prior_mask"].any() and "named_box" not in by_mask
    assert by_mask["answer_box"] == by_box["answer_box"] == by_box["named_box"]


def test_settings_reach_the_turns_and_their_answers(scene, make_item, datasets):
    (record, _) = DatasetCatalog.get(datasets["coco"])
    model = scene.model(None, [(scene.cat, 1, 0.5)] * 5).eval()
    ask = model._answer

    def rated(item):
        output = ask(item)
        output["instances"].mask_quality = torch.tensor([0.5])
        output["instances"].prior_quality = torch.tensor([0.6])
        return output

    model._answer = rated
    entries = refine_synthetic_turns(
        model,
        [{**record, "dataset_name": datasets["coco"]}],
        lambda record: make_item("instance"),
        CLASSES,
        min_pixels=16,
        settings=RefinementSettings(within_box=False, keep_better=True),
    )
    assert not any("answer_box" in turn for turn in model.turns)
    for entry in entries:
        if entry.situation not in ("missed", "named by box"):
            assert entry.iou_after == entry.iou_before > 0
        else:
            assert entry.iou_before == 0
