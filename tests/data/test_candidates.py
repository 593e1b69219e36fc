import numpy as np
import pytest
from detectron2.data import Metadata, MetadataCatalog

import rose_d2  # noqa: F401  (registers the datasets)
from rose_d2.data.scene_targets import check_candidate_mode, dataset_candidates, draw_candidates
from rose_d2.vocabulary.vocabulary import CategoryVocabulary

VOCABULARY = [f"class {i}" for i in range(20)]


def test_names_are_different_and_distractors_are_bounded():
    present = VOCABULARY[:4]
    for seed in range(100):
        names = draw_candidates(present, VOCABULARY, 5, np.random.default_rng(seed))
        assert len(set(names)) == len(names)
        assert 1 <= len(set(names) & set(present)) <= 4
        assert len(set(names) - set(present)) <= 5


def test_about_half_of_the_lists_hold_every_name_of_the_image():
    present = VOCABULARY[:4]
    complete = [
        set(present) <= set(draw_candidates(present, VOCABULARY, 3, np.random.default_rng(seed)))
        for seed in range(200)
    ]
    assert 70 <= sum(complete) <= 130


def test_true_names_are_not_always_first():
    firsts = {
        draw_candidates(["class 0"], VOCABULARY, 5, np.random.default_rng(seed))[0]
        for seed in range(50)
    }
    assert len(firsts) > 5


def test_an_empty_image_gets_distractors_only():
    for seed in range(20):
        assert draw_candidates([], VOCABULARY, 5, np.random.default_rng(seed))
    assert len(draw_candidates([], VOCABULARY, 0, np.random.default_rng(0))) == 1


def test_same_generator_state_same_list():
    lists = [draw_candidates(["a"], VOCABULARY, 9, np.random.default_rng(3)) for _ in range(2)]
    assert lists[0] == lists[1]


def test_classes_by_task_of_a_list_the_first_and_equal_ones_once():
    metadata = Metadata(
        thing_classes=["door, screen door", "dog ", "door"], stuff_classes=["dog", "sky, heaven"]
    )
    assert dataset_candidates(metadata, "instance") == ["door", "dog"]
    assert dataset_candidates(metadata, "semantic") == ["dog", "sky"]
    assert dataset_candidates(metadata, "panoptic") == ["dog", "sky"]


@pytest.mark.parametrize(
    "name",
    [
        "clipart_instance_val",
        "clipart_sem_seg_val",
        "clipart_panoptic_val",
        "ade20k_sem_seg_val",
        "coco_2017_val",
    ],
)
def test_candidates_are_the_classes_of_the_vocabulary(name):
    metadata = MetadataCatalog.get(name)
    names = CategoryVocabulary.from_metadata(metadata).class_names
    assert dataset_candidates(metadata, metadata.task) == list(dict.fromkeys(names))


def test_a_dataset_without_classes_is_refused():
    with pytest.raises(ValueError, match="no thing_classes.*leave TEST.CANDIDATES empty"):
        dataset_candidates(Metadata(), "instance")


def test_unknown_mode_is_refused():
    assert [check_candidate_mode(mode) for mode in ("", "prompt", "decode", "both")]
    with pytest.raises(ValueError, match="'trie'; use 'prompt'.*'decode'.*'both'"):
        check_candidate_mode("trie")
