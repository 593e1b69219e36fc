"""Scores on rows of ten pixels, so that every number can be counted by eye."""

import pytest
import torch
from detectron2.data import MetadataCatalog

from rose_d2.reports.image_scores import (
    ImageSegments,
    WrongName,
    predicted_segments,
    score_image,
    true_segments,
)

NAMES = ["dog", "cat", "sky"]


def segments(rows, ignore=None, size=10):
    """From rows of (first pixel, end, class, score)."""
    masks = torch.zeros(len(rows), 1, size, dtype=torch.bool)
    for mask, (start, end, *_) in zip(masks, rows):
        mask[:, start:end] = True
    ignored = None
    if ignore:
        ignored = torch.zeros(1, size, dtype=torch.bool)
        ignored[:, slice(*ignore)] = True
    classes = [row[2] for row in rows]
    names = [NAMES[c] if c >= 0 else "blob" for c in classes]
    scores = [row[3] if len(row) > 3 else None for row in rows]
    return ImageSegments(masks, names, classes, [c < 2 for c in classes], scores, ignored)


def test_semantic_is_the_mean_over_classes_of_both():
    predicted = segments([(0, 6, 0), (6, 10, 1)])
    true = segments([(0, 4, 0), (4, 10, 2)])
    result = score_image("semantic", predicted, true)
    # dog 4 / 6; cat and sky are each on one side only.
    assert result.score == pytest.approx((4 / 6) / 3)
    assert result.wrong_names == [WrongName("cat", "sky")]
    assert result.summary == "1 of 2 classes present, 1 missed, 1 not there"


def test_semantic_leaves_out_ignored_pixels():
    predicted = segments([(0, 4, 0), (4, 10, 1)])
    true = segments([(0, 4, 0)], ignore=(4, 10))
    result = score_image("semantic", predicted, true)
    assert (result.score, result.wrong_names) == (1.0, [])


def test_instance_counts_found_false_and_missed():
    predicted = segments([(0, 2, 0, 0.9), (0, 2, 0, 0.8), (4, 6, 0, 0.7), (8, 10, -1, 0.6)])
    true = segments([(0, 2, 0), (4, 6, 1), (7, 8, 2)])
    result = score_image("instance", predicted, true)
    # One found; a double, a dog on a cat and a blob are false; cat and sky are missed.
    assert result.score == pytest.approx(2 * 1 / (2 * 1 + 3 + 2))
    assert result.summary == "1 of 3 found, 3 false"
    assert result.wrong_names == [WrongName("dog", "cat")]


def test_instance_at_half_overlap_is_found_and_below_it_is_not():
    true = segments([(0, 4, 0)])
    assert score_image("instance", segments([(0, 2, 0, 0.9)]), true).score == 1.0
    assert score_image("instance", segments([(3, 7, 0, 0.9)]), true).score == 0.0


def test_instance_in_a_crowd_is_no_mistake():
    predicted = segments([(0, 2, 0, 0.9), (5, 8, 0, 0.8)])
    true = segments([(0, 2, 0)], ignore=(6, 10))
    assert score_image("instance", predicted, true).summary == "1 of 1 found, 0 false"
    half_inside = segments([(0, 2, 0, 0.9), (4, 8, 0, 0.8)])
    assert score_image("instance", half_inside, true).summary == "1 of 1 found, 1 false"


def test_higher_score_chooses_first():
    # The worse one fits both objects, the better one only the first.
    predicted = segments([(1, 7, 0, 0.4), (0, 5, 0, 0.9)])
    true = segments([(0, 6, 0), (2, 10, 0)])
    assert score_image("instance", predicted, true).score == 1.0
    swapped = segments([(1, 7, 0, 0.9), (0, 5, 0, 0.4)])
    assert score_image("instance", swapped, true).score == 0.5


def test_panoptic_is_the_mean_quality_of_classes():
    predicted = segments([(0, 3, 0), (4, 6, 0), (6, 10, 2)])
    true = segments([(0, 4, 0), (6, 10, 2)])
    result = score_image("panoptic", predicted, true)
    # dog: IoU 3 / 4, one false; sky: 1.
    assert result.score == pytest.approx(((3 / 4) / 1.5 + 1.0) / 2)


def test_panoptic_needs_more_than_half_and_skips_void_and_unmapped():
    true = segments([(0, 4, 0)], ignore=(6, 10))
    assert score_image("panoptic", segments([(0, 2, 0)]), true).score == 0.0
    predicted = segments([(0, 4, 0), (6, 9, 1), (9, 10, -1)])
    assert score_image("panoptic", predicted, true).score == 1.0


def test_referring_is_the_iou_and_two_empty_masks_agree():
    assert score_image("referring", segments([(0, 6, 0)]), segments([(3, 9, 0)])).score == 3 / 9
    assert score_image("referring", segments([(0, 0, 0)]), segments([(0, 0, 0)])).score == 1.0


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_nothing_to_find(task):
    nothing = segments([])
    assert score_image(task, nothing, nothing).score == 1.0
    assert score_image(task, nothing, segments([(0, 4, 0)])).score == 0.0
    assert score_image(task, segments([(0, 4, 0, 0.9)]), nothing).score == 0.0


def test_sizes_must_agree():
    with pytest.raises(ValueError, match=r"size \(1, 10\) but the annotation \(1, 12\)"):
        score_image("semantic", segments([]), segments([], size=12))


@pytest.mark.parametrize(
    ("task", "kind"), [("panoptic", "coco_panoptic_seg"), ("semantic", "sem_seg")]
)
def test_perfect_predictions_score_one(scenes, perfect, task, kind):
    metadata = MetadataCatalog.get(scenes.names[kind])
    for sample in scenes.dicts[kind]:
        output = dict(perfect[sample["image_id"]])
        output["sem_seg_labels"] = output.pop("sem_seg").argmax(dim=0)
        predicted = predicted_segments(output, task, metadata, 0.0)
        result = score_image(task, predicted, true_segments(sample, task, metadata))
        assert (result.score, result.wrong_names) == (1.0, [])
