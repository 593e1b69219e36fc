import numpy as np
import pytest
import torch
from detectron2.config import get_cfg

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.image_io import ImageReadError
from rose_d2.layers.masks import mask_centre


def _mapper(is_train=True, flip_prob=0.0, candidates=""):
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.LMM.IMAGE_SIZE = 20
    cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 32
    cfg.INPUT.FLIP_PROB = flip_prob
    cfg.TEST.CANDIDATES = candidates
    return RoseDatasetMapper(cfg, is_train=is_train)


@pytest.fixture
def records(scene, registered_scenes):
    return {
        task: {**record, "task": task, "dataset_name": registered_scenes[task]}
        for task, record in scene.items()
    }


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic", "referring"])
def test_training_item_has_views_and_targets(records, task):
    before = dict(records[task])
    item = _mapper()(records[task], np.random.default_rng(0))
    assert item["image"].shape == (3, 20, 20)
    assert item["sam_image"].shape == (3, 16, 32)
    assert item["image"].dtype == item["sam_image"].dtype == torch.uint8
    assert (item["height"], item["width"], item["image_id"]) == (20, 40, 1)
    assert (item["task"], item["dataset_name"]) == (task, f"test_{task}")
    assert item["conversation"].response.startswith("There are")
    assert item["instances"].image_size == (20, 20)
    assert item["negative_points"].shape[1] == 2
    instances = item["instances"]
    assert instances.gt_areas.tolist() == instances.gt_masks.tensor.sum((1, 2)).tolist()
    assert instances.gt_centres.tolist() == [[*mask_centre(m)] for m in instances.gt_masks.tensor]
    assert item["ignore_mask"].shape == (20, 20)
    assert "annotations" not in item
    assert records[task] == before


def test_masks_lie_on_their_objects(records):
    item = _mapper()(records["instance"], np.random.default_rng(0))
    masks = dict(zip(item["instances"].gt_category_names, item["instances"].gt_masks, strict=True))
    red, green = item["image"][0].float(), item["image"][1].float()
    # The view halves the columns, so pixels at the object's edge are mixed.
    assert red[masks["dog"]].mean() > 150
    assert green[masks["cat"]].mean() > 150
    assert red[masks["cat"]].mean() < 1


def test_flip_mirrors_image_and_masks_together(records):
    plain = _mapper()(records["instance"], np.random.default_rng(0))
    flipped = _mapper(flip_prob=1.0)(records["instance"], np.random.default_rng(0))
    assert torch.equal(flipped["image"], plain["image"].flip(dims=[2]))
    assert torch.equal(flipped["sam_image"], plain["sam_image"].flip(dims=[2]))
    assert torch.equal(
        flipped["instances"].gt_masks.tensor, plain["instances"].gt_masks.tensor.flip(dims=[2])
    )


def test_referring_is_never_flipped(records):
    plain = _mapper()(records["referring"], np.random.default_rng(0))
    other = _mapper(flip_prob=1.0)(records["referring"], np.random.default_rng(0))
    assert torch.equal(other["image"], plain["image"])


def test_same_generator_same_item(records):
    mapper = _mapper(flip_prob=0.5)
    items = [mapper(records["semantic"], np.random.default_rng(7)) for _ in range(2)]
    assert items[0]["conversation"] == items[1]["conversation"]
    assert torch.equal(items[0]["image"], items[1]["image"])


def test_test_item_has_the_papers_wording_and_no_targets(records):
    item = _mapper(is_train=False, flip_prob=1.0)(records["referring"])
    assert item["conversation"].instruction == (
        "What is the dog on the left in this image? Please output the segmentation mask."
    )
    assert item["conversation"].response is None
    assert (item["ref_id"], item["sent_id"]) == (8, 9)
    assert not {"instances", "negative_points", "ignore_mask", "annotations"} & set(item)


def test_test_item_passes_on_candidates(records):
    item = _mapper(is_train=False)({**records["instance"], "candidates": ["dog", "cat"]})
    assert item["candidates"] == ["dog", "cat"]
    assert item["conversation"].instruction.endswith("from: dog, cat.")


@pytest.mark.parametrize(
    ("mode", "listed", "allowed"),
    [("", False, False), ("prompt", True, False), ("decode", False, True), ("both", True, True)],
)
@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("instance", ["dog", "cat", "red car"]),
        ("semantic", ["dog", "cat", "red car", "sky", "grass"]),
        ("panoptic", ["dog", "cat", "red car", "sky", "grass"]),
    ],
)
def test_classes_are_listed_or_confine_names_by_mode(records, task, names, mode, listed, allowed):
    free = _mapper(is_train=False)(records[task])["conversation"].instruction
    item = _mapper(is_train=False, candidates=mode)(records[task])
    clause = f" Please choose the category names from: {', '.join(names)}."
    assert item["conversation"].instruction == free + (clause if listed else "")
    assert item.get("candidates") == (names if allowed else None)


def test_referring_takes_no_candidates(records):
    free = _mapper(is_train=False)(records["referring"])
    item = _mapper(is_train=False, candidates="both")(records["referring"])
    assert item["conversation"] == free["conversation"]
    assert "candidates" not in item


def test_a_samples_own_candidates_come_first(records):
    record = {**records["instance"], "candidates": ["zebra"]}
    item = _mapper(is_train=False, candidates="prompt")(record)
    assert item["candidates"] == ["zebra"]
    assert item["conversation"].instruction.endswith("from: zebra.")


def test_unknown_candidate_mode_is_refused(records):
    with pytest.raises(ValueError, match="TEST.CANDIDATES is 'all'"):
        _mapper(is_train=False, candidates="all")


def test_unknown_task_is_refused(records):
    with pytest.raises(ValueError, match=r"detection.*known tasks are"):
        _mapper()({**records["instance"], "task": "detection"})


def test_an_image_of_another_size_is_refused(records):
    with pytest.raises(ImageReadError, match=r"image\.png.*\(20, 40\).*\(40, 20\)"):
        _mapper()({**records["instance"], "height": 40, "width": 20})
