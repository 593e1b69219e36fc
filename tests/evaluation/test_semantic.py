import json

import numpy as np
import pytest
import torch
from PIL import Image

from rose_d2.evaluation.semantic import (
    RoseSemSegEvaluator,
    check_similarity,
    mean_iou,
    open_mean_iou,
)

NO_OBJECT = 4


@pytest.fixture
def run_all(scenes, evaluate):
    """Scores outputs with a new evaluator."""

    def score(outputs, **options):
        evaluator = RoseSemSegEvaluator(scenes.names["sem_seg"], **options)
        return evaluate(evaluator, "sem_seg", outputs)

    return score


@pytest.fixture
def run(run_all):
    return lambda outputs, **options: run_all(outputs, **options)["sem_seg"]


def test_ground_truth_scores_100(run, scenes, perfect):
    results = run(perfect)
    for metric in ("mIoU", "fwIoU", "mACC", "pACC", "IoU-sky"):
        assert results[metric] == pytest.approx(100)
    assert results["no_object"] == 0 and results["unmapped"] == 0
    assert not any("oundary" in key or "B-Iou" in key for key in results)


def test_no_object_is_a_missed_pixel_not_an_ignored_one(run, scenes, perfect):
    perfect[1]["sem_seg"][-1, :, :30] = 2.0
    ids = scenes.ids[1]
    results = run(perfect)
    # Sky occurs in scene 1 only: what is left of it is its IoU and its accuracy.
    expected = 100 * (ids[:, 30:] == 10).sum() / (ids == 10).sum()
    assert results["IoU-sky"] == pytest.approx(expected)
    assert results["ACC-sky"] == pytest.approx(expected)
    labelled = {i: np.isin(ids, [10, 11, 12, 13, 20, 21, 22]) for i, ids in scenes.ids.items()}
    share = 100 * labelled[1][:, :30].sum() / sum(mask.sum() for mask in labelled.values())
    assert results["no_object"] == pytest.approx(share)
    assert results["pACC"] == pytest.approx(100 - share)
    assert not any("no object" in key for key in results)


def test_miou_by_an_independent_formula(run, scenes, perfect):
    generator = torch.Generator().manual_seed(0)
    matrix = np.zeros((5, 5))
    for image_id, output in perfect.items():
        output["sem_seg"] = torch.rand(output["sem_seg"].shape, generator=generator)
        with Image.open(scenes.dicts["sem_seg"][image_id - 1]["sem_seg_file_name"]) as image:
            truth = np.asarray(image)
        answer = output["sem_seg"].argmax(dim=0).numpy()
        for t in range(4):
            for a in range(5):
                matrix[a, t] += ((answer == a) & (truth == t)).sum()
    hits = np.diag(matrix)[:4]
    predicted_on_labelled = matrix.sum(axis=1)[:4]
    ious = hits / (matrix.sum(axis=0)[:4] + predicted_on_labelled - hits)
    assert run(perfect)["mIoU"] == pytest.approx(100 * ious.mean(), abs=1e-9)


def test_without_any_score_nothing_crashes(run, scenes, perfect):
    for output in perfect.values():
        output["sem_seg"].zero_()
    assert 0 <= run(perfect)["mIoU"] < 20


def test_no_object_everywhere_scores_zero(run, scenes, perfect):
    for output in perfect.values():
        output["sem_seg"][-1] = 2.0
    results = run(perfect)
    assert results["mIoU"] == 0 and results["no_object"] == 100


def test_share_of_unmapped_mask_pixels(run, scenes, perfect):
    instances = perfect[2]["instances"]
    instances.pred_classes[1:] = -1
    unmapped = np.isin(scenes.ids[2], [21, 22]).sum()
    total = scenes.ids[2].size + np.isin(scenes.ids[1], [10, 11, 12, 13]).sum()
    expected = 100 * unmapped / total
    assert run(perfect)["unmapped"] == pytest.approx(expected)


