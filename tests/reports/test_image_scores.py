"""Scores on rows of ten pixels, so that every number can be counted by eye."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from rose_d2.evaluation.predictions import PredictionStore
from rose_d2.reports.image_scores import (
    ImageScore,
    ImageSegments,
    SavedPredictions,
    ScoredImage,
    WrongName,
    choose_images,
    missing_images,
    predicted_segments,
    score_image,
    true_segments,
)

NAMES = ["dog", "cat", "sky"]


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
    output = {"open_instances": instances_from(ids, rows)}
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
    with pytest.raises(ValueError, match="have no 'open_instances', only ref_seg"):
        predicted_segments({"ref_seg": None}, "instance", metadata(scenes, "coco"), 0.5)


def test_image_without_annotations_is_refused(scenes):
    sample = {"file_name": "a.jpg", "height": 4, "width": 6}
    with pytest.raises(ValueError, match="neither annotations nor panoptic segments"):
        true_segments(sample, "panoptic", metadata(scenes, "coco_panoptic_seg"))


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
