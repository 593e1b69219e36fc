"""PQ against an independent implementation, and Open PQ on hand-made segments."""

import json

import numpy as np
import pytest
import torch
from panopticapi.evaluation import PQStat, pq_compute_single_core
from PIL import Image

from rose_d2.evaluation import panoptic as panoptic_evaluation
from rose_d2.evaluation.panoptic import (
    ClassCredit,
    RosePanopticEvaluator,
    average_quality,
    count_overlaps,
    count_segments,
    same_category,
)

CATEGORIES = {10: {"isthing": 1}, 20: {"isthing": 1}, 30: {"isthing": 0}}
IDENTITY = ClassCredit(np.eye(3), {10: 0, 20: 1, 30: 2}, CATEGORIES)


@pytest.fixture
def run_all(scenes, evaluate):
    """Scores outputs with a new evaluator."""

    def score(outputs, **options):
        evaluator = RosePanopticEvaluator(scenes.names["coco_panoptic_seg"], **options)
        return evaluate(evaluator, "coco_panoptic_seg", outputs)

    return score


@pytest.fixture
def run(run_all):
    return lambda outputs, **options: run_all(outputs, **options)["panoptic_seg"]


def test_ground_truth_scores_100(run, perfect):
    results = run(perfect)
    assert results["PQ"] == pytest.approx(100)
    assert results["PQ_th"] == pytest.approx(100) and results["PQ_st"] == pytest.approx(100)


def test_unmapped_and_vanished_segments_become_void(run, perfect):
    ids, segments = perfect[1]["panoptic_seg"]
    segments[0]["category_id"] = -1  # the only sky
    segments.append({"id": 99, "category_id": 0, "isthing": True})  # without a pixel
    results = run(perfect)
    # Sky: one missed, PQ 0; dog, cat and grass stay perfect.
    assert results["PQ"] == pytest.approx(75)
    assert results["PQ_th"] == pytest.approx(100) and results["PQ_st"] == pytest.approx(50)
    assert (ids == 10).any(), "the caller's id map must stay as it was"


def test_wrong_class_by_hand(run, perfect):
    for segment in perfect[2]["panoptic_seg"][1]:
        if segment["id"] == 21:
            segment["category_id"] = 0
    # cat: 2 right, 1 missed -> 2 / 2.5; dog: 1 right, 1 false -> 1 / 1.5.
    results = run(perfect)
    assert results["PQ_th"] == pytest.approx(100 * (2 / 2.5 + 1 / 1.5) / 2)


def test_no_prediction_is_zero(run, perfect):
    for output in perfect.values():
        output["panoptic_seg"] = torch.zeros_like(output["panoptic_seg"][0]), []
    assert run(perfect)["PQ"] == 0


def test_without_segments_there_is_no_number(scenes, run, perfect):
    path = scenes.root / "panoptic.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"] = []
    path.write_text(json.dumps(content))
    for output in perfect.values():
        output["panoptic_seg"] = torch.zeros_like(output["panoptic_seg"][0]), []
    results = run(perfect)
    assert set(results) == {a + b for a in ("PQ", "SQ", "RQ") for b in ("", "_th", "_st")}
    assert all(np.isnan(value) for value in results.values())


def test_a_missing_image_is_named(scenes, perfect):
    evaluator = RosePanopticEvaluator(scenes.names["coco_panoptic_seg"])
    evaluator.process(scenes.dicts["coco_panoptic_seg"][:1], [perfect[1]])
    with pytest.raises(ValueError, match="1 images of .* first image 2"):
        evaluator.evaluate()


