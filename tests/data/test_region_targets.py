"""Samples about one region: what is drawn, what the prior is, and what the instruction says.

In the 20 x 20 view of the scene, the dog has rows 2-7 and columns 1-3, the cat rows 10-15 and
columns 15-17; the crowd and rows 18-19 are ignored.
"""

import re

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data.catalog import Metadata
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.region_targets import (
    RefinementTargetBuilder,
    RegionTargetBuilder,
    jittered_box,
)
from rose_d2.prompts.instructions import NOTHING_FOUND, box_in_words, normalised_box
from rose_d2.structures.segments import SITUATIONS

THINGS = ["dog", "cat", "red car"]


ALL = [*THINGS, "sky", "grass"]


DOG_BOX, CAT_BOX = "[50, 100, 200, 400]", "[749, 500, 899, 799]"


ONLY = {s: [float(s == other) for other in SITUATIONS] for s in SITUATIONS}


# Centroids of the dog, the cat, and the sky without the dog.
DOG, CAT, SKY = (2.5, 5.0), (16.5, 13.0), ((200 * 10 - 18 * 2.5) / 182, 5.0)


def metadata_of(**extra):
    fields = {"thing_classes": THINGS, "stuff_classes": ALL, "ignore_label": 255}
    return Metadata(name="metadata of regions", **{**fields, **extra})


def build(record, seed=0, *, task="refinement", metadata=None, flip=False, **options):
    builders = {"refinement": RefinementTargetBuilder, "region": RegionTargetBuilder}
    options.setdefault("min_pixels", 16)
    builder = builders[task](size=20, max_counted_names=20, **options)
    rng = np.random.default_rng(seed)
    return builder.build(record, metadata or metadata_of(), rng, flip=flip)


def without(record, *keys):
    return {key: value for key, value in record.items() if key not in keys}


def only_name(targets):
    assert len(targets.instances) == 1
    return targets.instances.gt_category_names[0]


def names_in(targets):
    """Class names in the instruction, as words of their own ("category" has no cat)."""
    text = targets.conversation.instruction
    return [name for name in ALL if re.search(rf"\b{name}\b", text)]


def true_mask(targets):
    return targets.instances.gt_masks.tensor[0]


def iou(a, b):
    return ((a & b).sum() / (a | b).sum()).item()


def test_one_region_is_asked_for_and_all_others_are_negative(scene):
    seen = set()
    for seed in range(30):
        targets = build(scene["panoptic"], seed)
        name = only_name(targets)
        seen.add(name)
        assert targets.conversation.response == f"There are 1 {name} in this image."
        assert targets.instances.gt_classes.tolist() == [ALL.index(name)]
        assert targets.instances.gt_is_stuff.tolist() == [name in ("sky", "grass")]
        # Two crowd or void regions would make five.
        assert len(targets.negative_points) == 3
        points = {tuple(round(v, 3) for v in point) for point in targets.negative_points.tolist()}
        centres = {"dog": DOG, "cat": CAT, "sky": tuple(round(v, 3) for v in SKY)}
        for other, centre in centres.items():
            assert (centre in points) == (other != name)
        assert targets.ignore_mask.sum() == 3 * 3 + 2 * 20
        assert targets.candidates is None
    assert seen == {"dog", "cat", "sky", "grass"}


@pytest.mark.parametrize("situation", ["mask", "category"])
def test_the_prior_is_corrupted_and_the_box_is_the_priors(scene, situation):
    options = {"situation_probs": ONLY[situation], "holes_iou": (0.5, 0.9), "shape_iou": (0.3, 0.8)}
    for holes_prob, low, high in ((1.0, 0.5, 0.9), (0.0, 0.3, 0.8)):
        for seed in range(30):
            targets = build(scene["panoptic"], seed, holes_prob=holes_prob, **options)
            prior = targets.prior_mask
            assert prior.dtype == torch.float32
            assert prior.shape == (1, 20, 20)
            assert set(prior.unique().tolist()) == {0.0, 1.0}
            prior = prior[0].bool()
            assert low <= iou(prior, true_mask(targets)) <= high
            assert box_in_words(prior.numpy(), 20) in targets.conversation.instruction


def test_the_target_is_the_true_mask(scene):
    for seed in range(20):
        targets = build(scene["instance"], seed, situation_probs=ONLY["mask"])
        expected = torch.zeros(20, 20, dtype=torch.bool)
        if only_name(targets) == "dog":
            expected[2:8, 1:4] = True
        else:
            expected[10:16, 15:18] = True
        assert torch.equal(true_mask(targets), expected)


