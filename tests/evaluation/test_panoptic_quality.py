"""PQ against an independent implementation, and Open PQ on hand-made segments."""

import numpy as np
import pytest
from PIL import Image

from rose_d2.evaluation import panoptic
from rose_d2.evaluation.panoptic import ClassCredit, average_quality, count_segments

CATEGORIES = {10: {"isthing": 1}, 20: {"isthing": 1}, 30: {"isthing": 0}}
IDENTITY = ClassCredit(np.eye(3), {10: 0, 20: 1, 30: 2}, CATEGORIES)


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


def write(images, folder):
    """Write both kinds of PNG; returns the arguments of `count_segments`."""
    pairs = []
    for number, (ids, truth, crowd, predicted_ids, predicted) in enumerate(images):
        for kind, values in (("truth", ids), ("predicted", predicted_ids)):
            (folder / kind).mkdir(exist_ok=True)
            colours = np.stack([values, values * 0, values * 0], axis=2).astype(np.uint8)
            Image.fromarray(colours).save(folder / kind / f"{number}.png")
        common = {"image_id": number, "file_name": f"{number}.png"}
        annotated = [
            {"id": k, "category_id": c, "iscrowd": int(k == crowd), "area": int((ids == k).sum())}
            for k, c in truth.items()
        ]
        guessed = [{"id": k, "category_id": c} for k, c in predicted.items()]
        pairs.append((common | {"segments_info": annotated}, common | {"segments_info": guessed}))
    return pairs, str(folder / "truth"), str(folder / "predicted"), CATEGORIES


@pytest.mark.parametrize("credit", [None, IDENTITY], ids=["official", "identity"])
@pytest.mark.parametrize("seed", range(4))
def test_an_independent_implementation_agrees(tmp_path, seed, credit):
    images = draw_images(seed)
    expected = plain_panoptic_quality(images)
    assert 5 < expected < 95
    quality = average_quality(count_segments(*write(images, tmp_path), credit), CATEGORIES, None)
    assert quality["pq"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("credit", [None, IDENTITY], ids=["official", "identity"])
def test_several_processes_count_the_same(tmp_path, monkeypatch, credit):
    arguments = write(draw_images(0), tmp_path)
    whole = average_quality(count_segments(*arguments, credit), CATEGORIES, None)
    monkeypatch.setattr(panoptic, "_IMAGES_PER_TASK", 3)
    parts = average_quality(count_segments(*arguments, credit), CATEGORIES, None)
    assert parts == pytest.approx(whole, abs=1e-9)


def test_credit_for_a_similar_class(tmp_path):
    """One thing of 10 called 20, worth 0.4: PQ 0.4 / (0.4 + 0.3) and 0 / 0.3."""
    ids = np.zeros((6, 6), dtype=np.int64)
    ids[1:5, 1:5] = 1
    similarity = np.eye(3)
    similarity[1, 0] = 0.4
    credit = ClassCredit(similarity, {10: 0, 20: 1, 30: 2}, CATEGORIES)
    arguments = write([(ids, {1: 10}, None, ids, {1: 20})], tmp_path)
    stat = count_segments(*arguments, credit)
    assert (stat[10].tp, stat[10].fn, stat[10].iou) == pytest.approx((0.4, 0.6, 0.4))
    assert (stat[20].tp, stat[20].fp) == pytest.approx((0, 0.6))
    assert average_quality(stat, CATEGORIES, None)["pq"] == pytest.approx(50 * 0.4 / 0.7)


def test_no_segment_of_a_kind_has_no_quality(tmp_path):
    ids = np.ones((4, 4), dtype=np.int64)
    stat = count_segments(*write([(ids, {1: 30}, None, ids, {1: 30})], tmp_path))
    things = average_quality(stat, CATEGORIES, True)
    assert np.isnan(things["pq"]) and things["n"] == 0
    assert average_quality(stat, CATEGORIES, False)["pq"] == pytest.approx(100)