class TestLevels:
    @pytest.fixture
    def levelled(self, perfect):
        """Cats have no class until the level "synonym"; "normalised" shares with "exact"."""
        for output in perfect.values():
            ids, segments = output["panoptic_seg"]
            others = [segment for segment in segments if segment["category_id"] != 1]
            void = torch.tensor([s["id"] for s in segments if s["category_id"] == 1])
            without = torch.where(torch.isin(ids, void), 0, ids), others
            output["levels"] = {
                "exact": {"panoptic_seg": without},
                "synonym": {"panoptic_seg": (ids, segments)},
            }
            output["levels"]["normalised"] = output["levels"]["exact"]
        return perfect

    def test_by_hand(self, run_all, levelled):
        results = run_all(levelled, headline_level="exact")
        levels = {"exact": 75, "synonym": 100, "normalised": 75}
        assert results["panoptic_seg_levels"] == pytest.approx(levels)
        assert results["panoptic_seg"]["PQ"] == pytest.approx(75)
        assert results["panoptic_seg"]["PQ_th"] == pytest.approx(50)

    def test_without_a_headline_level_the_answer_itself_counts(self, run_all, levelled):
        results = run_all(levelled)
        assert results["panoptic_seg"]["PQ"] == pytest.approx(100)
        assert results["panoptic_seg_levels"]["exact"] == pytest.approx(75)

    def test_a_shared_answer_is_counted_once(self, scenes, levelled, monkeypatch):
        counted = []

        def count(*arguments):
            counted.append(arguments)
            return count_segments(*arguments)

        monkeypatch.setattr(panoptic_evaluation, "count_segments", count)
        evaluator = RosePanopticEvaluator(
            scenes.names["coco_panoptic_seg"], headline_level="synonym"
        )
        for sample in scenes.dicts["coco_panoptic_seg"]:
            evaluator.process([sample], [levelled[sample["image_id"]]])
        assert [len(p["answers"]) for p in evaluator._predictions] == [2, 2]
        evaluator.evaluate()
        assert len(counted) == 4  # two images, two levels

    def test_the_headline_is_written(self, run_all, levelled, tmp_path):
        run_all(levelled, headline_level="exact", output_dir=str(tmp_path))
        content = json.loads((tmp_path / "predictions.json").read_text())
        counts = [len(entry["segments_info"]) for entry in content["annotations"]]
        assert counts == [3, 1] and len(content["categories"]) == 4


class TestOpenPQ:
    def test_the_identity_gives_pq(self, run_all, perfect):
        perfect[2]["panoptic_seg"][1][1]["category_id"] = 0  # a cat called a dog
        results = run_all(perfect, similarity=np.eye(4))
        for key in ("PQ", "SQ", "RQ"):
            expected = pytest.approx(results["panoptic_seg"][key], abs=1e-9)
            assert results["open_panoptic_seg"][f"Open {key}"] == expected

    def test_a_similar_class_by_hand(self, run_all, perfect):
        perfect[2]["panoptic_seg"][1][1]["category_id"] = 0  # a cat called a dog
        similarity = np.eye(4)
        similarity[0, 1] = 0.25  # a dog is a quarter of a cat
        # cat: 2 + 1/4 right, 3/4 missed; dog: 1 right, 3/4 false; sky and grass are perfect.
        cat, dog = 2.25 / (2.25 + 0.375), 1 / (1 + 0.375)
        results = run_all(perfect, similarity=similarity)["open_panoptic_seg"]
        assert results["Open PQ"] == pytest.approx(100 * (cat + dog + 2) / 4)
        assert results["Open SQ"] == pytest.approx(100)

    def test_things_do_not_resemble_stuff(self, run_all, perfect):
        info = perfect[2]["panoptic_seg"][1][1]
        info["category_id"], info["isthing"] = 2, False  # a cat called sky
        results = run_all(perfect, similarity=np.ones((4, 4)))
        expected = pytest.approx(results["panoptic_seg"]["PQ"])
        assert results["open_panoptic_seg"]["Open PQ"] == expected

    def test_a_matrix_of_another_size_is_refused(self, run_all, perfect):
        with pytest.raises(ValueError, match=r"\(3, 3\) for 4 classes"):
            run_all(perfect, similarity=np.eye(3))


def plain_panoptic_quality(images):
    """Mean PQ in percent from (annotated ids, categories, crowd id, predicted ids, categories)."""
    qualities = []
    for category in CATEGORIES:
        ious, errors = [], 0
        for ids, truth, crowd, predicted_ids, predicted in images:
            void = ids == 0
            hit = set()
            for segment in [k for k, c in truth.items() if c == category and k != crowd]:
                mask, found = ids == segment, False
                for guess in [k for k, c in predicted.items() if c == category]:
                    other = predicted_ids == guess
                    iou = (mask & other).sum() / (mask | (other & ~void)).sum()
                    if iou > 0.5:
                        ious.append(iou)
                        hit.add(guess)
                        found = True
                errors += not found
            is_crowd = truth.get(crowd) == category
            for guess in [k for k, c in predicted.items() if c == category and k not in hit]:
                other = predicted_ids == guess
                ignored = void | (ids == crowd) if is_crowd else void
                errors += (other & ignored).sum() / other.sum() <= 0.5
        if ious or errors:
            qualities.append(sum(ious) / (len(ious) + errors / 2))
    return 100 * np.mean(qualities)


