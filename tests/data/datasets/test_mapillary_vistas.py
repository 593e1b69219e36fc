"""A hand-made validation image, 10 x 20 pixels: sky above road, two cars, one row unlabelled."""

import json

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.builtin import DEFAULT_ROOT
from rose_d2.data.datasets.mapillary_vistas import (
    V1_2,
    V2_0,
    VistasPaths,
    register_mapillary_vistas,
)
from rose_d2.data.scene_targets import SemanticTargetBuilder
from rose_d2.evaluation.build import build_evaluator
from rose_d2.evaluation.ground_truth import load_objects
from rose_d2.layers.masks import masks_to_boxes
from rose_d2.structures.category_names import CategoryNames

HEIGHT, WIDTH = 10, 20


KEY = "cccccccccccccccccccccc"


ROAD, SKY, CAR, UNLABELLED = 13, 27, 55, 65


NAMES = V1_2.clean_names().names


def draw_segments():
    ids = np.full((HEIGHT, WIDTH), 1)
    ids[5:9], ids[9] = 70000, 0
    ids[2:6, 2:6], ids[2:6, 10:14] = 3, 4
    return ids


def write_files(folder, categories):
    """Images, labels with a palette, and panoptic files whose categories count from 1."""
    ids = draw_segments()
    classes = {1: SKY, 70000: ROAD, 3: CAR, 4: CAR}
    labels = np.full((HEIGHT, WIDTH), UNLABELLED, dtype=np.uint8)
    for segment_id, class_id in classes.items():
        labels[ids == segment_id] = class_id
    for name in ("images", "labels", "panoptic"):
        (folder / name).mkdir(parents=True)
    Image.new("RGB", (WIDTH, HEIGHT)).save(folder / "images" / f"{KEY}.jpg")
    picture = Image.fromarray(labels)
    picture.putpalette([part for label in V1_2.labels for part in label.color])
    picture.save(folder / "labels" / f"{KEY}.png")
    colours = np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)
    Image.fromarray(colours).save(folder / "panoptic" / f"{KEY}.png")
    segments = [
        {"id": k, "category_id": c + 1, "iscrowd": 0, "area": int((ids == k).sum())}
        for k, c in classes.items()
    ]
    annotation = {"image_id": KEY, "file_name": f"{KEY}.png", "segments_info": segments}
    content = {
        "images": [{"id": KEY, "file_name": f"{KEY}.jpg", "height": HEIGHT, "width": WIDTH}],
        "annotations": [annotation],
        "categories": categories,
    }
    (folder / "panoptic" / "panoptic_2018.json").write_text(json.dumps(content))


def list_categories():
    return [
        {"id": k + 1, "name": label.name, "isthing": int(label.kind == "thing")}
        for k, label in enumerate(V1_2.classes)
    ]


@pytest.fixture
def root(tmp_path):
    write_files(tmp_path / "mapillary_vistas" / "validation", list_categories())
    register_mapillary_vistas(tmp_path)
    yield tmp_path
    register_mapillary_vistas(DEFAULT_ROOT)


@pytest.mark.parametrize(
    ("version", "total", "things", "stuff", "void"), [(V1_2, 66, 37, 28, 1), (V2_0, 124, 70, 46, 8)]
)
def test_published_counts(version, total, things, stuff, void):
    kinds = [label.kind for label in version.labels]
    assert len(kinds) == total
    assert [kinds.count(kind) for kind in ("thing", "stuff", "void")] == [things, stuff, void]
    names = version.clean_names().names
    assert len(set(names)) == len(names) == things + stuff
    assert all(0 <= part <= 255 for label in version.labels for part in label.color)


def test_labels_have_the_published_places():
    places = {0: "Bird", 19: "Person", 55: "Car", 64: "Ego Vehicle", 65: "Unlabeled"}
    assert {k: V1_2.labels[k].name for k in places} == places
    places = {2: "Ambiguous Barrier", 30: "Person", 77: "Pothole", 108: "Car", 123: "Unlabeled"}
    assert {k: V2_0.labels[k].name for k in places} == places
    assert [k for k, label in enumerate(V2_0.labels) if label.kind == "void"] == [
        *(2, 31, 38, 79),
        *(86, 96, 115, 123),
    ]
    shared = {label.name for label in V1_2.labels} & {label.name for label in V2_0.labels}
    kinds = [{x.name: x.kind for x in v.labels if x.name in shared} for v in (V1_2, V2_0)]
    # Trains became instances in 2.0; nothing else changed.
    assert {name for name in shared if kinds[0][name] != kinds[1][name]} == {"On Rails"}


