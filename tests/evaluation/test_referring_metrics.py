import math

import numpy as np
import pytest

from rose_d2.evaluation.referring import (
    SentenceScore,
    mask_overlap,
    metrics_by_kind,
    referring_metrics,
)

PRECISIONS = ["P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]


def _masks(*drawings):
    """Masks of one row from text: '#' is inside."""
    return [np.array([[pixel == "#" for pixel in drawing]]) for drawing in drawings]


def test_overlap_counts_pixels():
    answer, target = _masks("####..", "..###.")
    assert mask_overlap(answer, target) == (2, 5, 4)


def test_ignored_pixels_count_for_neither():
    answer, target, ignore = _masks("####..", "..###.", "##..#.")
    assert mask_overlap(answer, target, ignore) == (2, 2, 2)
    # Without what is ignored, nothing is left of this answer.
    assert mask_overlap(ignore, target, ignore) == (0, 2, 0)
    assert mask_overlap(ignore, ignore, ignore) == (0, 0, 0)


def test_metrics_by_hand():
    scores = [
        SentenceScore(1, 0, 6, 10, 6, 1, 1),
        SentenceScore(1, 1, 100, 100, 100, 1, 1),
        SentenceScore(2, 0, 0, 50, 10, 1, 0),
        SentenceScore(2, 1, 0, 0, 0, 1, 1),
    ]
    metrics = referring_metrics(scores)
    assert metrics["cIoU"] == pytest.approx(100 * 106 / 160)
    assert metrics["gIoU"] == pytest.approx(100 * (0.6 + 1 + 0 + 1) / 4)
    assert metrics["P@0.5"] == metrics["P@0.6"] == 75
    assert metrics["P@0.7"] == metrics["P@0.9"] == 50
    assert metrics["P@answer_patch"] == 75
    assert list(metrics) == ["cIoU", "gIoU", *PRECISIONS, "P@answer_patch"]


def test_samples_without_a_target_follow_gres():
    scores = [
        SentenceScore(1, 0, 0, 0, 0, 0),  # nothing to find, nothing answered
        SentenceScore(2, 0, 0, 30, 30, 0),  # nothing to find, something answered
        SentenceScore(3, 0, 0, 40, 40, 0),
        SentenceScore(4, 0, 80, 100, 90, 3),  # three objects
        SentenceScore(5, 0, 0, 30, 0, 1),  # one object, nothing answered
    ]
    metrics = referring_metrics(scores)
    assert metrics["gIoU"] == pytest.approx(100 * (1 + 0 + 0 + 0.8 + 0) / 5)
    # A wrong answer to a sentence about nothing adds to the union only.
    assert metrics["cIoU"] == pytest.approx(100 * 80 / (30 + 40 + 100 + 30))
    assert metrics["N-acc"] == pytest.approx(100 / 3)
    assert metrics["T-acc"] == 50
    # Of the two samples with a target.
    assert metrics["P@0.8"] == 50 and metrics["P@0.9"] == 0
    assert list(metrics) == ["cIoU", "gIoU", *PRECISIONS, "N-acc", "T-acc"]


def test_only_targets_can_have_an_answering_patch():
    scores = [SentenceScore(1, 0, 0, 0, 0, 0, 0), SentenceScore(2, 0, 5, 9, 5, 2, 1)]
    assert referring_metrics(scores)["P@answer_patch"] == 100
    unnamed = [SentenceScore(3, 0, 5, 9, 5, 1, -1), *scores]
    assert "P@answer_patch" not in referring_metrics(unnamed)


def test_without_any_target_there_is_no_precision():
    metrics = referring_metrics([SentenceScore(1, 0, 0, 0, 0, 0)])
    assert metrics["gIoU"] == metrics["N-acc"] == 100
    assert all(math.isnan(metrics[name]) for name in ("cIoU", "T-acc", "P@0.5"))
    assert "P@answer_patch" not in metrics


def test_no_samples_give_nan():
    metrics = referring_metrics([])
    assert list(metrics) == ["cIoU", "gIoU", *PRECISIONS]
    assert all(math.isnan(value) for value in metrics.values())


def test_metrics_do_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 10**6, size=(500, 2)).tolist()
    scores = [SentenceScore(i, 0, a, a + b, a, i % 3) for i, (a, b) in enumerate(pixels)]
    assert referring_metrics(scores) == referring_metrics(scores[::-1])


def _plain_metrics(answers, targets, ignores, has_target):
    """The definitions once more, on stacked masks (N, H, W)."""
    answers, targets = answers & ~ignores, targets & ~ignores
    inter = (answers & targets).sum((1, 2)).astype(float)
    union = (answers | targets).sum((1, 2)).astype(float)
    iou = np.divide(inter, union, out=np.ones_like(inter), where=union > 0)
    said_nothing = ~answers.any((1, 2))
    return {
        "cIoU": 100 * inter.sum() / union.sum(),
        "gIoU": 100 * iou.mean(),
        **{p: 100 * (iou[has_target] >= float(p[2:])).mean() for p in PRECISIONS},
        "N-acc": 100 * said_nothing[~has_target].mean(),
        "T-acc": 100 * (~said_nothing[has_target]).mean(),
    }


@pytest.mark.parametrize("seed", range(5))
def test_an_independent_implementation_agrees_on_random_masks(seed):
    rng = np.random.default_rng(seed)
    num = 60
    shape = (num, 17, 23)
    targets, ignores = rng.random(shape) < 0.4, rng.random(shape) < 0.1
    flipped = rng.random(shape) < rng.random((num, 1, 1)) * 0.6
    has_target, answered = rng.random(num) < 0.7, rng.random(num) < 0.7
    targets &= has_target[:, None, None]
    answers = (targets ^ flipped) & answered[:, None, None]
    scores = [
        SentenceScore(i, 0, *mask_overlap(*masks), int(has_target[i]))
        for i, masks in enumerate(zip(answers, targets, ignores, strict=True))
    ]
    expected = _plain_metrics(answers, targets, ignores, has_target)
    assert referring_metrics(scores) == pytest.approx(expected, abs=1e-9)
    assert all(0 < value < 100 for key, value in expected.items() if key != "P@0.9")


def test_kinds_of_expressions_are_scored_apart():
    scores = [
        SentenceScore(1, 0, 6, 10, 6, kind="position"),
        SentenceScore(1, 1, 4, 10, 6, kind="position"),
        SentenceScore(2, 0, 30, 30, 30, kind="name"),
    ]
    assert metrics_by_kind(scores) == {
        "cIoU-position": 50,
        "P@0.5-position": 50,
        "cIoU-name": 100,
        "P@0.5-name": 100,
    }
    assert metrics_by_kind(scores[:2]) == {}
    patches = [score._replace(patch_right=int(score.kind == "name")) for score in scores]
    by_kind = metrics_by_kind(patches)
    assert (by_kind["P@answer_patch-position"], by_kind["P@answer_patch-name"]) == (0, 100)
