import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.reports.image_scores import (
    ImageScore,
    SavedPredictions,
    ScoredImage,
    choose_images,
    missing_images,
)


def images(*scores):
    return [ScoredImage(str(i), ImageScore(score, "", [])) for i, score in enumerate(scores)]


def keys(chosen):
    return [image.key for image in chosen]


def test_all_predictions_are_scored_in_the_order_of_the_dataset(page_data):
    saved = SavedPredictions(page_data.folder, None, 0.5)
    scored = list(saved.score_all())
    assert keys(scored) == [str(i) for i in range(8)]
    # Both found; then a wrong name of two instances.
    assert [round(image.score.score, 3) for image in scored] == [1.0] * 4 + [0.5] * 4
    assert saved.task == "instance"


def test_score_threshold_decides_what_is_scored(page_data):
    saved = SavedPredictions(page_data.folder, page_data.name, 0.85)
    scores = [image.score.score for image in saved.score_all()]
    assert scores[0] == pytest.approx(2 / 3)  # the cat is below it
    assert scores[-1] == 0.0


def test_best_worst_and_random():
    chosen = choose_images(images(0.5, 0.9, 0.1, 0.9, 0.3, 0.7), 2, seed=0)
    assert keys(chosen.best) == ["1", "3"]  # ties in the order of the dataset
    assert keys(chosen.worst) == ["2", "4"]
    assert len(chosen.random) == 2
    assert keys(chosen.random) == sorted(keys(chosen.random))


def test_sentences_about_one_image_do_not_fill_the_page():
    files = ["a", "a", "a", "b", "c", "c"]
    scores = [0.0, 0.1, 0.2, 0.3, 0.8, 0.9]
    scored = [
        ScoredImage(str(i), ImageScore(score, "", []), file)
        for i, (score, file) in enumerate(zip(scores, files, strict=True))
    ]
    chosen = choose_images(scored, 2, seed=0)
    assert (keys(chosen.best), keys(chosen.worst)) == (["5", "3"], ["0", "4"])
    # With nothing else left, they do, still in the order of their scores.
    assert keys(choose_images(scored[:3], 2, seed=0).best) == ["2", "1"]


def test_random_follows_the_seed():
    scored = images(*[0.5] * 40)
    same = [choose_images(scored, 5, seed=3).random for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != choose_images(scored, 5, seed=4).random


def test_few_images_are_shown_once_among_best_and_worst():
    chosen = choose_images(images(0.5, 0.9, 0.1), 12, seed=0)
    assert (keys(chosen.best), keys(chosen.worst)) == (["1", "0"], ["2"])
    assert keys(choose_images(images(0.5), 12, seed=0).worst) == []


def test_missing_images(page_data):
    saved = SavedPredictions(page_data.folder, None, 0.5)
    selection = choose_images(list(saved.score_all()), 4, seed=0)
    assert missing_images(saved.samples, selection) == []
    lost = page_data.images / "7 <i>.png"
    lost.unlink()
    assert missing_images(saved.samples, selection) == [str(lost)]


def test_no_predictions(tmp_path):
    with pytest.raises(FileNotFoundError, match="No predictions in"):
        SavedPredictions(tmp_path, None, 0.5)
    PredictionStore(tmp_path / "empty", {"dataset": "x"})
    with pytest.raises(ValueError, match="are empty; run the evaluation"):
        SavedPredictions(tmp_path / "empty", None, 0.5)


def test_another_dataset(page_data):
    with pytest.raises(ValueError, match="made on 'test_results_page', not on 'other'"):
        SavedPredictions(page_data.folder, "other", 0.5)


def test_dataset_that_is_not_registered(page_data, tmp_path):
    store = PredictionStore(tmp_path / "p", {"dataset": "gone"})
    store.add("1", {"text": ""}, "instance")
    store.close()
    with pytest.raises(ValueError, match="'gone' is not registered"):
        SavedPredictions(tmp_path / "p", None, 0.5)


def test_predictions_of_images_the_dataset_does_not_have(page_data):
    store = PredictionStore(page_data.folder, {"dataset": page_data.name, "config_hash": "abc"})
    store.add("99", {"text": ""}, "instance")
    store.close()
    with pytest.raises(ValueError, match="1 of the 9 predictions .* does not have"):
        SavedPredictions(page_data.folder, None, 0.5)


@pytest.mark.parametrize(("sent_id", "sentence"), [(-1, "a. b."), (0, "a")])
def test_references_are_recognised_by_their_keys(tmp_path, sent_id, sentence):
    name = "test_results_page_refer"
    one = {"ref_id": 5, "image_id": 1, "target_indices": [0], "file_name": "x.jpg"}
    records = [one | {"sent_id": i, "sentence": text} for i, text in enumerate("ab")]
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(evaluator_type="refcoco")
    try:
        store = PredictionStore(tmp_path, {"dataset": name})
        store.add(f"5-{sent_id}", {"text": ""}, "referring")
        store.close()
        saved = SavedPredictions(tmp_path, None, 0.5)
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert saved.samples[saved.keys[0]]["sentence"] == sentence
