import numpy as np
import pytest

from rose_d2.visualization.label_placement import place_labels


def box_mask(x0, y0, x1, y1, size=(100, 100)):
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def overlap(a, size_a, b, size_b):
    width = min(a[0] + size_a[0], b[0] + size_b[0]) - max(a[0], b[0])
    height = min(a[1] + size_a[1], b[1] + size_b[1]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def test_the_label_of_a_small_thing_does_not_cover_it():
    (x, y), size = place_labels([box_mask(45, 50, 55, 60)], [(30, 10)], [True])[0], (30, 10)
    assert overlap((x, y), size, (45, 50), (10, 10)) == 0
    assert 35 <= y <= 60, "beside the object, not somewhere else"


def test_the_label_of_a_thing_at_the_top_goes_below():
    x, y = place_labels([box_mask(40, 0, 60, 12)], [(30, 10)], [True])[0]
    assert y >= 12
    assert 0 <= x <= 70


def test_the_label_of_stuff_lies_inside_and_off_the_things_on_it():
    stuff, thing = box_mask(0, 50, 100, 100), box_mask(40, 70, 60, 80)
    positions = place_labels([stuff & ~thing, thing], [(30, 10), (20, 8)], [False, True])
    x, y = positions[0]
    assert 50 <= y <= 90
    assert overlap((x, y), (30, 10), (40, 70), (20, 10)) == 0


def test_labels_of_neighbours_do_not_overlap():
    masks = [box_mask(x, 40, x + 8, 48) for x in (10, 20, 30, 40)]
    sizes = [(25, 8)] * 4
    positions = place_labels(masks, sizes, [True] * 4)
    assert None not in positions
    for i in range(4):
        for j in range(i):
            assert overlap(positions[i], sizes[i], positions[j], sizes[j]) <= 0.1 * 25 * 8


def test_a_label_without_room_is_left_out_rather_than_written_over_another():
    mask = np.ones((10, 30), dtype=bool)
    positions = place_labels([mask, mask], [(30, 10), (30, 10)], [True, True])
    assert sorted(position is None for position in positions) == [False, True]


def test_empty_masks_get_no_label():
    assert place_labels([], [], []) == []
    assert place_labels([np.zeros((5, 5), dtype=bool)], [(3, 2)], [True]) == [None]


@pytest.mark.parametrize("size", [(1, 1), (1, 900), (900, 1), (3000, 20)])
def test_positions_stay_inside_images_of_any_shape(size):
    x, y = place_labels([np.ones(size, dtype=bool)], [(12, 5)], [True])[0]
    assert 0 <= x <= max(size[1] - 12, 0)
    assert 0 <= y <= max(size[0] - 5, 0)
