import numpy as np
import pytest
from pycocotools import mask as mask_util

from rose_d2.data.datasets.clipart import ALL_NAMES, CATEGORY_IDS, STUFF_NAMES
from rose_d2.synthetic.annotate import (
    encode_mask,
    instance_annotations,
    label_map,
    panoptic_map,
    refer_records,
)
from rose_d2.synthetic.scene import Scene, SceneObject


@pytest.fixture
def scene():
    """6 x 8 pixels: sky over grass, a dog of 2 x 2 pixels in the sky, a red car of 1 x 3 below."""
    stuff = np.full((6, 8), STUFF_NAMES.index("sky"))
    stuff[3:] = STUFF_NAMES.index("grass")
    dog, car = np.zeros((6, 8), bool), np.zeros((6, 8), bool)
    dog[0:2, 1:3] = True
    car[4, 4:7] = True
    objects = [
        SceneObject("dog", dog, 4, (1, 0, 3, 2), (2.0, 1.0)),
        SceneObject("red car", car, 3, (4, 4, 7, 5), (5.5, 4.5)),
    ]
    return Scene(np.zeros((6, 8, 3), np.uint8), stuff, objects)


def test_masks_survive_the_run_length_code(scene):
    code = encode_mask(scene.objects[0].mask)
    assert isinstance(code["counts"], str)
    assert (mask_util.decode(code).astype(bool) == scene.objects[0].mask).all()


def test_instance_annotations(scene):
    dog, car = instance_annotations(scene, 12)
    assert (dog["id"], car["id"]) == (1201, 1202)
    assert dog["image_id"] == car["image_id"] == 12
    assert (dog["bbox"], car["bbox"]) == ([1, 0, 2, 2], [4, 4, 3, 1])
    assert (dog["area"], car["area"]) == (4, 3)
    assert car["category_id"] == CATEGORY_IDS["red car"]
    assert mask_util.decode(car["segmentation"]).sum() == 3


def test_label_map_counts_things_first(scene):
    labels = label_map(scene)
    assert labels.dtype == np.uint8
    assert ALL_NAMES[labels[0, 0]] == "sky"
    assert ALL_NAMES[labels[5, 0]] == "grass"
    assert ALL_NAMES[labels[1, 2]] == "dog"
    assert ALL_NAMES[labels[4, 5]] == "red car"


def test_panoptic_map_gives_one_segment_per_thing_and_stuff_class(scene):
    png, record = panoptic_map(scene, 12)
    assert record["file_name"] == "000012.png"
    ids = png.astype(int) @ [1, 256, 65536]
    names = {}
    for segment in record["segments_info"]:
        mask = ids == segment["id"]
        ys, xs = np.nonzero(mask)
        x, y, width, height = segment["bbox"]
        assert segment["area"] == mask.sum()
        assert (x, y) == (xs.min(), ys.min())
        assert (x + width - 1, y + height - 1) == (xs.max(), ys.max())
        names[ALL_NAMES[segment["category_id"] - 1]] = segment["area"]
    assert names == {"dog": 4, "red car": 3, "sky": 24 - 4, "grass": 24 - 3}


def test_stuff_that_is_covered_completely_has_no_segment(scene):
    scene.objects[0].mask[:3] = True
    _, record = panoptic_map(scene, 12)
    names = [ALL_NAMES[segment["category_id"] - 1] for segment in record["segments_info"]]
    assert names == ["dog", "red car", "grass"]


def test_refer_records_have_unique_ids_and_tokens(scene):
    annotations = instance_annotations(scene, 12)
    references = [(0, ["the dog", "the leftmost object"]), (1, ["the red car"])]
    dog, car = refer_records(references, annotations, "val/000012.jpg", "val")
    assert (dog["ref_id"], car["ref_id"]) == (121, 122)
    assert (dog["ann_id"], car["ann_id"]) == (1201, 1202)
    assert dog["sent_ids"] == [1210, 1211]
    assert [s["sent_id"] for s in dog["sentences"]] == dog["sent_ids"]
    assert dog["sentences"][1]["tokens"] == ["the", "leftmost", "object"]
    assert car["file_name"] == "val/000012.jpg"
    assert car["split"] == "val"