def test_labels_are_read_with_colour_and_kind():
    assert V1_2.labels[7] == ("Bike Lane", (128, 64, 255), "stuff")
    assert V1_2.labels[49] == ("Traffic Sign (Back)", (192, 192, 192), "thing")
    assert V1_2.labels[-1] == V2_0.labels[-1] == ("Unlabeled", (0, 0, 0), "void")
    assert V2_0.labels[43] == (
        *("Lane Marking - Arrow (Split Right or Straight)", (250, 170, 21)),
        "thing",
    )
    assert V2_0.labels[79] == ("Signage - Ambiguous", (250, 172, 30), "void")


def test_classes_of_labels():
    assert V1_2.class_of_label().tolist() == [*range(65), 255]
    table = V2_0.class_of_label()
    assert [int(table[k]) for k in (1, 2, 3, 31, 32, 122, 123)] == [1, 255, 2, 255, 30, 115, 255]
    # The panoptic JSON of 2.0 counts evaluated classes only, so separators have id 10.
    separator = [label.name for label in V2_0.classes].index("Lane Separator")
    assert V2_0.panoptic_ids("stuff")[10] == separator


def test_names_of_classes():
    assert (NAMES[0], NAMES[ROAD], NAMES[49], NAMES[CAR]) == (
        *("bird", "road", "traffic sign back"),
        "car",
    )


def test_newer_downloads_have_a_folder_for_each_version(tmp_path):
    folder = tmp_path / "mapillary_vistas" / "training"
    assert VistasPaths(tmp_path, V1_2, "train").label_root == folder / "labels"
    (folder / "v1.2").mkdir(parents=True)
    paths = VistasPaths(tmp_path, V1_2, "train")
    assert paths.label_root == folder / "v1.2" / "labels"
    assert paths.image_root == folder / "images"
    assert VistasPaths(tmp_path, V2_0, "train").panoptic_json == (
        folder / "v2.0" / "panoptic" / "panoptic_2020.json"
    )


def test_records(root):
    (record,) = DatasetCatalog.get("mapillary_vistas_sem_seg_val")
    folder = root / "mapillary_vistas" / "validation"
    assert record["file_name"] == str(folder / "images" / f"{KEY}.jpg")
    assert record["sem_seg_file_name"] == str(folder / "labels" / f"{KEY}.png")
    assert (record["image_id"], record["task"]) == (KEY, "semantic")
    segments = [(s["category_id"], s["isthing"]) for s in record["segments_info"]]
    assert segments == [(SKY, False), (ROAD, False), (CAR, True), (CAR, True)]
    (record,) = DatasetCatalog.get("mapillary_vistas_panoptic_val")
    assert "sem_seg_file_name" not in record
    assert record["task"] == "panoptic"


def test_each_thing_is_a_target_and_each_stuff_category_is_one(root):
    name = "mapillary_vistas_sem_seg_val"
    (record,) = DatasetCatalog.get(name)
    builder = SemanticTargetBuilder(size=20, max_counted_names=10)
    targets = builder.build(record, MetadataCatalog.get(name), np.random.default_rng(0))
    assert list(targets.instances.gt_category_names) == ["car", "car", "sky", "road"]
    assert targets.instances.gt_is_stuff.tolist() == [False, False, True, True]
    masks = targets.instances.gt_masks.tensor
    assert masks.sum(dim=(1, 2)).tolist() == [32, 32, 5 * 40 - 48, 4 * 40 - 16]
    assert targets.ignore_mask[18:].all() and not targets.ignore_mask[:18].any()