def test_predictions_are_written_without_no_object(run, scenes, perfect, tmp_path):
    perfect[2]["sem_seg"][-1, :, :2] = 2.0
    run(perfect, output_dir=str(tmp_path / "out"))
    entries = json.loads((tmp_path / "out" / "sem_seg_predictions.json").read_text())
    assert {entry["category_id"] for entry in entries} == {1, 2, 3, 4}
    assert len(entries) == 4 + 2


def test_an_unknown_label_on_disk_is_named(run, scenes, perfect):
    path = scenes.dicts["sem_seg"][0]["sem_seg_file_name"]
    with Image.open(path) as image:
        labels = np.array(image)
    labels[0, 0] = 77
    Image.fromarray(labels).save(path)
    with pytest.raises(ValueError, match=r"\[77\].*0 to 3.*255"):
        run(perfect)


def test_an_empty_answer_and_ignored_pixels(scenes, run):
    """Without any mask everything is missed; the two unlabelled columns do not count."""
    outputs = {
        i: {"sem_seg_labels": torch.full(ids.shape, NO_OBJECT, dtype=torch.int16)}
        for i, ids in scenes.ids.items()
    }
    assert run(outputs)["mIoU"] == 0
    outputs[1]["sem_seg_labels"][:, 58:] = 2
    results = run(outputs)
    assert results["IoU-sky"] == 0 and results["no_object"] == 100


def test_nothing_annotated_has_no_mean(scenes, run_all, perfect):
    for sample in scenes.dicts["sem_seg"]:
        path = sample["sem_seg_file_name"]
        with Image.open(path) as image:
            Image.fromarray(np.full(image.size[::-1], 255, dtype=np.uint8)).save(path)
    with np.errstate(invalid="ignore"):
        results = run_all(perfect, similarity=np.eye(4))
    assert np.isnan(results["sem_seg"]["mIoU"]) and np.isnan(results["open_sem_seg"]["Open mIoU"])


def test_labels_in_place_of_scores_give_the_same_numbers(perfect, run_all, tmp_path):
    generator = torch.Generator().manual_seed(0)
    labelled = {}
    for image_id, output in perfect.items():
        output["sem_seg"] = torch.rand(output["sem_seg"].shape, generator=generator)
        labels = output["sem_seg"].argmax(dim=0).to(torch.int16)
        labelled[image_id] = {"sem_seg_labels": labels, "instances": output["instances"]}
    first = run_all(perfect, output_dir=str(tmp_path / "a"))
    assert first == run_all(labelled, output_dir=str(tmp_path / "b"))
    written = [(tmp_path / k / "sem_seg_predictions.json").read_text() for k in "ab"]
    assert written[0] == written[1]


class TestLevels:
    @pytest.fixture
    def levelled(self, scenes, perfect):
        """Cats have no class until the level "synonym"; "normalised" shares with "exact"."""
        for image_id, output in perfect.items():
            labels = output["sem_seg"].argmax(dim=0).to(torch.int16)
            cats = torch.as_tensor(np.isin(scenes.ids[image_id], [13, 21, 22]))
            without = {"sem_seg_labels": torch.where(cats, NO_OBJECT, labels).to(torch.int16)}
            output["levels"] = {
                "exact": without,
                "normalised": without,
                "synonym": {"sem_seg_labels": labels},
            }
        return perfect

    def test_by_hand(self, run_all, levelled):
        results = run_all(levelled, headline_level="normalised")
        levels = {"exact": 75, "normalised": 75, "synonym": 100}
        assert results["sem_seg_levels"] == pytest.approx(levels)
        assert results["sem_seg"]["mIoU"] == results["sem_seg_levels"]["normalised"]
        assert results["sem_seg"]["IoU-cat"] == 0

    def test_without_a_headline_level_the_answer_itself_counts(self, run_all, levelled):
        results = run_all(levelled)
        assert results["sem_seg"]["mIoU"] == pytest.approx(100)
        assert results["sem_seg_levels"]["exact"] == pytest.approx(75)

    def test_shared_levels_are_counted_once(self, scenes, levelled, monkeypatch, evaluate):
        counted = []
        count = RoseSemSegEvaluator._count

        def spy(self, labels, truth):
            counted.append(labels)
            return count(self, labels, truth)

        monkeypatch.setattr(RoseSemSegEvaluator, "_count", spy)
        evaluator = RoseSemSegEvaluator(scenes.names["sem_seg"], headline_level="synonym")
        evaluate(evaluator, "sem_seg", levelled)
        assert len(counted) == 2 * 2


