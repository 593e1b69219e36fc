import pytest
import torch
from detectron2.data import MetadataCatalog

from rose_d2.reports.image_scores import predicted_segments, true_segments


def metadata(scenes, kind):
    return MetadataCatalog.get(scenes.names[kind])


def test_true_instances_leave_crowds_to_the_ignored_pixels(scenes):
    true = true_segments(scenes.dicts["coco"][0], "instance", metadata(scenes, "coco"))
    assert true.names == ["dog", "cat"]
    assert true.classes == [0, 1]
    assert true.masks.flatten(1).sum(dim=1).tolist() == [200, 240]
    assert torch.equal(true.ignore, torch.from_numpy(scenes.ids[1] == 14))


def test_true_labels_are_one_segment_per_class(scenes):
    true = true_segments(scenes.dicts["sem_seg"][1], "semantic", metadata(scenes, "sem_seg"))
    assert true.names == ["cat", "grass"]
    assert true.is_thing == [True, False]
    assert true.masks[0].sum() == 40 * 12 + 30 * 13
    assert not true.ignore.any()


def test_true_panoptic_segments_leave_void_and_crowd(scenes):
    kind = "coco_panoptic_seg"
    true = true_segments(scenes.dicts[kind][0], "panoptic", metadata(scenes, kind))
    assert sorted(true.names) == ["cat", "dog", "grass", "sky"]
    ids = torch.from_numpy(scenes.ids[1])
    assert torch.equal(true.ignore, (ids == 0) | (ids == 14))


def test_true_answer_is_the_target_of_the_sentence(scenes):
    true = true_segments(scenes.dicts["refcoco"][2], "referring", metadata(scenes, "refcoco"))
    assert true.names == ["it"]
    assert torch.equal(true.masks[0], torch.from_numpy(scenes.ids[1] == 13))


def test_predicted_instances_are_those_above_the_score(scenes, instances_from):
    ids = scenes.ids[1]
    rows = [(ids == 12, "puppy", 0, 0.8), (ids == 13, "cat", 1, 0.4)]
    output = {"instances": instances_from(ids, rows)}
    shown = predicted_segments(output, "instance", metadata(scenes, "coco"), 0.5)
    assert shown.names == ["puppy"]
    assert shown.scores == [pytest.approx(0.8)]


def test_predicted_labels_without_a_class_have_no_segment(scenes):
    labels = torch.full((4, 6), 4, dtype=torch.int16)  # no object
    labels[:2] = 2
    output = {"sem_seg_labels": labels}
    shown = predicted_segments(output, "semantic", metadata(scenes, "sem_seg"), 0.5)
    assert shown.names == ["sky"]
    assert shown.masks.sum() == 12


def test_predicted_panoptic_segments(scenes, perfect):
    meta = metadata(scenes, "coco_panoptic_seg")
    shown = predicted_segments(perfect[2], "panoptic", meta, 0.5)
    assert shown.names == ["grass", "cat", "cat"]
    assert shown.is_thing == [False, True, True]
    assert shown.masks.sum() == 50 * 30


def test_predicted_answer(scenes):
    output = {"ref_seg": torch.ones(4, 6, dtype=torch.bool), "ref_score": 0.25}
    shown = predicted_segments(output, "referring", metadata(scenes, "refcoco"), 0.5)
    assert (len(shown), shown.scores) == (1, [0.25])


def test_predictions_of_another_task_are_refused(scenes):
    with pytest.raises(ValueError, match="have no 'instances', only ref_seg"):
        predicted_segments({"ref_seg": None}, "instance", metadata(scenes, "coco"), 0.5)


def test_image_without_annotations_is_refused(scenes):
    sample = {"file_name": "a.jpg", "height": 4, "width": 6}
    with pytest.raises(ValueError, match="neither annotations nor panoptic segments"):
        true_segments(sample, "panoptic", metadata(scenes, "coco_panoptic_seg"))
