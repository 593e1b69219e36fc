import torch

from rose_d2.modeling.postprocessing import best_first, binarised, classes_at, pixel_scores


def test_a_class_counts_from_its_own_level_on(make_candidates):
    everywhere = {(0, 4): 0.9}
    candidates = make_candidates(
        (0.9, "lawn", 2, 0, everywhere),
        (0.8, "dog", 0, 0, everywhere),
        (0.7, "poodle", 0, 0, everywhere),
        (0.6, "blob", -1, 0, everywhere),
        (0.5, "Cats", 1, 0, everywhere),
        rules=["synonym", "exact", "hyponym", "unmapped", "normalised"],
    )
    expected = {
        "exact": [-1, 0, -1, -1, -1],
        "normalised": [-1, 0, -1, -1, 1],
        "synonym": [2, 0, -1, -1, 1],
        "wordnet synonym": [2, 0, -1, -1, 1],
        "hyponym": [2, 0, 0, -1, 1],
        "similarity": [2, 0, 0, -1, 1],
    }
    assert {level: classes_at(candidates, level).tolist() for level in expected} == expected


def test_pixel_scores_are_objectness_times_probability(make_candidates):
    candidates = make_candidates((0.5, "a", 0, 0, {(0, 1): 0.8, (1, 2): 0.4}), size=(1, 3))
    expected = torch.tensor([[0.4, 0.2, 0.0]])
    torch.testing.assert_close(pixel_scores(candidates, 0), expected, atol=1e-6, rtol=0)


def test_best_first_is_stable_and_leaves_out():
    scores = torch.tensor([0.2, 0.7, 0.7, 0.9])
    assert best_first(scores).tolist() == [3, 1, 2, 0]
    assert best_first(scores, scores < 0.8).tolist() == [1, 2, 0]


def test_masks_are_where_the_logit_is_above_zero(make_candidates):
    candidates = make_candidates((0.5, "a", 0, 0, {(0, 1): 0.51, (1, 2): 0.5}), size=(1, 3))
    instances = binarised(candidates)
    assert instances.pred_masks.tolist() == [[[True, False, False]]]
    assert instances.pred_boxes.tensor.tolist() == [[0, 0, 1, 1]]
    assert not instances.has("mask_logits") and candidates.has("mask_logits")