def test_wrong_names_are_never_true_and_never_unseen(scene):
    metadata = metadata_of(unseen_classes=["red car"])
    wrong = {}
    for seed in range(150):
        targets = build(
            scene["panoptic"], seed, metadata=metadata, situation_probs=ONLY["category"]
        )
        said = names_in(targets)
        assert len(said) == 1, targets.conversation.instruction
        wrong.setdefault(only_name(targets), set()).update(said)
    for name in ("dog", "cat", "sky", "grass"):
        assert wrong[name] == {"dog", "cat", "sky", "grass"} - {name}


def test_wrong_names_of_objects_are_things(scene):
    names = set()
    for seed in range(60):
        targets = build(scene["instance"], seed, situation_probs=ONLY["category"])
        names |= set(names_in(targets))
    assert names == set(THINGS)


def test_without_another_name_the_situation_is_mask(scene):
    record = without(scene["instance"], "pan_seg_file_name")
    record["annotations"] = [record["annotations"][2]]
    metadata = metadata_of(thing_classes=["dog"])
    targets = build(record, metadata=metadata, situation_probs=ONLY["category"])
    assert not names_in(targets)
    assert targets.prior_mask.any()
    assert only_name(targets) == "dog"


def test_a_missed_object_has_no_prior_and_its_own_box(scene):
    for seed in range(20):
        targets = build(scene["instance"], seed, situation_probs=ONLY["missed"])
        assert targets.prior_mask.shape == (1, 20, 20)
        assert not targets.prior_mask.any()
        box = {"dog": DOG_BOX, "cat": CAT_BOX}[only_name(targets)]
        assert box in targets.conversation.instruction


def test_situations_come_in_their_shares(scene):
    # Unnormalised: one in four is "missed", which has no prior.
    priors = [
        build(scene["panoptic"], seed, situation_probs=[2, 1, 1]).prior_mask.any()
        for seed in range(200)
    ]
    assert 30 <= priors.count(False) <= 70


def test_a_region_is_prompted_for_by_its_mask_or_by_its_box(scene):
    for seed in range(20):
        by_mask = build(scene["panoptic"], seed, task="region", mask_prob=1.0)
        assert torch.equal(by_mask.prior_mask[0].bool(), true_mask(by_mask))
        assert "mask" in by_mask.conversation.instruction
        assert "[" not in by_mask.conversation.instruction and by_mask.named_box is None
        by_box = build(scene["panoptic"], seed, task="region", mask_prob=0.0)
        assert not by_box.prior_mask.any()
        box = box_in_words(true_mask(by_box).numpy(), 20)
        assert box == str(list(by_box.named_box))
        assert box in by_box.conversation.instruction
        assert by_box.conversation.response == f"There are 1 {only_name(by_box)} in this image."
    both = [build(scene["panoptic"], s, task="region").prior_mask.any() for s in range(100)]
    assert 30 <= both.count(True) <= 70


@pytest.mark.parametrize("task", ["refinement", "region"])
def test_objects_come_from_annotations_and_stuff_is_only_negative(scene, task):
    seen = set()
    for seed in range(20):
        targets = build(scene["instance"], seed, task=task)
        seen.add(only_name(targets))
        # The other object, the sky and the grass.
        assert len(targets.negative_points) == 3
    assert seen == {"dog", "cat"}


def test_a_label_map_alone_serves(scene):
    record = without(scene["semantic"], "pan_seg_file_name", "segments_info")
    seen = {only_name(build(record, seed)) for seed in range(30)}
    assert seen == {"dog", "cat", "sky", "grass"}


@pytest.mark.parametrize("task", ["refinement", "region"])
def test_a_referring_expressions_object_is_the_region(scene, task):
    for seed in range(15):
        targets = build(scene["referring"], seed, task=task)
        assert only_name(targets) == "dog"
        assert targets.negative_points.tolist() == [list(CAT)]
        says_so = "the dog on the left" in targets.conversation.instruction
        assert says_so == (task == "refinement")


def test_a_second_turn_repeats_what_was_asked_for_and_repairs_the_mask(scene):
    options = {"situation_probs": ONLY["missed"], "other_object_prob": 0.0}
    for seed in range(15):
        targets = build(scene["referring"], seed, **options)
        prior = targets.prior_mask[0].bool()
        assert iou(prior, true_mask(targets)) >= 0.3
        said = targets.conversation.instruction
        assert said.index("the dog on the left") < said.index(box_in_words(prior.numpy(), 20))


def test_a_first_answer_may_lie_on_another_object(scene):
    """The cat is the only other object; a prior on it does not touch the dog."""
    on_the_cat = 0
    for seed in range(100):
        targets = build(scene["referring"], seed, other_object_prob=0.3)
        prior = targets.prior_mask[0].bool()
        assert only_name(targets) == "dog"
        if not iou(prior, true_mask(targets)):
            on_the_cat += 1
            cat = torch.zeros(20, 20, dtype=torch.bool)
            cat[10:16, 15:18] = True
            assert iou(prior, cat) >= 0.3
    assert 15 <= on_the_cat <= 45


