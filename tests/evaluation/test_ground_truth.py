import numpy as np
import pytest
import torch

from rose_d2.evaluation.ground_truth import ReferringTarget, decode_segmentation, load_objects
from rose_d2.structures.patches import PatchGrid

DOG, CAT = (4, 6, 20, 30), (30, 10, 50, 20)


def test_annotations_without_the_crowd(scenes):
    objects = load_objects(scenes.dicts["coco"][0])
    assert objects.classes == [0, 1] and objects.is_stuff == [False, False]
    drawn = torch.as_tensor(scenes.ids[1])
    assert torch.equal(objects.masks, torch.stack([drawn == 12, drawn == 13]))


def test_segments_of_one_stuff_class_are_one_object(scenes):
    sample = scenes.dicts["coco_panoptic_seg"][0]
    sample["segments_info"][0]["category_id"] = 3
    objects = load_objects(sample)
    drawn = torch.as_tensor(scenes.ids[1])
    assert list(zip(objects.classes, objects.is_stuff)) == [(3, True), (0, False), (1, False)]
    assert torch.equal(objects.masks[0], (drawn == 10) | (drawn == 11))


def test_a_dict_without_objects(scenes):
    assert load_objects({"height": 2, "width": 2}) is None
    assert len(load_objects({"height": 2, "width": 2, "annotations": []})) == 0


def test_polygon_and_missing_segmentation():
    square = {"segmentation": [[1, 1, 3, 1, 3, 3, 1, 3]]}
    mask = decode_segmentation(square, 4, 5)
    assert mask.shape == (4, 5) and mask.sum() == 4 and mask[1:3, 1:3].all()
    assert not decode_segmentation({}, 4, 5).any()


def _box(left, top, right, bottom, **more):
    polygon = [left, top, right, top, right, bottom, left, bottom]
    return {"segmentation": [polygon], "category_id": 0, "iscrowd": 0, **more}


def _sample(*annotations, targets=(0,), **more):
    size = {"height": 40, "width": 60}
    return {**size, "annotations": list(annotations), "target_indices": list(targets), **more}


def _drawn(*boxes):
    mask = np.zeros((40, 60), dtype=bool)
    for left, top, right, bottom in boxes:
        mask[top:bottom, left:right] = True
    return mask


@pytest.mark.parametrize("targets", [(), (0,), (1,), (0, 1)])
def test_the_target_is_the_union_of_its_objects(targets):
    target = ReferringTarget(_sample(_box(*DOG), _box(*CAT), targets=targets))
    assert len(target) == len(targets)
    assert np.array_equal(target.mask, _drawn(*[(DOG, CAT)[i] for i in targets]))
    assert target.ignore is None


def test_a_crowd_is_a_target_like_any():
    target = ReferringTarget(_sample(_box(*DOG, iscrowd=1)))
    assert np.array_equal(target.mask, _drawn(DOG))


def test_ignored_regions_are_joined():
    ignored = [_box(0, 0, 10, 10), _box(5, 5, 12, 40)]
    target = ReferringTarget(_sample(_box(*DOG), ignore_annotations=ignored))
    assert np.array_equal(target.ignore, _drawn((0, 0, 10, 10), (5, 5, 12, 40)))
    assert np.array_equal(target.mask, _drawn(DOG))
    assert ReferringTarget(_sample(_box(*DOG), ignore_annotations=[])).ignore is None


def test_it_fits_sentences_of_the_same_objects_only():
    sample = _sample(_box(*DOG), _box(*CAT))
    target = ReferringTarget(sample)
    assert target.fits({**sample, "target_indices": [0], "sent_id": 4})
    assert not target.fits({**sample, "target_indices": [1]})
    assert not target.fits({**sample, "annotations": [_box(*CAT)]})
    assert not target.fits({**sample, "ignore_annotations": [_box(*CAT)]})


@pytest.mark.parametrize("iscrowd", [0, 1])
def test_window_at_the_border_shifts_inward(iscrowd):
    corner = ReferringTarget(_sample(_box(57, 0, 60, 3, iscrowd=iscrowd)))
    patches = corner.window_patches(PatchGrid(6, 10), 3)
    assert patches == {3, 4, 5, 9, 10, 11, 15, 16, 17}
    assert corner.window_patches(PatchGrid(6, 10), 1) == {5}


def test_a_target_between_the_pixels_of_the_view_still_has_a_window():
    # The dot is 1 x 1 of 60 x 40, a pixel of the view 7.5 x 5.
    dot = ReferringTarget(_sample(_box(59, 39, 60, 40)))
    assert dot.window_patches(PatchGrid(4, 2), 3) == {5, 6, 7, 9, 10, 11, 13, 14, 15}


def test_every_object_has_its_window():
    # Centres (12, 18) and (40, 15) of 60 x 40 are (12, 27) and (40, 22.5) of the view.
    both = ReferringTarget(_sample(_box(*DOG), _box(*CAT), targets=(0, 1)))
    assert both.window_patches(PatchGrid(6, 10), 1) == {2 * 6 + 1, 2 * 6 + 4}
    assert ReferringTarget(_sample(targets=())).window_patches(PatchGrid(6, 10), 3) == set()