def test_metadata(root):
    metadata = MetadataCatalog.get("mapillary_vistas_sem_seg_train")
    assert (metadata.ignore_label, metadata.evaluator_type) == (65, "sem_seg")
    assert metadata.stuff_classes == NAMES
    assert len(metadata.class_synonyms) == len(metadata.stuff_colors) == 65
    assert len(metadata.thing_dataset_id_to_contiguous_id) == 37
    assert (metadata.thing_classes[CAR], metadata.thing_classes[ROAD]) == ("car", "")
    newer = MetadataCatalog.get("mapillary_vistas_v2_panoptic_val")
    assert (newer.ignore_label, len(newer.stuff_classes)) == (255, 116)
    assert newer.evaluator_type == "coco_panoptic_seg"


@pytest.mark.parametrize("spelling", ["readable", "hierarchy"])
def test_categories_of_the_file_may_be_spelled_either_way(tmp_path, spelling):
    categories = list_categories()
    if spelling == "hierarchy":
        categories[0]["name"] = "animal--bird"
        categories[49]["name"] = "object--traffic-sign--back"
    # Unlabelled may be listed too.
    categories.append({"id": 66, "name": "Unlabeled"})
    write_files(tmp_path / "mapillary_vistas" / "validation", categories)
    register_mapillary_vistas(tmp_path)
    assert len(DatasetCatalog.get("mapillary_vistas_panoptic_val")) == 1
    register_mapillary_vistas(DEFAULT_ROOT)


def test_a_panoptic_file_of_another_version_is_refused(tmp_path):
    categories = [{"id": k + 1, "name": label.name} for k, label in enumerate(V2_0.classes)]
    write_files(tmp_path / "mapillary_vistas" / "validation", categories)
    register_mapillary_vistas(tmp_path)
    with pytest.raises(
        ValueError, match="category 3 is 'Concrete Block', but in .* v1.2 .* 'curb'"
    ):
        DatasetCatalog.get("mapillary_vistas_panoptic_val")
    register_mapillary_vistas(DEFAULT_ROOT)


def test_missing_files_are_named_with_the_command(root):
    with pytest.raises(FileNotFoundError, match=r"prepare_mapillary_vistas\.py --version v2\.0"):
        DatasetCatalog.get("mapillary_vistas_v2_sem_seg_train")


def perfect_output(record):
    objects = load_objects(record)
    instances = Instances(
        (HEIGHT, WIDTH),
        pred_masks=objects.masks,
        pred_boxes=masks_to_boxes(objects.masks),
        scores=torch.ones(len(objects)),
        pred_classes=torch.tensor(objects.classes),
        pred_category_names=CategoryNames(NAMES[c] for c in objects.classes),
    )
    segments = [
        {**segment, "category_name": NAMES[segment["category_id"]], "score": 1.0}
        for segment in record["segments_info"]
    ]
    output = {
        "instances": instances,
        "panoptic_seg": (torch.from_numpy(draw_segments()).int(), segments),
    }
    if "sem_seg_file_name" in record:
        labels = np.array(Image.open(record["sem_seg_file_name"]))
        # Where nothing is labelled, anything may be predicted.
        labels[labels == UNLABELLED] = SKY
        scores = torch.zeros(66, HEIGHT, WIDTH)
        output["sem_seg"] = scores.scatter_(0, torch.from_numpy(labels).long()[None], 1.0)
    return output


@pytest.mark.parametrize(
    ("kind", "task", "metric"),
    [("sem_seg", "sem_seg", "mIoU"), ("panoptic", "panoptic_seg", "PQ")],
)
def test_the_evaluators_accept_the_ground_truth(root, tmp_path, kind, task, metric):
    cfg = get_cfg()
    add_rose_config(cfg)
    name = f"mapillary_vistas_{kind}_val"
    evaluator = build_evaluator(cfg, name, str(tmp_path / "out"))
    evaluator.reset()
    (record,) = DatasetCatalog.get(name)
    evaluator.process([record], [perfect_output(record)])
    results = evaluator.evaluate()
    assert results[task][metric] == pytest.approx(100)
    assert results["names"]["name_exact"] == 100


@pytest.mark.parametrize("kind", ["sem_seg", "panoptic"])
def test_the_visualizer_of_detectron2_draws_it(root, kind):
    name = f"mapillary_vistas_{kind}_val"
    (record,) = DatasetCatalog.get(name)
    visualizer = Visualizer(np.zeros((HEIGHT, WIDTH, 3)), MetadataCatalog.get(name))
    assert visualizer.draw_dataset_dict(record).get_image().any()
