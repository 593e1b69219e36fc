from functools import partial

import torch
from detectron2.structures import Boxes, Instances

from rose_d2.layers.masks import masks_to_boxes
from rose_d2.modeling.postprocessing import semantic_labels
from rose_d2.refinement import tasks
from rose_d2.refinement.regions import RegionRefinement
from rose_d2.refinement.tasks import merge_instances, merge_referring
from rose_d2.structures.category_names import CategoryNames

SIZE = (4, 6)


EMPTY = torch.zeros(SIZE, dtype=torch.bool)
NON_OBJECT = 0.05
merge_semantic = partial(tasks.merge_semantic, non_object_score=NON_OBJECT)


def columns(first, end):
    mask = EMPTY.clone()
    mask[:, first:end] = True
    return mask


def answer(mask, class_id=0, name="dog", score=0.5):
    masks = mask[None]
    instances = Instances(
        SIZE,
        pred_masks=masks,
        pred_boxes=masks_to_boxes(masks),
        scores=torch.tensor([score]),
        pred_classes=torch.tensor([class_id]),
        pred_category_names=CategoryNames([name]),
        name_scores=torch.tensor([0.1]),
    )
    return {"ref_seg": mask, "ref_score": score, "ref_patch": 7, "instances": instances}


def region(situation, prior, position, class_id=-1):
    return RegionRefinement(situation, prior, EMPTY, position, "some name", class_id)


def scores(*channels):
    """Dog (0), cat (1) and sky (2); columns of each with a score."""
    sem_seg = torch.zeros(3, *SIZE)
    for class_id, first, end, score in channels:
        sem_seg[class_id, :, first:end] = score
    return sem_seg


def labels(sem_seg):
    return semantic_labels(sem_seg, NON_OBJECT)[0].tolist()


def test_mask_replaces_the_channel_whatever_the_answer_is_called():
    sem_seg = scores((0, 0, 2, 0.9), (2, 2, 6, 0.8))
    merged = merge_semantic(
        sem_seg, [region("mask", columns(0, 2), 0)], [answer(columns(1, 4), class_id=-1)]
    )
    assert labels(merged) == [0, 0, 0, 0, 2, 2]
    assert labels(sem_seg) == [0, 0, 2, 2, 2, 2]


def test_what_a_repaired_mask_gives_up_goes_to_the_best_other_class():
    """Columns 0 to 3 were dog; the sky beats "no object" in column 1, the cat does not in 2."""
    sem_seg = scores((0, 0, 4, 0.9), (2, 1, 2, 0.06), (1, 2, 3, 0.04))
    merged = merge_semantic(
        sem_seg, [region("mask", columns(0, 4), 0)], [answer(columns(3, 5), class_id=0)]
    )
    assert labels(merged) == [0, 2, 0, 0, 0, 3]


def test_category_is_erased_at_the_prior_and_written_under_the_new_name():
    sem_seg = scores((1, 0, 2, 0.9), (1, 4, 6, 0.9))
    merged = merge_semantic(
        sem_seg,
        [region("category", columns(0, 2), 0, class_id=1)],
        [answer(columns(0, 3), class_id=0)],
    )
    assert labels(merged) == [0, 0, 0, 3, 1, 1]
    assert merged[1, :, :2].max() == 0


def test_category_answered_with_an_unmapped_name_is_erased_and_not_written():
    merged = merge_semantic(
        scores((1, 0, 2, 0.9)),
        [region("category", columns(0, 2), 0, class_id=1)],
        [answer(columns(0, 2), class_id=-1)],
    )
    assert labels(merged) == [3] * 6


def test_missed_adds_under_the_generated_name_and_keeps_what_is_there():
    merged = merge_semantic(
        scores((0, 0, 1, 0.9), (2, 1, 6, 0.99)),
        [region("missed", None, 1)],
        [answer(columns(4, 6), class_id=0)],
    )
    assert labels(merged) == [0, 2, 2, 2, 0, 0]


