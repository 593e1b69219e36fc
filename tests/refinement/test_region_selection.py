from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from rose_d2.evaluation.ground_truth import GroundTruthObjects
from rose_d2.refinement.regions import (
    RefinementSettings,
    instance_regions,
    parts_mostly_of,
    referring_regions,
    semantic_regions,
)
from rose_d2.structures.category_names import CategoryNames

NAMES = ["dog", "cat", "sky"]
SETTINGS = RefinementSettings()


def drawn(height=10, width=20, fill=0, **areas):
    """A long map with columns a to b (exclusive) of rows 0 to 9 set: {"2": (0, 5)} style."""
    labels = torch.full((height, width), fill)
    for label, (first, end) in areas.items():
        labels[:, first:end] = int(label[1:])
    return labels


def box_mask(x1, y1, x2, y2, size=(10, 20)):
    mask = torch.zeros(size, dtype=torch.bool)
    mask[y1:y2, x1:x2] = True
    return mask


def test_a_found_class_is_refined_as_mask_with_its_whole_region_as_prior():
    truth = drawn(fill=2, _0=(0, 8))
    predicted = drawn(fill=2, _0=(0, 4))
    dog, sky = semantic_regions(predicted, truth, NAMES, SETTINGS)
    assert (dog.situation, dog.name, dog.position) == ("mask", "dog", 0)
    assert torch.equal(dog.prior, predicted == 0)
    assert torch.equal(dog.target, truth == 0)
    assert sky.situation == "mask"
    assert dog.iou(dog.prior) == 0.5


def test_a_region_under_another_name_is_refined_as_category():
    truth = drawn(fill=2, _0=(0, 8))
    predicted = drawn(fill=2, _1=(0, 7))
    dog = semantic_regions(predicted, truth, NAMES, SETTINGS)[0]
    assert (dog.situation, dog.name, dog.class_id) == ("category", "cat", 1)
    assert (dog.target_class, dog.position) == (0, 0)
    assert torch.equal(dog.prior, predicted == 1)


def test_only_the_parts_that_are_the_class_are_called_misnamed():
    """Two regions are called cat: one is the dog, the other a cat."""
    truth = drawn(fill=2, _0=(0, 5), _1=(10, 15))
    predicted = drawn(fill=2, _1=(0, 5))
    predicted[:, 10:15] = 1
    (dog,) = semantic_regions(predicted, truth, NAMES, RefinementSettings(worst_classes=1))
    assert dog.situation == "category"
    assert torch.equal(dog.prior, drawn(fill=2, _1=(0, 5)) == 1)


def test_a_class_swallowed_by_a_larger_region_is_missed():
    truth = drawn(fill=2, _0=(8, 10))
    predicted = drawn(fill=2)
    regions = semantic_regions(predicted, truth, NAMES, SETTINGS)
    dog = next(region for region in regions if region.position == 0)
    assert dog.situation == "missed"
    assert dog.prior is None
    assert torch.equal(dog.target, truth == 0)
    assert dog.iou(None) == 0.0


def test_a_class_without_any_prediction_is_missed():
    truth = drawn(fill=2, _0=(0, 8))
    predicted = drawn(fill=2, _3=(0, 8))
    (dog,) = semantic_regions(predicted, truth, NAMES, SETTINGS)
    assert (dog.situation, dog.prior, dog.name) == ("missed", None, "")


def test_unlabelled_pixels_neither_choose_nor_score():
    truth = drawn(fill=2, _0=(0, 4))
    truth[:, 4:8] = -1
    predicted = drawn(fill=2, _0=(0, 8))
    assert semantic_regions(predicted, truth, NAMES, SETTINGS) == []
    predicted[0, 0] = 2
    dog = semantic_regions(predicted, truth, NAMES, SETTINGS)[0]
    assert dog.iou(predicted == 0) == pytest.approx(39 / 40)


def test_parts_count_labelled_pixels_only():
    region = box_mask(0, 0, 4, 1) | box_mask(6, 0, 10, 1)
    target = box_mask(0, 0, 2, 1) | box_mask(6, 0, 8, 1)
    labelled = ~box_mask(3, 0, 4, 1)
    assert torch.equal(parts_mostly_of(region, target, labelled), box_mask(0, 0, 4, 1))


@pytest.fixture
def scene():
    """A dog and a cat; predictions: good dog, bad cat called cat, bad dog called tree, stray."""
    objects = GroundTruthObjects(
        torch.stack([box_mask(0, 0, 8, 8), box_mask(10, 0, 18, 8)]), [0, 1], [False, False]
    )
    masks = [(0, 0, 8, 7), (10, 0, 18, 3), (0, 0, 3, 8), (19, 9, 20, 10)]
    instances = Instances(
        (10, 20),
        pred_masks=torch.stack([box_mask(*box) for box in masks]),
        scores=torch.tensor([0.9, 0.6, 0.5, 0.8]),
        pred_classes=torch.tensor([0, 1, -1, 1]),
        pred_category_names=CategoryNames(["dog", "cat", "tree", "cat"]),
    )
    return instances, objects


def test_bad_predictions_are_refined_by_the_correctness_of_their_class(scene):
    stray, cat, tree = instance_regions(*scene, SETTINGS)
    assert (cat.situation, cat.position, cat.target_class) == ("mask", 1, 1)
    assert cat.iou(cat.prior) == pytest.approx(3 / 8)
    assert (tree.situation, tree.name, tree.class_id) == ("category", "tree", -1)
    assert tree.target_class == 0
    assert torch.equal(tree.target, scene[1].masks[0])
    assert (stray.situation, stray.name, stray.target_class) == ("category", "cat", -1)
    assert not stray.target.any()


def test_counts_and_threshold_of_instances_are_settings(scene):
    assert len(instance_regions(*scene, RefinementSettings(max_instances=2))) == 2
    assert len(instance_regions(*scene, RefinementSettings(iou_threshold=0.95))) == 4


def test_an_empty_prediction_or_name_makes_no_impossible_request(scene):
    instances, objects = scene
    instances.pred_masks[3] = False
    instances.pred_category_names = CategoryNames(["dog", "cat", " ", "cat"])
    assert [r.situation for r in instance_regions(instances, objects, SETTINGS)] == ["mask"] * 2


def test_every_referring_answer_is_refined_as_mask():
    truth = SimpleNamespace(mask=np.ones((10, 20), dtype=bool), ignore=None)
    (region,) = referring_regions(box_mask(0, 0, 10, 10), truth, "the dog")
    assert region.situation == "mask"
    assert region.iou(region.prior) == 0.5
    assert referring_regions(torch.zeros(10, 20, dtype=torch.bool), truth, "the dog") == []
