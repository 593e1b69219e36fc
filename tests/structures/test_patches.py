"""The patch grid on a 6 x 6 example worked out by hand."""

import pytest
import torch

from rose_d2.structures.patches import ImageFeatures, PatchGrid, stack_features

GRID = PatchGrid(side=6, patch_size=14)


def test_patch_of_counts_row_by_row():
    assert GRID.patch_of((0, 0)) == 0
    assert GRID.patch_of((83.9, 0)) == 5
    assert GRID.patch_of((14, 28)) == 2 * 6 + 1


def test_points_on_the_far_border_belong_to_the_last_patch():
    assert GRID.patch_of((84, 84)) == 35


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((40, 40), [7, 8, 9, 13, 14, 15, 19, 20, 21]),  # patch (2, 2) in the middle
        ((0, 0), [0, 1, 2, 6, 7, 8, 12, 13, 14]),  # shifted inward
        ((84, 84), [21, 22, 23, 27, 28, 29, 33, 34, 35]),
        ((83, 40), [9, 10, 11, 15, 16, 17, 21, 22, 23]),  # only the columns shift
    ],
)
def test_odd_window_is_centred_and_shifts_inward(point, expected):
    assert GRID.window(point, 3).tolist() == expected


@pytest.mark.parametrize(
    ("point", "expected"),
    [
        ((28, 28), [7, 8, 13, 14]),  # exactly on a grid crossing
        ((34, 34), [7, 8, 13, 14]),  # 34 / 14 = 2.43, nearest line 2
        ((36, 34), [8, 9, 14, 15]),  # 36 / 14 = 2.57, nearest line 3
        ((1, 1), [0, 1, 6, 7]),
    ],
)
def test_even_window_takes_the_nearest_crossing(point, expected):
    assert GRID.window(point, 2).tolist() == expected


def test_window_larger_than_the_grid_is_refused():
    with pytest.raises(ValueError, match="does not fit a grid of side 6"):
        GRID.window((0, 0), 7)


def test_image_size_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="take 84"):
        PatchGrid.from_image_size(90, 14)
    assert PatchGrid.from_image_size(672, 14).num_patches == 2304


def features(value):
    return ImageFeatures(torch.full((2, 3, 3), value), torch.full((9, 4), value))


def test_features_of_all_images_are_batched_in_order():
    patches, sam = stack_features([features(1.0), features(2.0)])
    assert (patches.shape, sam.shape) == ((2, 9, 4), (2, 2, 3, 3))
    assert patches[:, 0, 0].tolist() == sam[:, 0, 0, 0].tolist() == [1.0, 2.0]


def test_a_batch_with_a_gap_is_encoded_whole():
    assert stack_features([features(1.0), None]) == (None, None)
    assert stack_features([None]) == (None, None)
    assert stack_features([]) == (None, None)


def test_patches_may_be_unknown_where_sams_features_are_known():
    patches, sam = stack_features([features(1.0), ImageFeatures(features(2.0).sam)])
    assert patches is None and sam.shape == (2, 2, 3, 3)
