"""The official layout, and every oddity of the real data that it imitates."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.ade20k import CLASS_NAMES, STUFF_IDS, THING_IDS, Ade20kPaths
from rose_d2.data.datasets.clipart import ALL_NAMES, STUFF_NAMES, THING_BY_NAME, THING_NAMES
from rose_d2.data.datasets.coco import load_coco_panoptic
from rose_d2.data.datasets.mapillary_vistas import V1_2, VistasPaths
from rose_d2.data.image_io import read_image
from rose_d2.synthetic.miniature_coco import miniature_scene
from rose_d2.synthetic.miniature_dense import (
    ADE20K_SCENE_IDS,
    UNLABELLED_ROWS,
    VISTAS_SCENE_IDS,
    ade20k_class,
    draw_vistas_instances,
    image_key,
    write_ade20k,
    write_mapillary_vistas,
)

LABELS = {label.name: value for value, label in enumerate(V1_2.labels)}


@pytest.fixture(scope="module")
def ade20k_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_ade20k(folder)
    return folder


def read(folder, stem):
    return np.asarray(Image.open(folder / f"{stem}.png"))


def pictures(ade20k_root, split):
    """Scene, labels and instances of each picture of a split."""
    paths = Ade20kPaths(ade20k_root, split)
    for number, scene_id in enumerate(ADE20K_SCENE_IDS[split], start=1):
        stem = f"ADE_{split}_{number:08d}"
        scene = miniature_scene(scene_id)
        yield scene, read(paths.label_root, stem), read(paths.instance_label_root, stem)


def test_only_what_the_downloads_hold_is_written(ade20k_root):
    files = sorted(str(p.relative_to(ade20k_root)) for p in ade20k_root.rglob("*") if p.is_file())
    assert len(files) == 3 * (6 + 3)
    assert files[0] == "ADEChallengeData2016/annotations/training/ADE_train_00000001.png"
    assert files[-1] == "ADEChallengeData2016/images/validation/ADE_val_00000003.jpg"
    assert {Path(name).parts[1] for name in files} == {
        "images",
        "annotations",
        "annotations_instance",
    }


def test_one_grey_and_one_cmyk_jpeg(ade20k_root):
    folder = Ade20kPaths(ade20k_root, "train").image_root
    modes = [Image.open(path).mode for path in sorted(folder.iterdir())]
    assert modes == ["RGB", "L", "CMYK", "RGB", "RGB", "RGB"]
    # CMYK survives the way back: red things stay red.
    picture = read_image(folder / "ADE_train_00000003.jpg").astype(int)
    scene = miniature_scene(ADE20K_SCENE_IDS["train"][2]).image.astype(int)
    assert np.abs(picture - scene).mean() < 6


@pytest.mark.parametrize("split", ADE20K_SCENE_IDS)
def test_labels_count_from_one_and_leave_gaps(ade20k_root, split):
    for scene, labels, _ in pictures(ade20k_root, split):
        assert labels.dtype == np.uint8 and labels.shape == scene.stuff.shape
        assert not labels[-UNLABELLED_ROWS:].any()
        snow = scene.stuff == STUFF_NAMES.index("snow")
        for thing in scene.objects:
            snow &= ~thing.mask
        assert not labels[snow].any()


@pytest.mark.parametrize("split", ADE20K_SCENE_IDS)
def test_instances_are_numbered_and_have_the_class_of_their_label(ade20k_root, split):
    for number, (scene, labels, instances) in enumerate(pictures(ade20k_root, split)):
        names = [thing.object_name for thing in scene.objects]
        things = [name for name in names if ade20k_class(name) in THING_IDS]
        if split == "train" and number == 0:
            things = things[1:]
        present = np.unique(instances[..., 1]).tolist()
        assert present == list(range(len(things) + 1))
        for instance, name in enumerate(things, start=1):
            mask = instances[..., 1] == instance
            category = np.unique(instances[..., 0][mask]).tolist()
            assert [THING_IDS[k - 1] for k in category] == [ade20k_class(name)]
            inside = labels[mask] == ade20k_class(name) + 1
            # All but one column, which the other annotator gave to what is behind.
            assert 0.7 < inside.mean() < 1


def test_the_first_training_picture_has_a_thing_without_an_instance(ade20k_root):
    scene, labels, instances = next(pictures(ade20k_root, "train"))
    first = next(t for t in scene.objects if ade20k_class(t.object_name) in THING_IDS)
    assert not instances[first.mask].any()
    assert (labels[first.mask] == ade20k_class(first.object_name) + 1).mean() > 0.7


def test_things_that_are_stuff_in_ade20k_have_no_instance(ade20k_root):
    castles = [
        (instances[thing.mask], labels[thing.mask])
        for split in ADE20K_SCENE_IDS
        for scene, labels, instances in pictures(ade20k_root, split)
        for thing in scene.objects
        if thing.object_name in ("castle", "tree")
    ]
    assert len(castles) >= 3
    assert not any(instances.any() for instances, _ in castles)


def test_every_name_of_the_scenes_has_a_class_but_snow():
    for name in ALL_NAMES:
        object_name = THING_BY_NAME[name].object_name if name in THING_NAMES else name
        class_id = ade20k_class(object_name)
        assert (class_id is None) == (name == "snow")
        if name in STUFF_NAMES and name != "snow":
            assert class_id in STUFF_IDS and CLASS_NAMES[class_id] == name
    assert CLASS_NAMES[ade20k_class("dog")] == "animal"


def test_writing_again_gives_the_same_files(ade20k_root, tmp_path):
    write_ade20k(tmp_path)
    for path in ade20k_root.rglob("*.*"):
        assert (tmp_path / path.relative_to(ade20k_root)).read_bytes() == path.read_bytes()


@pytest.fixture(scope="module")
def vistas_root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_mapillary_vistas(folder)
    return folder


def test_the_official_layout(vistas_root):
    files = {
        str(path.relative_to(vistas_root)) for path in vistas_root.rglob("*") if path.is_file()
    }
    expected = {"mapillary_vistas/config.json"}
    for part, scene_ids in (("training", (501, 507, 517, 523)), ("validation", (504, 525))):
        for scene_id in scene_ids:
            folder, key = f"mapillary_vistas/{part}", f"miniature-vistas_{scene_id:05d}"
            assert len(key) == 22
            expected |= {f"{folder}/images/{key}.jpg"}
            expected |= {f"{folder}/{kind}/{key}.png" for kind in ("labels", "instances")}
            if part == "validation":
                expected |= {f"{folder}/panoptic/{name}" for name in (f"{key}.png",)}
    expected.add("mapillary_vistas/validation/panoptic/panoptic_2018.json")
    assert files == expected


def test_labels_have_a_palette_and_instances_16_bits(vistas_root):
    for split, scene_ids in VISTAS_SCENE_IDS.items():
        paths = VistasPaths(vistas_root, V1_2, split)
        for scene_id in scene_ids:
            name = f"{image_key(scene_id)}.png"
            labels = Image.open(paths.label_root / name)
            instances = Image.open(paths.instance_root / name)
            assert labels.mode == "P" and instances.mode.startswith("I;16")
            assert labels.getpalette()[:6] == [165, 42, 42, 0, 192, 0]
            assert np.array_equal(np.asarray(labels), np.asarray(instances) // 256)


def test_instances_are_numbered_within_their_label():
    scene = miniature_scene(504)
    values = draw_vistas_instances(scene)
    tractors = [thing.mask for thing in scene.objects if thing.object_name == "tractor"]
    label = LABELS["Other Vehicle"]
    assert [int(values[mask][0]) - 256 * label for mask in tractors] == [0, 1, 2]
    (pizza,) = [thing.mask for thing in scene.objects if thing.object_name == "pizza"]
    assert (values[pizza] == 256 * LABELS["Unlabeled"]).all()


def test_stuff_has_no_numbers():
    values = draw_vistas_instances(miniature_scene(523))
    assert (values // 256 == LABELS["On Rails"]).any()
    stuff = [k for k, label in enumerate(V1_2.labels) if label.kind != "thing"]
    assert (values[np.isin(values // 256, stuff)] % 256 == 0).all()


def test_official_panoptic_files_agree_with_the_labels(vistas_root):
    paths = VistasPaths(vistas_root, V1_2, "val")
    assert not VistasPaths(vistas_root, V1_2, "train").panoptic_root.exists()
    records = load_coco_panoptic(
        paths.panoptic_json,
        paths.image_root,
        paths.panoptic_root,
        V1_2.panoptic_ids("thing"),
        V1_2.panoptic_ids("stuff"),
    )
    assert [record["image_id"] for record in records] == [
        image_key(i) for i in VISTAS_SCENE_IDS["val"]
    ]
    for record in records:
        colours = np.asarray(Image.open(record["pan_seg_file_name"])).astype(int)
        ids = colours @ np.array([1, 256, 65536])
        labels = np.asarray(Image.open(paths.label_root / f"{record['image_id']}.png"))
        drawn = np.full(labels.shape, LABELS["Unlabeled"])
        for segment in record["segments_info"]:
            drawn[ids == segment["id"]] = segment["category_id"]
        assert np.array_equal(drawn, labels)


def test_the_config_lists_all_labels(vistas_root):
    config = json.loads((vistas_root / "mapillary_vistas" / "config.json").read_text())
    assert [label["readable"] for label in config["labels"]] == list(LABELS)
    assert sum(label["instances"] for label in config["labels"]) == 37
    assert sum(label["evaluate"] for label in config["labels"]) == 65