def test_processes_add_up(scenes, perfect, monkeypatch):
    """One process has both images, the other none: as if one had done all."""
    single = RoseSemSegEvaluator(scenes.names["sem_seg"])
    idle = RoseSemSegEvaluator(scenes.names["sem_seg"])
    for sample in scenes.dicts["sem_seg"]:
        output = perfect[sample["image_id"]]
        output["levels"] = {"exact": {"sem_seg_labels": output["sem_seg"].argmax(dim=0)}}
        single.process([sample], [output])
    sent = []
    monkeypatch.setattr(
        "rose_d2.evaluation.semantic.comm.gather",
        lambda state, dst: sent.append(state) or sent,
    )
    idle.evaluate()
    results = single.evaluate()
    assert results["sem_seg"]["mIoU"] == pytest.approx(100)
    assert results["sem_seg_levels"] == {"exact": pytest.approx(100)}


def test_nothing_is_kept_that_nobody_reads(scenes, perfect):
    evaluator = RoseSemSegEvaluator(scenes.names["sem_seg"])
    evaluator.process(scenes.dicts["sem_seg"][:1], [perfect[1]])
    assert evaluator._predictions == []


def test_mean_iou_counts_annotated_classes_only():
    # Rows: predicted a, b, c, no object; columns: annotated a, b, c.
    confusion = np.array([[6, 2, 0], [1, 3, 0], [0, 4, 0], [3, 1, 0]])
    assert mean_iou(confusion) == pytest.approx(100 * (6 / (10 + 2) + 3 / (10 + 1)) / 2)
    assert np.isnan(mean_iou(np.zeros((4, 3), dtype=int)))


@pytest.mark.parametrize("seed", range(3))
def test_the_identity_gives_miou(seed):
    confusion = np.random.default_rng(seed).integers(0, 1000, size=(6, 5))
    confusion[:, 3] = 0  # a class that is predicted but nowhere annotated
    assert open_mean_iou(confusion, np.eye(5)) == pytest.approx(mean_iou(confusion), abs=1e-9)


def test_by_hand():
    # Rows: predicted a, b, no object; columns: annotated a, b. b called a is worth a half.
    confusion = np.array([[6, 4], [0, 4], [4, 0]])
    similarity = np.array([[1.0, 0.5], [0.0, 1.0]])
    # a: 6 hits of 10, 2 false; b: 4 + 2 hits of 8, none false.
    expected = 100 * (6 / (10 + 2) + 6 / 8) / 2
    assert open_mean_iou(confusion, similarity) == pytest.approx(expected)


def test_no_object_resembles_nothing_and_full_similarity_forgives_names():
    confusion = np.array([[6, 4], [2, 4], [2, 0]])
    # a: 8 of 10; b: 8 of 8.
    assert open_mean_iou(confusion, np.ones((2, 2))) == pytest.approx(100 * (0.8 + 1) / 2)


def test_nothing_annotated_has_no_open_mean():
    assert np.isnan(open_mean_iou(np.zeros((3, 2), dtype=int), np.eye(2)))


@pytest.mark.parametrize(
    ("similarity", "message"),
    [
        (np.eye(3), r"\(3, 3\) for 2 classes"),
        (np.array([[1, 1.5], [0, 1]]), "from 0 to 1"),
        (np.array([[1, np.nan], [0, 1]]), "from 0 to 1"),
        (np.array([[0.9, 0], [0, 1]]), "diagonal"),
    ],
)
def test_matrices_that_are_refused(similarity, message):
    with pytest.raises(ValueError, match=message):
        check_similarity(similarity, 2)
