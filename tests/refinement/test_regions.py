from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from rose_d2.evaluation.ground_truth import GroundTruthObjects
from rose_d2.refinement.regions import (
    RefinementSettings,
    RegionRefinement,
    class_recall,
    confusion_matrix,
    instance_regions,
    judge_instance,
    judge_situations,
    keeps_better,
    mask_in_view,
    match_by_iou,
    parts_mostly_of,
    referring_regions,
    select_instances,
    semantic_regions,
    union_minus_intersection,
    worst_categories,
)
from rose_d2.structures.category_names import CategoryNames

NAMES = ["dog", "cat", "sky"]
SETTINGS = RefinementSettings()
# Three classes and "no object"; columns are the truth, rows the prediction.
#            dog  cat  sky  -
MATRIX = torch.tensor(
    [
        [10, 60, 0, 0],  # dog
        [70, 19, 0, 0],  # cat
        [0, 0, 900, 0],  # sky
        [20, 21, 100, 0],  # no object
    ]
)


def test_a_mask_is_brought_to_the_square_view():
    mask = torch.zeros(10, 20, dtype=torch.bool)
    mask[5:10] = True
    view = mask_in_view(mask, 40)
    expected = torch.zeros(40, 40, dtype=torch.bool)
    expected[20:40] = True
    assert torch.equal(view, expected)


def test_a_mask_too_thin_for_the_view_keeps_a_pixel():
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[50, 50] = True
    view = mask_in_view(mask, 10)
    assert view.sum() == 1 and view[5, 5]


def test_iou_leaves_out_what_is_ignored():
    target = torch.tensor([[True, True, False, False]])
    mask = torch.tensor([[True, False, True, True]])
    assert RegionRefinement("missed", None, target).iou(mask) == 0.25
    ignored = torch.tensor([[False, True, False, True]])
    region = RegionRefinement("missed", None, target, ignored=ignored)
    assert region.iou(mask) == 0.5
    assert region.iou(None) == 0.0


def test_a_model_that_rates_no_masks_cannot_keep_the_better_one(tiny_cfg):
    assert not keeps_better(tiny_cfg)
    tiny_cfg.TEST.REFINEMENT.KEEP_BETTER = True
    with pytest.raises(ValueError, match="LOSS_WEIGHT.QUALITY is 0.0: the model has not learned"):
        keeps_better(tiny_cfg)
    tiny_cfg.MODEL.ROSE.LOSS_WEIGHT.QUALITY = 1.0
    assert RefinementSettings.from_config(tiny_cfg).keep_better


def test_two_empty_masks_have_no_overlap():
    empty = torch.zeros(1, 4, dtype=torch.bool)
    assert RegionRefinement("missed", None, empty).iou(empty) == 0.0


@pytest.mark.parametrize(
    ("situation", "has_target", "wanted", "named"),
    [
        ("mask", True, "prior", "prior"),
        ("mask", True, "target", "target"),
        ("mask", False, "target", "prior"),  # nothing is there that a box could be drawn around
        ("missed", True, "prior", "target"),
    ],
)
def test_the_box_is_that_of_the_target_or_of_the_prior(situation, has_target, wanted, named):
    target = torch.zeros(10, 10, dtype=torch.bool)
    target[:, 5:] = True
    prior = target.T if situation == "mask" else None
    region = RegionRefinement(situation, prior, target & has_target)
    assert region.box_of(wanted) == named
    boxes = {"prior": (0, 500, 999, 999), "target": (500, 0, 999, 999)}
    assert region.box(10, wanted) == boxes[named]


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


def test_a_class_swallowed_by_a_larger_region_is_renamed_inside_its_box():
    """Algorithm 1 as printed: all of its pixels have another name, so it is misnamed."""
    truth = drawn(fill=2, _0=(8, 10))
    truth[0, 8] = 2  # a corner of the box that is not the dog's
    regions = semantic_regions(drawn(fill=2), truth, NAMES, SETTINGS)
    dog = next(region for region in regions if region.position == 0)
    assert (dog.situation, dog.name, dog.target_class) == ("category", NAMES[2], 0)
    assert torch.equal(dog.prior, drawn(_1=(8, 10)) == 1)
    assert torch.equal(dog.target, truth == 0)


def test_a_class_that_is_not_there_is_refined_under_its_true_name():
    truth, predicted = drawn(fill=2), drawn(fill=2, _0=(8, 12))
    dog = next(r for r in semantic_regions(predicted, truth, NAMES, SETTINGS) if r.position == 0)
    assert (dog.situation, dog.name, dog.class_id, dog.target_class) == ("category", NAMES[0], 0, 2)
    assert torch.equal(dog.prior, predicted == 0) and torch.equal(dog.target, truth == 2)


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