def test_without_another_object_the_prior_is_the_targets(scene):
    record = {**scene["referring"], "annotations": scene["referring"]["annotations"][2:]}
    record["target_indices"] = [0]
    targets = build(record, other_object_prob=1.0)
    assert iou(targets.prior_mask[0].bool(), true_mask(targets)) >= 0.3


def test_label_maps_are_refined_by_class(scene):
    """Two dogs of one class are one region, as in the score map of a semantic answer."""
    labels = np.asarray(Image.open(scene["semantic"]["sem_seg_file_name"])).copy()
    labels[11:14, 20:26] = 0
    Image.fromarray(labels).save(scene["semantic"]["sem_seg_file_name"])
    dogs = torch.zeros(20, 20, dtype=torch.bool)
    dogs[2:8, 1:4] = dogs[11:14, 10:13] = True
    seen = set()
    for seed in range(30):
        targets = build(scene["semantic"], seed)
        seen.add(only_name(targets))
        if only_name(targets) == "dog":
            assert torch.equal(true_mask(targets), dogs)
    assert seen == {"dog", "cat", "sky", "grass"}


def test_an_object_without_a_class_is_refined_without_a_name(scene):
    record = without(scene["referring"], "sentence")
    record["annotations"][2]["category_id"] = None
    metadata = metadata_of(thing_classes=THINGS)
    targets = build(record, metadata=metadata, situation_probs=ONLY["category"])
    assert only_name(targets) == ""
    assert targets.conversation.response is None
    assert targets.prior_mask.any()
    assert not names_in(targets)


def test_small_regions_are_negatives_but_never_drawn(scene):
    # The dog and the cat have 18 pixels.
    seen = {only_name(build(scene["panoptic"], seed, min_pixels=19)) for seed in range(30)}
    assert seen == {"sky", "grass"}
    targets = build(scene["panoptic"], min_pixels=19)
    assert len(targets.negative_points) == 3


@pytest.mark.parametrize("task", ["refinement", "region"])
@pytest.mark.parametrize("case", ["no annotation", "only a crowd", "all too small", "no target"])
def test_an_image_without_a_usable_region(scene, task, case):
    record = {
        "no annotation": {**scene["instance"], "annotations": []},
        "only a crowd": {
            **without(scene["instance"], "pan_seg_file_name"),
            "annotations": scene["instance"]["annotations"][1:2],
        },
        "all too small": scene["panoptic"],
        "no target": {**scene["referring"], "target_indices": []},
    }[case]
    for seed in range(20):
        targets = build(record, seed, task=task, min_pixels=1000 if "small" in case else 16)
        assert len(targets.instances) == 0
        assert targets.instances.gt_masks.tensor.shape == (0, 20, 20)
        assert targets.prior_mask.shape == (1, 20, 20)
        assert not targets.prior_mask.any()
        assert targets.conversation.response == NOTHING_FOUND
        assert "[0, 0, 999, 999]" in targets.conversation.instruction
    expected = {"no annotation": 2, "only a crowd": 0, "all too small": 4, "no target": 2}[case]
    assert len(targets.negative_points) == expected


@pytest.mark.parametrize("task", ["refinement", "region"])
def test_the_generator_alone_decides(scene, task):
    first, again = (build(scene["panoptic"], 5, task=task) for _ in range(2))
    assert first.conversation == again.conversation
    assert torch.equal(first.prior_mask, again.prior_mask)
    assert torch.equal(true_mask(first), true_mask(again))
    assert len({build(scene["panoptic"], s, task=task).conversation for s in range(8)}) > 4


def test_a_record_without_masks_is_refused(scene):
    with pytest.raises(ValueError, match=r"image\.png.*take a dataset with masks"):
        build(without(scene["instance"], "annotations", "pan_seg_file_name"))


@pytest.mark.parametrize("probs", [[1, 1], [0, 0, 0], [-1, 1, 1]])
def test_bad_shares_are_refused(probs):
    with pytest.raises(ValueError, match="SITUATION_PROBS"):
        RefinementTargetBuilder(size=20, max_counted_names=20, min_pixels=16, situation_probs=probs)


def test_bad_iou_ranges_are_refused_before_training():
    with pytest.raises(ValueError, match="SHAPE_IOU"):
        RefinementTargetBuilder(size=20, max_counted_names=20, min_pixels=16, shape_iou=[0.9, 0.2])


def mapper_of(flip_prob=0.0, *, is_train=True, **refinement):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.LMM.IMAGE_SIZE = 20
    cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 32
    cfg.INPUT.FLIP_PROB = flip_prob
    for key, value in refinement.items():
        cfg.INPUT.REFINEMENT[key] = value
    cfg.INPUT.REFINEMENT.TARGET_BOX_PROB = 0.0
    cfg.INPUT.REGION_MASK_PROB = 1.0
    return RoseDatasetMapper(cfg, is_train=is_train)