def test_an_empty_answer_changes_nothing():
    sem_seg = scores((0, 0, 2, 0.9))
    merged = merge_semantic(sem_seg, [region("mask", columns(0, 2), 0)], [answer(EMPTY)])
    assert torch.equal(merged, sem_seg)


def test_the_order_of_the_regions_does_not_matter():
    """Cat's channel is replaced before the misnamed part is taken out of it."""
    sem_seg = scores((1, 0, 4, 0.9))
    regions = [region("category", columns(0, 2), 0, class_id=1), region("mask", columns(0, 4), 1)]
    answers = [answer(columns(0, 2), class_id=0, score=0.4), answer(columns(0, 5), score=0.9)]
    merged = merge_semantic(sem_seg, regions, answers)
    assert labels(merged) == [0, 0, 1, 1, 1, 3]
    assert torch.equal(merged, merge_semantic(sem_seg, regions[::-1], answers[::-1]))


def test_of_overlapping_answers_the_surer_wins():
    regions = [region("missed", None, 0), region("missed", None, 1)]
    answers = [answer(columns(0, 4), 0, score=0.3), answer(columns(2, 6), 1, score=0.6)]
    assert labels(merge_semantic(scores(), regions, answers)) == [0, 0, 1, 1, 1, 1]


def predictions():
    masks = torch.stack([columns(0, 1), columns(2, 3), columns(4, 5)])
    return Instances(
        SIZE,
        pred_masks=masks,
        pred_boxes=masks_to_boxes(masks),
        scores=torch.tensor([0.9, 0.8, 0.7]),
        pred_classes=torch.tensor([2, 1, 0]),
        pred_category_names=CategoryNames(["sky", "cat", "dog"]),
        name_scores=torch.tensor([0.5, 0.6, 0.7]),
        mapping_rules=torch.tensor([0, 0, 0]),
    )


def test_mask_and_name_of_an_instance_are_replaced_and_its_score_kept():
    before = predictions()
    regions = [region("category", columns(4, 5), 2), region("mask", columns(0, 1), 0)]
    merged = merge_instances(
        before, regions, [answer(columns(3, 6), 1, "cat", 0.1), answer(columns(0, 2), 2, "sky")]
    )
    assert torch.equal(
        merged.pred_masks, torch.stack([columns(0, 2), columns(2, 3), columns(3, 6)])
    )
    assert merged.pred_boxes.tensor.tolist() == [[0, 0, 2, 4], [2, 0, 3, 4], [3, 0, 6, 4]]
    assert isinstance(merged.pred_boxes, Boxes)
    assert merged.pred_classes.tolist() == [2, 1, 1]
    assert list(merged.pred_category_names) == ["sky", "cat", "cat"]
    assert torch.equal(merged.scores, before.scores)
    assert torch.allclose(merged.name_scores, torch.tensor([0.1, 0.6, 0.1]))
    assert list(before.pred_category_names) == ["sky", "cat", "dog"]
    assert before.pred_classes.tolist() == [2, 1, 0]


def test_fields_that_answers_lack_are_left_out():
    regions = [region("mask", columns(0, 1), 0)]
    assert not merge_instances(predictions(), regions, [answer(columns(0, 2))]).has("mapping_rules")


def test_an_instance_whose_answer_is_empty_stays():
    before = predictions()
    assert merge_instances(before, [region("mask", columns(0, 1), 0)], [answer(EMPTY)]) is before


def test_a_referring_answer_is_replaced_as_a_whole():
    output = {**answer(columns(0, 1), score=0.9), "text": "kept"}
    regions = [region("mask", columns(0, 1), 0)]
    merged = merge_referring(output, regions, [answer(columns(0, 3), score=0.2)])
    assert torch.equal(merged["ref_seg"], columns(0, 3))
    assert merged["ref_score"] == 0.2
    assert merged["text"] == "kept"
    assert merge_referring(output, regions, [answer(EMPTY)]) is output
    assert merge_referring(output, [], []) is output
