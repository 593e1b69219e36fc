import numpy as np
import pytest

from rose_d2.evaluation.semantic import check_similarity, mean_iou, open_mean_iou


@pytest.mark.parametrize("seed", range(3))
def test_the_identity_gives_miou(seed):
    confusion = np.random.default_rng(seed).integers(0, 1000, size=(6, 5))
    confusion[:, 3] = 0  # a class that is predicted but nowhere annotated
    assert open_mean_iou(confusion, np.eye(5)) == pytest.approx(mean_iou(confusion), abs=1e-9)


def test_by_hand():
    # Rows: predicted a, b, no object; columns: annotated a, b. b called a is worth a half.
    confusion = np.array([[6, 4], [0, 4], [4, 0]])
    similarity = np.array([[1.0, 0.5], [0.0, 1.0]])
    # a: 6 hits of 10, 2 false; b: 4 + 2 hits of 8, none false.
    expected = 100 * (6 / (10 + 2) + 6 / 8) / 2
    assert open_mean_iou(confusion, similarity) == pytest.approx(expected)


def test_no_object_resembles_nothing_and_full_similarity_forgives_names():
    confusion = np.array([[6, 4], [2, 4], [2, 0]])
    # a: 8 of 10; b: 8 of 8.
    assert open_mean_iou(confusion, np.ones((2, 2))) == pytest.approx(100 * (0.8 + 1) / 2)


def test_nothing_annotated_has_no_mean():
    assert np.isnan(open_mean_iou(np.zeros((3, 2), dtype=int), np.eye(2)))


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.eye(3), r"\(3, 3\) for 2 classes"),
        (np.array([[1, 1.5], [0, 1]]), "from 0 to 1"),
        (np.array([[1, np.nan], [0, 1]]), "from 0 to 1"),
        (np.array([[0.9, 0], [0, 1]]), "diagonal"),
    ],
)
def test_matrices_that_are_refused(similarity, message):
    with pytest.raises(ValueError, match=message):
        check_similarity(similarity, 2)
