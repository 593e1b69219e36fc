"""Corrupted masks: their IoU, what kind of change they show, and masks of every awkward shape."""

import numpy as np
import pytest

from rose_d2.data.mask_corruption import (
    HOLES_IOU,
    SHAPE_IOU,
    check_iou_range,
    holes_and_patches,
    shrink_or_stretch,
)

SIZE = 84
CORRUPTIONS = {holes_and_patches: HOLES_IOU, shrink_or_stretch: SHAPE_IOU}
each_corruption = pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda f: f.__name__)


def drawn(*boxes):
    """A mask of boxes (top, bottom, left, right)."""
    mask = np.zeros((SIZE, SIZE), dtype=bool)
    for top, bottom, left, right in boxes:
        mask[top:bottom, left:right] = True
    return mask


BIG_ENOUGH = {
    "box": drawn((20, 50, 30, 70)),
    "full": drawn((0, SIZE, 0, SIZE)),
    "all but a pixel": ~drawn((0, 1, 0, 1)),
    "lower half": drawn((42, SIZE, 0, SIZE)),
    "row": drawn((40, 41, 0, SIZE)),
    "column at the border": drawn((0, SIZE, SIZE - 1, SIZE)),
    "frame": drawn((0, SIZE, 0, SIZE)) & ~drawn((2, 82, 2, 82)),
    "two far parts": drawn((1, 6, 1, 6), (78, 84, 78, 84)),
    "chessboard": np.indices((SIZE, SIZE)).sum(axis=0) % 2 == 0,
    "four pixels": drawn((0, 2, 82, 84)),
}


def iou(a, b):
    return np.count_nonzero(a & b) / np.count_nonzero(a | b)


@each_corruption
@pytest.mark.parametrize("name", BIG_ENOUGH)
def test_iou_lies_in_the_range_and_the_mask_is_not_touched(corrupt, name):
    mask, (low, high) = BIG_ENOUGH[name], CORRUPTIONS[corrupt]
    before = mask.copy()
    for seed in range(60):
        corrupted = corrupt(mask, np.random.default_rng(seed))
        assert corrupted.dtype == bool
        assert corrupted.shape == mask.shape
        assert low <= iou(mask, corrupted) <= high, seed
    assert np.array_equal(mask, before)


@each_corruption
def test_another_range_is_obeyed_and_used_from_end_to_end(corrupt):
    mask = BIG_ENOUGH["box"]
    measured = [
        iou(mask, corrupt(mask, np.random.default_rng(seed), (0.1, 0.2))) for seed in range(200)
    ]
    assert min(measured) >= 0.1
    assert max(measured) <= 0.2
    assert min(measured) < 0.11
    assert max(measured) > 0.19


@each_corruption
def test_a_range_of_one_number_is_met_to_the_pixel(corrupt):
    # 1200 pixels: one flip changes the IoU by less than a thousandth.
    for seed in range(20):
        corrupted = corrupt(BIG_ENOUGH["box"], np.random.default_rng(seed), (0.6, 0.6))
        assert iou(BIG_ENOUGH["box"], corrupted) == pytest.approx(0.6, abs=1e-3)


@each_corruption
@pytest.mark.parametrize("pixels", [1, 2, 3])
def test_tiny_masks_get_the_nearest_iou_and_always_overlap(corrupt, pixels):
    mask = drawn((10, 11, 10, 10 + pixels))
    # What one or two pixels more or less can give; 1 where nothing nearer lies on the way.
    for seed in range(60):
        corrupted = corrupt(mask, np.random.default_rng(seed), (0.7, 0.95))
        assert (mask & corrupted).any()
        assert iou(mask, corrupted) in {1: (1.0,), 2: (0.5, 2 / 3, 1.0), 3: (2 / 3, 0.75)}[pixels]


@each_corruption
def test_a_single_pixel_never_vanishes_however_low_the_range(corrupt):
    mask = drawn((5, 6, 5, 6))
    for seed in range(40):
        assert corrupt(mask, np.random.default_rng(seed), (0.01, 0.02))[5, 5]


@each_corruption
def test_the_generator_alone_decides(corrupt):
    mask = BIG_ENOUGH["box"]
    first, again, other = (corrupt(mask, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_holes_and_patches_come_alone_and_together():
    mask = BIG_ENOUGH["box"]
    kinds = set()
    for seed in range(60):
        corrupted = holes_and_patches(mask, np.random.default_rng(seed))
        kinds.add((bool((mask & ~corrupted).any()), bool((corrupted & ~mask).any())))
    assert kinds == {(True, True), (True, False), (False, True)}


def test_patches_stay_near_the_object():
    # 30 % of the box of 30 x 40 pixels, on each side.
    near = drawn((11, 59, 18, 82))
    for seed in range(60):
        corrupted = holes_and_patches(BIG_ENOUGH["box"], np.random.default_rng(seed))
        assert not (corrupted & ~near).any()


def test_holes_are_blobs_and_not_single_pixels():
    mask = BIG_ENOUGH["box"]
    for seed in range(40):
        changed = holes_and_patches(mask, np.random.default_rng(seed), (0.7, 0.7)) != mask
        # Most changed pixels have a changed neighbour on the right, which noise would not have.
        assert np.count_nonzero(changed[:, 1:] & changed[:, :-1]) > 0.6 * changed.sum()


def test_shapes_are_shrunk_and_stretched():
    mask = BIG_ENOUGH["box"]
    areas = [
        np.count_nonzero(shrink_or_stretch(mask, np.random.default_rng(seed))) / mask.sum()
        for seed in range(60)
    ]
    assert 15 < sum(area < 0.9 for area in areas) < 45
    assert 15 < sum(area > 1.1 for area in areas) < 45


def test_an_object_cut_off_by_the_view_changes_at_its_outline():
    """Scaling pulls nothing away from the border; a band across the view only gets narrower."""
    band = BIG_ENOUGH["lower half"]
    for seed in range(40):
        corrupted = shrink_or_stretch(band, np.random.default_rng(seed), (0.7, 0.8))
        assert corrupted[-1].all(), seed


def test_only_parts_of_the_variation_are_kept():
    """A plain scaling of a box is a box; most results are not."""
    boxes = 0
    for seed in range(40):
        corrupted = shrink_or_stretch(BIG_ENOUGH["box"], np.random.default_rng(seed))
        rows, columns = corrupted.any(axis=1).sum(), corrupted.any(axis=0).sum()
        boxes += corrupted.sum() == rows * columns
    assert boxes < 4


@each_corruption
@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 4), dtype=bool), "0 pixels"),
        (np.ones((4, 4), dtype=np.uint8), "type uint8"),
        (np.ones((1, 4, 4), dtype=bool), r"shape \(1, 4, 4\)"),
    ],
)
def test_what_is_no_mask_is_refused(corrupt, mask, message):
    with pytest.raises(ValueError, match=message):
        corrupt(mask, np.random.default_rng(0))


@pytest.mark.parametrize("iou_range", [(0.0, 0.5), (0.8, 0.7), (0.5, 1.1), (0.5,), (0.1, 0.2, 0.3)])
def test_what_is_no_range_is_refused(iou_range):
    with pytest.raises(ValueError, match="0 < lowest <= highest <= 1"):
        check_iou_range(iou_range)
    with pytest.raises(ValueError, match="IoU range"):
        holes_and_patches(BIG_ENOUGH["box"], np.random.default_rng(0), iou_range)
