import argparse
import json

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.custom import (
    CUSTOM_NAME,
    add_custom_data_arguments,
    read_class_names,
    register_custom,
    register_custom_coco,
    register_custom_labels,
    use_custom_data,
)
from rose_d2.data.datasets.registration import strict_annotations, unregister
from rose_d2.data.mixture import training_weights

NAME = "rose_test_custom"


@pytest.fixture(autouse=True)
def _unregister():
    yield
    unregister(NAME)


@pytest.fixture
def coco(tmp_path):
    """One image of 8 x 6 with a zebra (id 40) and a cup (id 7)."""
    (tmp_path / "images").mkdir(exist_ok=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    content = {
        "images": [{"id": 5, "file_name": "a.png", "width": 8, "height": 6}],
        "categories": [{"id": 40, "name": "zebra"}, {"id": 7, "name": "cup"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 5,
                "category_id": 40,
                "bbox": [1, 1, 3, 2],
                "area": 6,
                "iscrowd": 0,
                "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]],
            }
        ],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def labels(tmp_path):
    """Two images of 8 x 6: a has labels, b has none; the third file is no image."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir(exist_ok=True)
    for stem in "ab":
        Image.new("RGB", (8, 6)).save(tmp_path / "images" / f"{stem}.jpg")
    (tmp_path / "images" / "notes.txt").write_text("not an image")
    Image.fromarray(np.full((6, 8), 1, dtype=np.uint8)).save(tmp_path / "labels" / "a.png")
    (tmp_path / "classes.txt").write_text("traffic light\nsky: stuff\n\n")
    return tmp_path


def test_coco_annotations_in_one_call(coco):
    register_custom_coco(NAME, coco / "images", coco / "annotations.json")
    metadata = MetadataCatalog.get(NAME)
    assert metadata.thing_classes == ["cup", "zebra"]
    assert metadata.thing_dataset_id_to_contiguous_id == {7: 0, 40: 1}
    (record,) = DatasetCatalog.get(NAME)
    assert record["file_name"] == str(coco / "images" / "a.png")
    assert record["task"] == "instance"
    assert [a["category_id"] for a in record["annotations"]] == [1]


def test_label_pngs_in_one_call(labels, caplog):
    register_custom_labels(NAME, labels / "images", labels / "labels", labels / "classes.txt")
    metadata = MetadataCatalog.get(NAME)
    assert metadata.stuff_classes == ["traffic light", "sky"]
    assert metadata.thing_classes == ["traffic light"]
    (record,) = DatasetCatalog.get(NAME)
    assert (record["image_id"], record["height"], record["width"]) == ("a", 6, 8)
    assert "1 images without a label PNG (first: b.jpg)" in caplog.text
    with strict_annotations(), pytest.raises(ValueError, match="b.jpg"):
        DatasetCatalog.get(NAME)


def test_a_turned_photograph_has_the_size_it_is_shown_in(labels):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(labels / "images" / "a.jpg", exif=exif)
    register_custom_labels(NAME, labels / "images", labels / "labels", labels / "classes.txt")
    (record,) = DatasetCatalog.get(NAME)
    assert (record["height"], record["width"]) == (8, 6)


def test_the_config_declares_both_kinds(coco):
    register_custom([(NAME, "coco", str(coco / "images"), str(coco / "annotations.json"))])
    assert MetadataCatalog.get(NAME).task == "instance"
    for wrong in ([(NAME, "coco", "images")], [(NAME,)], [(NAME, "voc", "a", "b")]):
        with pytest.raises(ValueError, match="DATASETS.CUSTOM has the entry"):
            register_custom(wrong)


def test_a_missing_path_is_named(coco):
    with pytest.raises(FileNotFoundError, match="needs .*photos, which is missing"):
        register_custom_coco(NAME, coco / "photos", coco / "annotations.json")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "lacks images, annotations, categories"),
        ('{"images": [], "annotations": []}', "lacks categories"),
        ('{"images": [], "annotations": [], "categories": []}', "0 classes"),
    ],
)
def test_a_file_that_is_no_coco_file(coco, content, message):
    (coco / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        register_custom_coco(NAME, coco / "images", coco / "annotations.json")


def test_equal_class_names_are_refused(labels):
    (labels / "classes.txt").write_text("sky\nsky: stuff\n")
    with pytest.raises(ValueError, match="the name 'sky' twice"):
        register_custom_labels(NAME, labels / "images", labels / "labels", labels / "classes.txt")


def test_class_names_of_a_file(coco, labels):
    assert read_class_names(coco / "annotations.json") == ["cup", "zebra"]
    assert read_class_names(labels / "classes.txt") == ["traffic light", "sky"]
    with pytest.raises(FileNotFoundError, match="nowhere.txt"):
        read_class_names("nowhere.txt")


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = ("a", "b"), (1.0, 2.0)
    yield cfg
    for name in (CUSTOM_NAME, "mine"):
        unregister(name)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cup"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("cup\nsky: stuff\n")
    return tmp_path


def _parse(*arguments):
    parser = argparse.ArgumentParser()
    add_custom_data_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_data_of_the_command_line_replace_those_of_the_config(cfg, files):
    cfg.DATASETS.TASK_WEIGHTS.SEMANTIC = 2.0
    use_custom_data(cfg, _parse("--custom-coco", files / "images", files / "a.json"))
    assert [view.spec for view in training_weights(cfg)] == [CUSTOM_NAME]
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST == (CUSTOM_NAME,)
    assert cfg.DATASETS.TRAIN_WEIGHTS == ()
    assert MetadataCatalog.get(CUSTOM_NAME).thing_classes == ["cup"]


def test_label_pngs_with_a_list_of_classes(cfg, files):
    arguments = (files / "images", files / "images", files / "classes.txt")
    use_custom_data(cfg, _parse("--custom-labels", *arguments))
    assert MetadataCatalog.get(CUSTOM_NAME).stuff_classes == ["cup", "sky"]


def test_the_config_alone_registers_its_own_names(cfg, files):
    cfg.merge_from_list(
        ["DATASETS.CUSTOM", f"(('mine', 'coco', '{files}/images', '{files}/a.json'),)"]
    )
    use_custom_data(cfg, argparse.Namespace())
    assert "mine" in DatasetCatalog.list()
    assert cfg.DATASETS.TRAIN == ("a", "b")


def test_both_kinds_at_once_are_refused(files, capsys):
    with pytest.raises(SystemExit):
        _parse("--custom-coco", "a", "b", "--custom-labels", "a", "b", "c")
    assert "not allowed with" in capsys.readouterr().err
