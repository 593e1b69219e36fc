import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import Metadata, MetadataCatalog

import rose_d2  # noqa: F401  (registers the datasets)
from rose_d2.config.defaults import add_rose_config
from rose_d2.data.scene_targets import (
    TARGET_BUILDERS,
    check_candidate_mode,
    dataset_candidates,
    draw_candidates,
)
from rose_d2.prompts.tasks import TASKS
from rose_d2.vocabulary.vocabulary import CategoryVocabulary

THINGS = ["dog", "cat", "red car"]
VOCABULARY = [f"class {i}" for i in range(20)]


def _metadata(task):
    metadata = Metadata(name=f"metadata of {task}", thing_classes=THINGS, ignore_label=255)
    if task in ("semantic", "panoptic"):
        metadata.stuff_classes = [*THINGS, "sky", "grass"]
    return metadata


def _build(scene, task, seed=0, *, flip=False, record=None, **options):
    if task in ("region", "refinement"):
        options.setdefault("min_pixels", 16)
    builder = TARGET_BUILDERS[task](size=20, max_counted_names=20, **options)
    record = scene[task] if record is None else record
    return builder.build(record, _metadata(task), np.random.default_rng(seed), flip=flip)


def test_every_task_of_the_table_has_a_builder_and_a_weight():
    cfg = get_cfg()
    add_rose_config(cfg)
    assert {task: builder.task for task, builder in TARGET_BUILDERS.items()} == {
        task: task for task in TASKS
    }
    assert {task.lower() for task in cfg.DATASETS.TASK_WEIGHTS} == set(TASKS)


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic", "referring"])
def test_instructions_about_the_whole_image_have_no_prior(scene, task):
    assert _build(scene, task).prior_mask is None


@pytest.mark.parametrize("task", ["semantic", "panoptic"])
def test_dense_tasks_ask_for_things_and_stuff(scene, task):
    targets = _build(scene, task)
    assert list(targets.instances.gt_category_names) == ["dog", "cat", "sky", "grass"]
    assert targets.instances.gt_classes.tolist() == [0, 1, 3, 4]
    assert targets.instances.gt_is_stuff.tolist() == [False, False, True, True]
    assert targets.instances.image_size == (20, 20)
    assert targets.instances.gt_masks.tensor.sum(dim=(1, 2)).tolist()[:2] == [18, 18]
    assert targets.negative_points.shape == (0, 2)
    assert targets.conversation.response == (
        "There are 1 dog, 1 cat, 1 sky, 1 grass in this image."
    )


def test_instance_asks_for_things_and_stuff_is_negative(scene):
    targets = _build(scene, "instance")
    assert list(targets.instances.gt_category_names) == ["cat", "dog"]
    assert not targets.instances.gt_is_stuff.any()
    # Counted in the order of the classes, whatever the order of the annotations.
    assert targets.conversation.response == "There are 1 dog, 1 cat in this image."
    # The centroid of the sky: 200 pixels with centre (10, 5) less the dog's 18 with (2.5, 5).
    assert targets.negative_points.dtype == torch.float64
    assert targets.negative_points[0].tolist() == pytest.approx([(200 * 10 - 18 * 2.5) / 182, 5.0])
    assert len(targets.negative_points) == 2


def test_instance_without_panoptic_annotation_has_no_negatives(scene):
    record = {k: v for k, v in scene["instance"].items() if k != "pan_seg_file_name"}
    targets = _build(scene, "instance", record=record)
    assert targets.negative_points.shape == (0, 2)
    assert len(targets.instances) == 2


def test_crowds_and_void_are_neither_target_nor_negative(scene):
    for task in ("instance", "panoptic"):
        targets = _build(scene, task)
        assert targets.ignore_mask.shape == (20, 20)
        assert targets.ignore_mask.dtype == torch.bool
        assert targets.ignore_mask[11:14, 10:13].all()
        assert targets.ignore_mask[18:].all()
        assert targets.ignore_mask.sum() == 3 * 3 + 2 * 20


def test_referring_asks_for_its_object_only(scene):
    targets = _build(scene, "referring")
    assert list(targets.instances.gt_category_names) == ["dog"]
    assert "the dog on the left" in targets.conversation.instruction
    assert targets.conversation.response == "There are 1 dog in this image."
    # The cat (rows 10-15, view columns 15-17); the crowd is not a negative.
    assert targets.negative_points.tolist() == [[16.5, 13.0]]