def draw_images(seed, num_images=10, size=(30, 40)):
    """Blocks of random segments; predictions are shifted, renamed and partly missing."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(num_images):
        ids = np.kron(rng.integers(0, 8, (3, 4)), np.ones((10, 10), dtype=np.int64))
        present = [k for k in np.unique(ids).tolist() if k]
        truth = {k: int(rng.choice(list(CATEGORIES))) for k in present}
        crowd = int(rng.choice(present)) if rng.random() < 0.5 else None
        moved = np.roll(ids, rng.integers(-2, 3, 2), axis=(0, 1))
        moved[np.isin(moved, rng.choice(present, 1))] = 0
        guesses = {}
        for segment in [k for k in np.unique(moved).tolist() if k]:
            guesses[segment] = truth[segment]
            if rng.random() < 0.3:
                guesses[segment] = int(rng.choice(list(CATEGORIES)))
        images.append((ids, truth, crowd, moved, guesses))
    return images


def count(images, credit=same_category):
    """The statistic of all images."""
    stat = PQStat()
    for ids, truth, crowd, predicted_ids, predicted in images:
        annotated, guessed = segments(truth, crowd), segments(predicted)
        count_segments(stat, annotated, guessed, count_overlaps(ids, predicted_ids), credit)
    return stat


def segments(categories, crowd=None):
    return [{"id": k, "category_id": c, "iscrowd": int(k == crowd)} for k, c in categories.items()]


def count_officially(images, folder):
    """panopticapi's own statistic, which reads both kinds of PNG."""
    pairs = []
    for number, (ids, truth, crowd, predicted_ids, predicted) in enumerate(images):
        for kind, values in (("truth", ids), ("predicted", predicted_ids)):
            (folder / kind).mkdir(exist_ok=True)
            colours = np.stack([values, values * 0, values * 0], axis=2).astype(np.uint8)
            Image.fromarray(colours).save(folder / kind / f"{number}.png")
        annotated = segments(truth, crowd)
        for segment in annotated:
            segment["area"] = int((ids == segment["id"]).sum())
        common = {"image_id": number, "file_name": f"{number}.png"}
        pairs.append(
            (common | {"segments_info": annotated}, common | {"segments_info": segments(predicted)})
        )
    folders = str(folder / "truth"), str(folder / "predicted")
    return pq_compute_single_core(0, pairs, *folders, CATEGORIES)


@pytest.mark.parametrize("credit", [same_category, IDENTITY], ids=["official", "identity"])
@pytest.mark.parametrize("seed", range(4))
def test_other_implementations_agree(tmp_path, seed, credit):
    images = draw_images(seed)
    expected = plain_panoptic_quality(images)
    assert 5 < expected < 95
    stat, official = count(images, credit), count_officially(images, tmp_path)
    assert average_quality(stat, CATEGORIES, None)["pq"] == pytest.approx(expected, abs=1e-9)
    for category in CATEGORIES:
        ours, theirs = vars(stat[category]), vars(official[category])
        assert ours == pytest.approx(theirs, abs=1e-9)


def test_maps_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4\) but its annotated PNG \(4, 5\)"):
        count_overlaps(np.zeros((4, 5), int), np.zeros((4, 4), int))


def test_credit_for_a_similar_class():
    """One thing of 10 called 20, worth 0.4: PQ 0.4 / (0.4 + 0.3) and 0 / 0.3."""
    ids = np.zeros((6, 6), dtype=np.int64)
    ids[1:5, 1:5] = 1
    similarity = np.eye(3)
    similarity[1, 0] = 0.4
    credit = ClassCredit(similarity, {10: 0, 20: 1, 30: 2}, CATEGORIES)
    stat = count([(ids, {1: 10}, None, ids, {1: 20})], credit)
    assert (stat[10].tp, stat[10].fn, stat[10].iou) == pytest.approx((0.4, 0.6, 0.4))
    assert (stat[20].tp, stat[20].fp) == pytest.approx((0, 0.6))
    assert average_quality(stat, CATEGORIES, None)["pq"] == pytest.approx(50 * 0.4 / 0.7)


def test_no_segment_of_a_kind_has_no_quality():
    ids = np.ones((4, 4), dtype=np.int64)
    stat = count([(ids, {1: 30}, None, ids, {1: 30})])
    things = average_quality(stat, CATEGORIES, True)
    assert np.isnan(things["pq"]) and things["n"] == 0
    assert average_quality(stat, CATEGORIES, False)["pq"] == pytest.approx(100)
