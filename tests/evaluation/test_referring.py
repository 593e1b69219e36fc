import json
import logging
import math

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from rose_d2.data.datasets.refer_files import referring_samples
from rose_d2.evaluation import ground_truth
from rose_d2.evaluation.referring import (
    RefCOCOEvaluator,
    SentenceScore,
    mask_overlap,
    metrics_by_kind,
    referring_metrics,
)
from rose_d2.structures.patches import PatchGrid

GRID = PatchGrid(6, 10)
# sentence id -> segment drawn in conftest
TARGETS = {0: 12, 1: 12, 2: 13, 3: 21, 4: 22}
PRECISIONS = ["P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"]


@pytest.fixture
def evaluator(scenes):
    evaluator = RefCOCOEvaluator(
        scenes.names["refcoco"], patch_grid=GRID, output_dir=str(scenes.root / "out")
    )
    evaluator.reset()
    return evaluator


@pytest.fixture
def samples(scenes):
    return scenes.dicts["refcoco"]


def _truth(scenes, sample):
    return torch.as_tensor(scenes.ids[sample["image_id"]] == TARGETS[sample["sent_id"]])


def _answer_all(evaluator, scenes, change=lambda sample, mask: mask):
    for sample in scenes.dicts["refcoco"]:
        mask = change(sample, _truth(scenes, sample))
        evaluator.process([sample], [{"ref_seg": mask}])
    return evaluator.evaluate()["referring"]


def test_ground_truth_scores_100(evaluator, scenes):
    results = _answer_all(evaluator, scenes)
    assert set(results) == {"cIoU", "gIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9"}
    assert all(value == 100 for value in results.values())


def test_sentence_scores_are_written(evaluator, scenes):
    _answer_all(evaluator, scenes)
    scores = json.loads((scenes.root / "out" / "referring_scores.json").read_text())
    assert len(scores) == 5
    pixels = {"intersection": 200, "union": 200, "answer": 200}
    rest = {"num_targets": 1, "patch_right": -1, "kind": "name"}
    assert scores[0] == {"ref_id": 100, "sent_id": 0, **pixels, **rest}


def test_no_prediction_is_zero(evaluator, scenes):
    results = _answer_all(evaluator, scenes, lambda _, mask: torch.zeros_like(mask))
    assert all(value == 0 for value in results.values())


def test_metrics_agree_with_an_independent_formula_on_random_masks(evaluator, scenes):
    rng = np.random.default_rng(0)
    masks = {s: rng.random((60, 60)) > 0.3 for s in TARGETS}

    def change(sample, truth):
        height, width = truth.shape
        return truth & torch.as_tensor(masks[sample["sent_id"]][:height, :width])

    results = _answer_all(evaluator, scenes, change)
    inter, union = [], []
    for sample in scenes.dicts["refcoco"]:
        truth = _truth(scenes, sample).numpy()
        answer = change(sample, torch.as_tensor(truth)).numpy()
        inter.append(np.logical_and(truth, answer).sum())
        union.append(np.logical_or(truth, answer).sum())
    ious = np.array(inter) / np.array(union)
    assert results["cIoU"] == pytest.approx(100 * sum(inter) / sum(union), abs=1e-9)
    assert results["gIoU"] == pytest.approx(100 * ious.mean(), abs=1e-9)
    assert results["P@0.7"] == pytest.approx(100 * (ious >= 0.7).mean(), abs=1e-9)


# Scene 1 is 40 x 60, the view 60 x 60 in patches of 10: the cat's centre (36, 25) lies at
# (36, 37.5) of the view, in row 3, column 3. Its 3 x 3 window is rows and columns 2 to 4.
@pytest.mark.parametrize(("patch", "right"), [(14, 100), (28, 100), (9, 0), (29, 0), (-1, 0)])
def test_answer_patch_must_lie_in_the_window_of_the_square_view(evaluator, scenes, patch, right):
    cat_only = scenes.dicts["refcoco"][2:3]
    evaluator._samples = {"101-2": cat_only[0]}
    evaluator.process(cat_only, [{"ref_seg": _truth(scenes, cat_only[0]), "ref_patch": patch}])
    assert evaluator.evaluate()["referring"]["P@answer_patch"] == right