def test_rows_are_predictions_and_columns_the_truth():
    predicted = torch.tensor([[0, 0, 1], [2, 1, 1]])
    truth = torch.tensor([[0, 1, 1], [0, 255, -1]])
    assert confusion_matrix(predicted, truth, 2).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_recall_is_by_column_and_zero_for_absent_classes():
    matrix = torch.tensor([[10, 5, 0], [20, 15, 7], [0, 0, 0]])
    assert class_recall(matrix).tolist() == [pytest.approx(1 / 3), 0.75, 0.0]


def test_umi_counts_the_pixels_that_differ():
    # dog: predicted 70, true 100, both 10; cat: 89, 100, 19; sky: 900, 1000, 900.
    assert union_minus_intersection(MATRIX).tolist() == [150, 151, 100]


def test_worst_categories_come_in_order_and_at_most_so_many():
    assert worst_categories(MATRIX, 5) == [1, 0, 2]
    assert worst_categories(MATRIX, 2) == [1, 0]


def test_absent_classes_have_umi_and_perfect_ones_have_none():
    # 400 pixels predicted as class 0, which is not in the image; class 2 is perfect.
    matrix = torch.tensor([[0, 400, 0, 0], [0, 5, 0, 0], [0, 0, 50, 0], [0, 0, 0, 0]])
    assert worst_categories(matrix, 5) == [0, 1]


def test_equally_wrong_classes_keep_their_order():
    matrix = torch.tensor([[0, 0, 0], [0, 0, 0], [30, 30, 0]])
    assert worst_categories(matrix, 1) == [0]


def judge(column, category=0, **thresholds):
    """Situation of class 0 of two classes from its column (class 0, class 1, no object)."""
    matrix = torch.zeros(3, 3, dtype=torch.long)
    matrix[:, category] = torch.tensor(column)
    recall = class_recall(matrix)[category].item()
    return judge_situations(matrix, [recall], [category], **thresholds)


def test_enough_recall_is_a_matter_of_the_mask():
    assert judge([20, 80, 0]) == ["mask"]  # exactly 0.2 is not below it
    assert judge([100, 0, 0]) == ["mask"]


def test_low_recall_under_one_other_name_is_a_matter_of_the_category():
    assert judge([19, 51, 30]) == ["category"]


def test_low_recall_otherwise_is_missed():
    assert judge([19, 50, 31]) == ["missed"]  # exactly half is not more than half
    assert judge([0, 40, 60]) == ["missed"]


def test_no_object_is_not_another_name():
    assert judge([0, 0, 100]) == ["missed"]


def test_a_class_without_pixels_is_missed_and_no_division_fails():
    assert judge([0, 0, 0]) == ["missed"]
    assert judge_situations(torch.zeros(3, 3, dtype=torch.long), [1.0], [0]) == ["mask"]


def test_recall_goes_with_the_list_of_categories_and_not_with_the_class():
    assert judge_situations(MATRIX, [0.9, 0.1], [2, 0]) == ["mask", "category"]


def test_the_matrix_is_read_by_columns():
    # Of class 0's pixels 20 % became class 1; of those predicted as class 0, 86 % are class 1's.
    matrix = torch.tensor([[10, 60, 0], [20, 0, 0], [70, 0, 0]])
    assert judge_situations(matrix, [0.1], [0]) == ["missed"]
    assert judge_situations(matrix.T, [0.1], [0]) == ["category"]


def test_thresholds_are_settings():
    assert judge([30, 70, 0], recall_threshold=0.4) == ["category"]
    assert judge([30, 70, 0], recall_threshold=0.4, confusion_share=0.8) == ["missed"]


def test_each_prediction_keeps_its_object_of_highest_iou():
    best, objects = match_by_iou(torch.tensor([[0.1, 0.4], [0.0, 0.3], [0.0, 0.0]]))
    assert best.tolist() == pytest.approx([0.4, 0.3, 0.0])
    assert objects.tolist() == [1, 1, -1]


def test_predictions_without_any_object_match_none():
    best, objects = match_by_iou(torch.zeros(2, 0))
    assert best.tolist() == [0, 0]
    assert objects.tolist() == [-1, -1]


def test_instances_under_the_threshold_in_descending_objectness():
    scores = torch.tensor([0.3, 0.9, 0.8, 0.7])
    ious = torch.tensor([0.1, 0.6, 0.49, 0.5])
    assert select_instances(scores, ious) == [2, 0]
    assert select_instances(scores, ious, count=1) == [2]
    assert select_instances(scores, ious, iou_threshold=0.7) == [1, 2, 3, 0]


def test_ten_instances_unless_told_otherwise():
    assert select_instances(torch.linspace(1, 0, 30), torch.zeros(30)) == list(range(10))


def test_the_class_decides_the_situation_of_an_instance():
    assert judge_instance(3, 3) == "mask"
    assert judge_instance(3, 4) == "category"
    assert judge_instance(-1, 4) == "category"
    assert judge_instance(3, None) == "category"
