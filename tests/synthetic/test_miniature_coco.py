import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from rose_d2.data.datasets.coco import (
    CLASS_OF_LABEL,
    COCO_PANOPTIC_IDS,
    COCO_THING_IDS,
    CocoStuffPaths,
    contiguous_labels,
    load_coco_instances,
    load_coco_panoptic,
)
from rose_d2.data.image_io import ImageReadError, read_image
from rose_d2.structures.mask_codec import segmentation_to_rle
from rose_d2.synthetic.miniature_coco import (
    CMYK_IMAGE,
    CORRUPT_IMAGE,
    EMPTY_POLYGON_IMAGE,
    GREY_IMAGE,
    IMAGE_IDS,
    miniature_scene,
    run_lengths,
    trace_polygons,
    write_coco,
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_coco(folder, corrupt_image=True)
    return folder


def read_annotations(root, split):
    content = json.loads(CocoStuffPaths(root, split).instances_json.read_text())
    return content, content["annotations"]


def test_the_official_layout(root):
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    expected = set()
    for split, ids in (("train", range(101, 107)), ("val", range(201, 204))):
        for kind in ("instances", "panoptic"):
            expected.add(f"coco/annotations/{kind}_{split}2017.json")
        for image_id in ids:
            expected.add(f"coco/{split}2017/{image_id:012d}.jpg")
            expected.add(f"coco/panoptic_{split}2017/{image_id:012d}.png")
            expected.add(f"coco/stuffthingmaps/{split}2017/{image_id:012d}.png")
    assert files == expected


def test_modes_of_the_images(root):
    folder = CocoStuffPaths(root, "train").image_root
    modes = {path.name: Image.open(path).mode for path in folder.iterdir()}
    odd = {f"{GREY_IMAGE:012d}.jpg": "L", f"{CMYK_IMAGE:012d}.jpg": "CMYK"}
    assert {name: mode for name, mode in modes.items() if mode != "RGB"} == odd
    picture = miniature_scene(CMYK_IMAGE).image.astype(int)
    assert abs(read_image(folder / f"{CMYK_IMAGE:012d}.jpg") - picture).mean() < 12


def test_only_the_image_asked_for_is_corrupt(root):
    for path in CocoStuffPaths(root, "train").image_root.iterdir():
        if path.stem == f"{CORRUPT_IMAGE:012d}":
            with pytest.raises(ImageReadError):
                read_image(path)
        else:
            read_image(path)


def test_nothing_is_corrupt_unasked(tmp_path, monkeypatch):
    monkeypatch.setattr("rose_d2.synthetic.miniature_coco.IMAGE_IDS", {"train": (CORRUPT_IMAGE,)})
    write_coco(tmp_path)
    picture = read_image(tmp_path / "coco" / "train2017" / f"{CORRUPT_IMAGE:012d}.jpg")
    assert picture.shape == miniature_scene(CORRUPT_IMAGE).image.shape


def test_every_kind_of_segmentation_occurs(root):
    content, annotations = read_annotations(root, "train")
    kinds = set()
    for annotation in annotations:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, dict):
            kinds.add(type(segmentation["counts"]))
            assert annotation["iscrowd"] == isinstance(segmentation["counts"], list)
        else:
            kinds.add(tuple if segmentation else None)
    assert kinds == {list, str, tuple, None}
    (empty,) = [a for a in annotations if a["segmentation"] == []]
    assert empty["image_id"] == EMPTY_POLYGON_IMAGE
    assert len({a["id"] for a in annotations}) == len(annotations)
    assert [c["id"] for c in content["categories"]] == list(COCO_THING_IDS)


def test_every_image_has_a_thing_and_both_splits_a_crowd(root):
    for split, image_ids in IMAGE_IDS.items():
        _, annotations = read_annotations(root, split)
        single = {a["image_id"] for a in annotations if not a["iscrowd"]}
        assert single == set(image_ids)
        assert any(a["iscrowd"] for a in annotations)


def test_masks_are_those_of_the_scene(root):
    scenes = {image_id: miniature_scene(image_id) for image_id in IMAGE_IDS["train"]}
    for annotation in read_annotations(root, "train")[1]:
        scene = scenes[annotation["image_id"]]
        rle = segmentation_to_rle(annotation["segmentation"], *scene.stuff.shape)
        if rle is None:
            continue
        mask = coco_mask.decode(rle).astype(bool)
        things = np.logical_or.reduce([thing.mask for thing in scene.objects])
        # Polygons fill holes and lose half a pixel at the border.
        assert (mask & things).sum() > 0.6 * mask.sum()
        assert 0.8 * annotation["area"] < mask.sum() < 1.6 * annotation["area"]


def test_the_loaders_accept_everything(root):
    for split, image_ids in IMAGE_IDS.items():
        paths = CocoStuffPaths(root, split)
        records = load_coco_instances(paths.instances_json, paths.image_root, COCO_THING_IDS)
        assert [record["image_id"] for record in records] == list(image_ids)
        stuff_ids = {k: v for k, v in COCO_PANOPTIC_IDS.items() if v >= 80}
        panoptic = load_coco_panoptic(
            paths.panoptic_json, paths.image_root, paths.panoptic_root, COCO_THING_IDS, stuff_ids
        )
        for record in panoptic:
            assert {s["isthing"] for s in record["segments_info"]} == {True, False}


def test_label_maps_hold_labels_minus_one_and_unlabelled(root):
    values = set()
    for path in CocoStuffPaths(root, "train").stuff_thing_maps.iterdir():
        label_map = np.asarray(Image.open(path))
        contiguous_labels(label_map, path)
        values |= set(np.unique(label_map).tolist())
    assert 255 in values
    assert {v + 1 for v in values - {255}} <= set(CLASS_OF_LABEL)
    assert any(v < 91 for v in values) and any(91 <= v < 182 for v in values)


def test_panoptic_ids_use_all_three_bytes_and_leave_void(root):
    path = CocoStuffPaths(root, "train").panoptic_root / "000000000102.png"
    colours = np.asarray(Image.open(path))
    assert (colours.max(axis=(0, 1)) > 0).all()
    # The turtle and the rabbit are none of the 133 classes.
    turtle, rabbit = (thing.mask for thing in miniature_scene(102).objects[:2])
    assert np.array_equal(~colours.any(axis=2), turtle | rabbit)


def test_run_lengths_start_with_zeros():
    mask = np.array([[0, 1, 0], [0, 1, 1]], dtype=bool)
    assert run_lengths(mask) == {"size": [2, 3], "counts": [2, 2, 1, 1]}
    assert run_lengths(~mask) == {"size": [2, 3], "counts": [0, 2, 2, 1, 1]}
    code = coco_mask.frPyObjects(run_lengths(~mask), 2, 3)
    assert np.array_equal(coco_mask.decode(code), ~mask)


def test_polygons_go_through_the_centres_of_border_pixels():
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:6] = True
    (polygon,) = trace_polygons(mask)
    corners = {tuple(point) for point in np.reshape(polygon, (-1, 2)).tolist()}
    assert corners == {(2.5, 1.5), (5.5, 1.5), (5.5, 3.5), (2.5, 3.5)}