def test_a_missing_sentence_is_refused(evaluator, scenes, samples):
    for sample in samples[1:]:
        evaluator.process([sample], [{"ref_seg": _truth(scenes, sample)}])
    with pytest.raises(ValueError, match=r"1 were not answered \(100-0\) and 0 more than once"):
        evaluator.evaluate()


def test_a_double_sentence_is_refused(evaluator, scenes, samples):
    for sample in [*samples, samples[4]]:
        evaluator.process([sample], [{"ref_seg": _truth(scenes, sample)}])
    with pytest.raises(ValueError, match=r"1 more than once \(201-4\)"):
        evaluator.evaluate()


def test_a_strange_sentence_is_refused(evaluator, scenes, samples):
    with pytest.raises(ValueError, match="100-9"):
        evaluator.process([{**samples[0], "sent_id": 9}], [{"ref_seg": torch.ones(40, 60)}])


def test_an_answer_of_another_size_is_refused(evaluator, samples):
    with pytest.raises(ValueError, match=r"\(60, 60\).*\(40, 60\)"):
        evaluator.process(samples[:1], [{"ref_seg": torch.ones(60, 60)}])


def test_a_dataset_with_double_keys_is_refused(scenes, samples):
    samples.append(samples[0])
    with pytest.raises(ValueError, match=r"more than once: 100-0"):
        RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=GRID)


def test_several_targets_are_one_union(scenes, samples):
    samples[0]["target_indices"] = [0, 1]
    evaluator = RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=GRID)
    evaluator._samples = {"100-0": samples[0]}
    both = torch.as_tensor(np.isin(scenes.ids[1], [12, 13]))
    cat_row, cat_column = 37 // 10, 36 // 10  # the cat's centre (36, 25) is (36, 37.5) of the view
    output = {"ref_seg": both, "ref_patch": cat_row * 6 + cat_column}
    evaluator.process(samples[:1], [output])
    assert evaluator.evaluate()["referring"] == dict.fromkeys(
        ["cIoU", "gIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "P@answer_patch"], 100.0
    )


def test_scores_of_other_processes_are_gathered(evaluator, scenes, samples, monkeypatch):
    other = [SentenceScore(200, 3, 0, 480, 9, 1, 1), SentenceScore(201, 4, 390, 390, 390, 1, 0)]
    monkeypatch.setattr(comm, "all_gather", lambda scores: [scores, other])
    for sample in samples[:3]:
        evaluator.process([sample], [{"ref_seg": _truth(scenes, sample), "ref_patch": -1}])
    results = evaluator.evaluate()["referring"]
    assert results["gIoU"] == 80 and results["P@answer_patch"] == 20
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}


def test_an_incomplete_result_is_refused_on_every_process(evaluator, scenes, samples, monkeypatch):
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    evaluator.process(samples[:1], [{"ref_seg": _truth(scenes, samples[0])}])
    with pytest.raises(ValueError, match=r"has 5 samples; 4 were not answered"):
        evaluator.evaluate()


def test_per_reference_is_another_task_with_other_keys(scenes, samples, tmp_path):
    evaluator = RefCOCOEvaluator(
        scenes.names["refcoco"], patch_grid=GRID, protocol="per_ref", output_dir=str(tmp_path)
    )
    evaluator.reset()
    merged = referring_samples(samples, "per_ref")
    assert [(s["ref_id"], s["sent_id"]) for s in merged] == [
        (100, -1),
        (101, -1),
        (200, -1),
        (201, -1),
    ]
    # The dog of reference 100 has two sentences and is now missed once of four times, not twice.
    for sample, mask in zip(merged, [12, 13, 21, 22], strict=True):
        answer = torch.as_tensor(scenes.ids[sample["image_id"]] == mask)
        answer &= sample["ref_id"] != 100
        evaluator.process([sample], [{"ref_seg": answer}])
    results = evaluator.evaluate()
    assert list(results) == ["referring_per_ref"]
    assert results["referring_per_ref"]["gIoU"] == 75
    assert len(json.loads((tmp_path / "referring_per_ref_scores.json").read_text())) == 4
    with pytest.raises(ValueError, match=r"100-0, which dataset .*REFERRING.PROTOCOL"):
        evaluator.process(samples[:1], [{"ref_seg": answer}])


