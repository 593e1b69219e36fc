import json
import math

import numpy as np
import pytest
import torch
from detectron2.utils import comm

from rose_d2.evaluation.referring_evaluation import (
    RefCOCOEvaluator,
    SentenceScore,
    referring_metrics,
)
from rose_d2.structures.patch_grid import PatchGrid

# sentence id -> segment drawn in conftest
TARGETS = {0: 12, 1: 12, 2: 13, 3: 21, 4: 22}


@pytest.fixture
def evaluator(scenes):
    evaluator = RefCOCOEvaluator(
        scenes.names["refcoco"], patch_grid=PatchGrid(6, 10), output_dir=str(scenes.root / "out")
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
    expected = {"ref_id": 100, "sent_id": 0, "intersection": 200, "union": 200}
    assert scores[0] == {**expected, "patch_right": -1}


def test_no_prediction_is_zero(evaluator, scenes):
    results = _answer_all(evaluator, scenes, lambda _, mask: torch.zeros_like(mask))
    assert all(value == 0 for value in results.values())


def test_metrics_by_hand():
    scores = [
        SentenceScore(1, 0, 6, 10, 1),
        SentenceScore(1, 1, 100, 100, 1),
        SentenceScore(2, 0, 0, 50, 0),
        SentenceScore(2, 1, 0, 0, 1),
    ]
    metrics = referring_metrics(scores)
    assert metrics["cIoU"] == pytest.approx(100 * 106 / 160)
    assert metrics["gIoU"] == pytest.approx(100 * (0.6 + 1 + 0 + 1) / 4)
    assert metrics["P@0.5"] == metrics["P@0.6"] == 75
    assert metrics["P@0.7"] == metrics["P@0.9"] == 50
    assert metrics["P@answer_patch"] == 75


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


def test_metrics_do_not_depend_on_the_order():
    rng = np.random.default_rng(1)
    pixels = rng.integers(1, 10**6, size=(500, 2)).tolist()
    scores = [SentenceScore(i, 0, a, a + b, 0) for i, (a, b) in enumerate(pixels)]
    assert referring_metrics(scores) == referring_metrics(scores[::-1])


def test_no_sentences_give_nan():
    assert all(math.isnan(value) for value in referring_metrics([]).values())


# Scene 1 is 40 x 60, the view 60 x 60 in patches of 10: the cat's centre (36, 25) lies at
# (36, 37.5) of the view, in row 3, column 3. Its 3 x 3 window is rows and columns 2 to 4.
@pytest.mark.parametrize(("patch", "right"), [(14, 100), (28, 100), (9, 0), (29, 0), (-1, 0)])
def test_answer_patch_must_lie_in_the_window_of_the_square_view(evaluator, scenes, patch, right):
    cat_only = scenes.dicts["refcoco"][2:3]
    evaluator._samples = {(101, 2): cat_only[0]}
    evaluator.process(cat_only, [{"ref_seg": _truth(scenes, cat_only[0]), "ref_patch": patch}])
    assert evaluator.evaluate()["referring"]["P@answer_patch"] == right


def _box_sample(left, top, right, bottom, **more):
    polygon = [left, top, right, top, right, bottom, left, bottom]
    annotation = {"segmentation": [polygon], "category_id": 0, "iscrowd": 0, **more}
    return {"height": 40, "width": 60, "annotations": [annotation], "target_indices": [0]}


@pytest.mark.parametrize("iscrowd", [0, 1])
def test_window_at_the_border_shifts_inward(evaluator, iscrowd):
    corner = _box_sample(57, 0, 60, 3, iscrowd=iscrowd)
    assert evaluator._window_patches(corner) == {3, 4, 5, 9, 10, 11, 15, 16, 17}


def test_a_target_between_the_pixels_of_the_view_still_has_a_window(scenes):
    evaluator = RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=PatchGrid(4, 2))
    # The dot is 1 x 1 of 60 x 40, a pixel of the view 7.5 x 5.
    assert evaluator._window_patches(_box_sample(59, 39, 60, 40)) == {
        5,
        6,
        7,
        9,
        10,
        11,
        13,
        14,
        15,
    }


def test_a_missing_sentence_is_refused(evaluator, scenes, samples):
    for sample in samples[1:]:
        evaluator.process([sample], [{"ref_seg": _truth(scenes, sample)}])
    with pytest.raises(
        ValueError, match=r"1 were not answered \(\(100, 0\)\) and 0 more than once"
    ):
        evaluator.evaluate()


def test_a_double_sentence_is_refused(evaluator, scenes, samples):
    for sample in [*samples, samples[4]]:
        evaluator.process([sample], [{"ref_seg": _truth(scenes, sample)}])
    with pytest.raises(ValueError, match=r"1 more than once \(\(201, 4\)\)"):
        evaluator.evaluate()


def test_a_strange_sentence_is_refused(evaluator, scenes, samples):
    with pytest.raises(ValueError, match=r"\(100, 9\)"):
        evaluator.process([{**samples[0], "sent_id": 9}], [{"ref_seg": torch.ones(40, 60)}])


def test_an_answer_of_another_size_is_refused(evaluator, samples):
    with pytest.raises(ValueError, match=r"\(60, 60\).*\(40, 60\)"):
        evaluator.process(samples[:1], [{"ref_seg": torch.ones(60, 60)}])


def test_a_dataset_with_double_keys_is_refused(scenes, samples):
    samples.append(samples[0])
    with pytest.raises(ValueError, match=r"more than once: \(100, 0\)"):
        RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=PatchGrid(6, 10))


def test_several_targets_are_one_union(scenes, samples):
    samples[0]["target_indices"] = [0, 1]
    evaluator = RefCOCOEvaluator(scenes.names["refcoco"], patch_grid=PatchGrid(6, 10))
    evaluator._samples = {(100, 0): samples[0]}
    both = torch.as_tensor(np.isin(scenes.ids[1], [12, 13]))
    cat_row, cat_column = 37 // 10, 36 // 10  # the cat's centre (36, 25) is (36, 37.5) of the view
    output = {"ref_seg": both, "ref_patch": cat_row * 6 + cat_column}
    evaluator.process(samples[:1], [output])
    assert evaluator.evaluate()["referring"] == dict.fromkeys(
        ["cIoU", "gIoU", "P@0.5", "P@0.6", "P@0.7", "P@0.8", "P@0.9", "P@answer_patch"], 100.0
    )


def test_scores_of_other_processes_are_gathered(evaluator, scenes, samples, monkeypatch):
    other = [SentenceScore(200, 3, 0, 480, 1), SentenceScore(201, 4, 390, 390, 0)]
    monkeypatch.setattr(comm, "all_gather", lambda scores: [scores, other])
    for sample in samples[:3]:
        evaluator.process([sample], [{"ref_seg": _truth(scenes, sample), "ref_patch": -1}])
    results = evaluator.evaluate()["referring"]
    assert results["gIoU"] == 80 and results["P@answer_patch"] == 20
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    assert evaluator.evaluate() == {}