def records_of(scene, registered_scenes, source, task):
    return {**scene[source], "task": task, "dataset_name": registered_scenes[source]}


@pytest.mark.parametrize("source", ["instance", "referring"])
def test_a_mirrored_sample_fits_its_image(scene, registered_scenes, source):
    """The scene's dog is red and its cat green; view columns at the edge are mixed.

    A sample with an expression ("on the left") is not mirrored.
    """
    for task in ("refinement", "region"):
        record = records_of(scene, registered_scenes, source, task)
        mapper = mapper_of(1.0, SITUATION_PROBS=ONLY["mask"], HOLES_PROB=1.0, HOLES_IOU=[0.8, 0.9])
        for seed in range(10):
            item = mapper(record, np.random.default_rng(seed))
            (name,), mask = (
                item["instances"].gt_category_names,
                item["instances"].gt_masks.tensor[0],
            )
            columns = {"dog": slice(16, 19), "cat": slice(2, 5)}[name]
            if source == "referring":
                columns = slice(1, 4)
            assert mask.any(dim=0).nonzero().flatten().tolist() == list(range(20))[columns]
            channel = item["image"][{"dog": 0, "cat": 1}[name]]
            assert channel[mask].float().mean() > 150
            prior = item["prior_mask"][0].bool()
            if source == "instance":
                assert iou(prior, mask) >= 0.8
            if task == "refinement":
                assert box_in_words(prior.numpy(), 20) in item["conversation"].instruction
                assert str(list(item["named_box"])) in item["conversation"].instruction


def test_the_mapper_passes_on_the_prior_and_keeps_the_task(scene, registered_scenes):
    record = records_of(scene, registered_scenes, "panoptic", "refinement")
    item = mapper_of(SITUATION_PROBS=ONLY["missed"])(record, np.random.default_rng(0))
    assert (item["task"], item["dataset_name"]) == ("refinement", "test_panoptic")
    assert item["prior_mask"].shape == (1, 20, 20)
    assert not item["prior_mask"].any()
    plain = records_of(scene, registered_scenes, "panoptic", "panoptic")
    assert "prior_mask" not in mapper_of()(plain, np.random.default_rng(0))


def test_the_config_reaches_the_builders(scene, registered_scenes):
    record = records_of(scene, registered_scenes, "panoptic", "refinement")
    keys = {"SITUATION_PROBS": ONLY["mask"], "MIN_PIXELS": 19, "SHAPE_IOU": [0.2, 0.25]}
    mapper = mapper_of(HOLES_PROB=0.0, **keys)
    for seed in range(10):
        item = mapper(record, np.random.default_rng(seed))
        assert item["instances"].gt_category_names[0] in ("sky", "grass")
        mask = item["instances"].gt_masks.tensor[0]
        assert 0.2 <= iou(item["prior_mask"][0].bool(), mask) <= 0.25


@pytest.mark.parametrize("task", ["refinement", "region"])
def test_there_are_no_test_samples(scene, registered_scenes, task):
    record = records_of(scene, registered_scenes, "instance", task)
    with pytest.raises(ValueError, match=f"'test_instance' has task '{task}'.*only for training"):
        mapper_of(is_train=False)(record)


def test_a_jittered_box_stays_near_and_in_order():
    rng = np.random.default_rng(0)
    boxes = np.array([jittered_box((100, 200, 300, 600), 0.1, rng) for _ in range(200)])
    off = np.abs(boxes - [100, 200, 300, 600])
    assert (off <= [20, 40, 20, 40]).all() and (off.max(axis=0) >= [15, 30, 15, 30]).all()
    assert jittered_box((0, 0, 999, 999), 0.0, rng) == (0, 0, 999, 999)
    assert np.all(np.array(jittered_box((0, 0, 999, 999), 0.4, rng)) <= 999)


@pytest.mark.parametrize("record", ["panoptic", "referring"])
def test_words_may_have_the_box_of_the_target(scene, record):
    """The prior is corrupted, so its box differs from the target's in most samples."""
    always = {"target_box_prob": 1.0, "situation_probs": (1, 0, 0), "holes_prob": 0.0}
    of_target = 0
    for seed in range(20):
        targets = build(scene[record], seed, **always)
        (mask,) = targets.instances.gt_masks.tensor.numpy()
        assert str(list(normalised_box(mask, 20))) in targets.conversation.instruction
        prior = targets.prior_mask[0].numpy() > 0
        of_target += normalised_box(prior, 20) != normalised_box(mask, 20)
    assert of_target > 5
