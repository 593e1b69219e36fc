import json

import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.coco import load_coco_panoptic
from rose_d2.data.datasets.mapillary_vistas import V1_2, VistasPaths
from rose_d2.synthetic.miniature_coco import miniature_scene
from rose_d2.synthetic.miniature_dense import (
    VISTAS_SCENE_IDS,
    draw_vistas_instances,
    image_key,
    write_mapillary_vistas,
)

LABELS = {label.name: value for value, label in enumerate(V1_2.labels)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    write_mapillary_vistas(folder)
    return folder


def test_the_official_layout(root):
    files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
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


def test_labels_have_a_palette_and_instances_16_bits(root):
    for split, scene_ids in VISTAS_SCENE_IDS.items():
        paths = VistasPaths(root, V1_2, split)
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


def test_official_panoptic_files_agree_with_the_labels(root):
    paths = VistasPaths(root, V1_2, "val")
    assert not VistasPaths(root, V1_2, "train").panoptic_root.exists()
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


def test_the_config_lists_all_labels(root):
    config = json.loads((root / "mapillary_vistas" / "config.json").read_text())
    assert [label["readable"] for label in config["labels"]] == list(LABELS)
    assert sum(label["instances"] for label in config["labels"]) == 37
    assert sum(label["evaluate"] for label in config["labels"]) == 65