def test_an_unknown_protocol_is_refused(scenes):
    with pytest.raises(ValueError, match="PROTOCOL is 'per_image'"):
        RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=GRID, protocol="per_image")


@pytest.fixture
def general(scenes, samples):
    """An evaluator whose first two sentences are about nothing and whose third about two."""
    samples[0]["target_indices"] = samples[1]["target_indices"] = []
    samples[2]["target_indices"] = [0, 1]
    evaluator = RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=GRID, distributed=False)
    evaluator.reset()
    return evaluator


def _process(evaluator, samples, scenes, segments, **more):
    for sample, drawn in zip(samples, segments, strict=True):
        answer = torch.as_tensor(np.isin(scenes.ids[sample["image_id"]], drawn))
        evaluator.process([sample], [{"ref_seg": answer, **more}])


def test_sentences_about_nothing_and_about_several(general, scenes, samples, caplog):
    # Right, wrong with the dog's 200 pixels, only the cat, right, nothing.
    _process(general, samples, scenes, [[], [12], [13], [21], []], ref_patch=-1)
    with caplog.at_level(logging.WARNING):
        results = general.evaluate()["referring"]
    cat, first, second = (int((scenes.ids[i] == s).sum()) for i, s in ((1, 13), (2, 21), (2, 22)))
    assert (results["N-acc"], results["T-acc"]) == (50, pytest.approx(200 / 3))
    assert results["gIoU"] == pytest.approx(100 * (1 + 0 + cat / (cat + 200) + 1 + 0) / 5)
    union = 0 + 200 + (cat + 200) + first + second
    assert results["cIoU"] == pytest.approx(100 * (cat + first) / union)
    assert results["P@0.5"] == pytest.approx(200 / 3)
    assert results["P@answer_patch"] == 0
    assert not caplog.messages


def test_a_model_that_always_answers_is_pointed_out(general, scenes, samples, caplog):
    _process(general, samples, scenes, [[12], [12], [12, 13], [21], [22]])
    with caplog.at_level(logging.WARNING):
        results = general.evaluate()["referring"]
    assert (results["N-acc"], results["T-acc"], results["P@0.9"]) == (0, 100, 100)
    assert "2 of 5 samples" in caplog.text and "MULTI_TARGET True" in caplog.text


def test_ignored_pixels_are_left_out(scenes, samples):
    for sample in samples:
        sample["ignore_annotations"] = []
    # Half of the dog's rows, and the whole cat.
    half = [0, 0, 60, 0, 60, 9, 0, 9]
    samples[0]["ignore_annotations"] = [{"segmentation": [half]}, samples[2]["annotations"][1]]
    evaluator = RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=GRID, distributed=False)
    evaluator.reset()
    # The first answer takes the cat for free and loses the dog's ignored half for free.
    _process(evaluator, samples, scenes, [[12, 13], [12, 13], [13], [21], [22]])
    first, second = evaluator._scores[:2]
    cat = int((scenes.ids[1] == 13).sum())
    assert first[2:5] == (100, 100, 100)
    assert second[2:5] == (200, 200 + cat, 200 + cat)


def test_sentences_of_one_object_decode_it_once(evaluator, scenes, samples, monkeypatch):
    decoded = []
    module = "rose_d2.evaluation.ground_truth.decode_segmentation"
    decode = ground_truth.decode_segmentation
    monkeypatch.setattr(module, lambda a, *size: decoded.append(a["id"]) or decode(a, *size))
    results = _answer_all(evaluator, scenes)
    assert decoded == [12, 13, 21, 22]
    assert results["gIoU"] == 100


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
        SentenceScore(2, 1, 0, 0, 0, 1, 1),  # a target without a pixel is never found
    ]
    metrics = referring_metrics(scores)
    assert metrics["cIoU"] == pytest.approx(100 * 106 / 160)
    assert metrics["gIoU"] == pytest.approx(100 * (0.6 + 1 + 0 + 1) / 4)
    assert metrics["P@0.5"] == metrics["P@0.6"] == 50
    assert metrics["P@0.7"] == metrics["P@0.9"] == 25
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
