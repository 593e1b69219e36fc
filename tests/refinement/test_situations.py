import pytest
import torch

from rose_d2.refinement.regions import (
    class_recall,
    confusion_matrix,
    judge_instance,
    judge_situations,
    match_by_iou,
    select_instances,
    union_minus_intersection,
    worst_categories,
)

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


def test_neither_absent_nor_perfect_classes_are_refined():
    # 400 pixels predicted as class 0, which is not in the image; class 2 is perfect.
    matrix = torch.tensor([[0, 400, 0, 0], [0, 5, 0, 0], [0, 0, 50, 0], [0, 0, 0, 0]])
    assert worst_categories(matrix, 5) == [1]


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
