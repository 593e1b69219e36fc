import torch

from rose_d2.evaluation.ground_truth import decode_segmentation, load_objects


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