def test_a_target_without_name_has_no_response(scene):
    record = scene["referring"]
    record["annotations"][2]["category_id"] = None
    targets = _build(scene, "referring", record=record)
    assert list(targets.instances.gt_category_names) == [""]
    assert targets.conversation.response is None


def test_an_object_that_vanishes_in_the_view_is_dropped(scene):
    record = scene["instance"]
    # Column 28 alone: the view's columns read 1, 3, 5, ...
    record["annotations"][0]["segmentation"] = [[28, 10, 29, 10, 29, 16, 28, 16]]
    targets = _build(scene, "instance", record=record)
    assert list(targets.instances.gt_category_names) == ["dog"]
    assert targets.conversation.response == "There are 1 dog in this image."


def test_an_image_without_objects_has_empty_targets(scene):
    record = {**scene["instance"], "annotations": []}
    targets = _build(scene, "instance", record=record)
    assert len(targets.instances) == 0
    assert targets.instances.gt_masks.tensor.shape == (0, 20, 20)
    assert targets.conversation.response is not None


def test_a_label_map_alone_supervises_the_semantic_task(scene):
    record = {k: v for k, v in scene["semantic"].items() if k != "pan_seg_file_name"}
    targets = _build(scene, "semantic", record=record)
    assert list(targets.instances.gt_category_names) == ["dog", "cat", "sky", "grass"]
    assert targets.instances.gt_is_stuff.tolist() == [False, False, True, True]


def test_flip_mirrors_masks_and_negative_points(scene):
    plain, flipped = _build(scene, "instance"), _build(scene, "instance", flip=True)
    assert torch.equal(
        flipped.instances.gt_masks.tensor, plain.instances.gt_masks.tensor.flip(dims=[2])
    )
    mirrored = plain.negative_points * torch.tensor([-1.0, 1.0]) + torch.tensor([20.0, 0.0])
    assert torch.allclose(flipped.negative_points, mirrored)


def test_candidates_make_unlisted_objects_negative(scene):
    seen = set()
    for seed in range(40):
        targets = _build(scene, "panoptic", seed, candidate_prob=1.0)
        listed = set(targets.candidates)
        assert ", ".join(targets.candidates) in targets.conversation.instruction
        expected = [n for n in ("dog", "cat", "sky", "grass") if n in listed]
        assert list(targets.instances.gt_category_names) == expected
        assert len(targets.negative_points) == 4 - len(expected)
        for name in expected:
            assert f"1 {name}" in targets.conversation.response
        seen.add((len(expected), "red car" in listed))
    assert {count for count, _ in seen} == {1, 2, 3, 4}
    assert {distractor for _, distractor in seen} == {True, False}


def test_held_out_classes_are_never_offered(scene):
    builder = TARGET_BUILDERS["panoptic"](size=20, max_counted_names=20, candidate_prob=1.0)

    def offered(metadata):
        draws = [
            builder.build(scene["panoptic"], metadata, np.random.default_rng(s)).candidates
            for s in range(50)
        ]
        return {name for names in draws for name in names}

    metadata = _metadata("panoptic")
    assert "red car" in offered(metadata)
    metadata.unseen_classes = ["red car"]
    assert "red car" not in offered(metadata)


def test_candidates_of_the_instance_task_are_things(scene):
    for seed in range(20):
        assert set(_build(scene, "instance", seed, candidate_prob=1.0).candidates) <= set(THINGS)


def test_candidate_share_and_referring_never(scene):
    drawn = [_build(scene, "semantic", s, candidate_prob=0.25).candidates for s in range(200)]
    assert 30 <= sum(c is not None for c in drawn) <= 70
    assert _build(scene, "referring", candidate_prob=1.0).candidates is None


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


def test_lists_of_any_length_reach_the_whole_vocabulary():
    present = VOCABULARY[:2]
    absent = set(VOCABULARY) - set(present)
    lists = [draw_candidates(present, VOCABULARY, -1, np.random.default_rng(s)) for s in range(400)]
    counts = [len(absent & set(names)) for names in lists]
    assert set(counts) == set(range(len(absent) + 1))
    assert 70 <= counts.count(len(absent)) <= 150  # a quarter of 400, and those that are so anyway
    assert all(len(set(names)) == len(names) for names in lists)
