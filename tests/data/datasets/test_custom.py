import argparse
import json
import os
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.custom import (
    CUSTOM_NAME,
    read_class_names,
    register_custom,
    register_custom_coco,
    register_custom_labels,
    use_custom_data,
)
from rose_d2.data.datasets.registration import strict_annotations, unregister
from rose_d2.data.mixture import training_weights
from rose_d2.structures.mask_codec import decode_mask

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
    assert metadata.thing_classes == ["traffic light", ""]
    (record,) = DatasetCatalog.get(NAME)
    assert (record["image_id"], record["height"], record["width"]) == ("a", 6, 8)
    assert "1 images without a label PNG (first: b.jpg)" in caplog.text
    with strict_annotations(), pytest.raises(ValueError, match="b.jpg"):
        DatasetCatalog.get(NAME)


@pytest.mark.parametrize("size", [(8, 6), (6, 8)])
def test_the_labels_of_a_turned_photograph_say_how_it_was_seen(labels, size):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6)).save(labels / "images" / "a.jpg", exif=exif)
    Image.fromarray(np.ones(size, dtype=np.uint8)).save(labels / "labels" / "a.png")
    (record,) = _labelled(labels)
    assert (record["height"], record["width"]) == size


def _labelled(folder):
    register_custom_labels(NAME, folder / "images", folder / "labels", folder / "classes.txt")
    return DatasetCatalog.get(NAME)


def test_a_label_png_of_another_size_costs_its_image_alone(labels, caplog):
    Image.fromarray(np.ones((6, 7), dtype=np.uint8)).save(labels / "labels" / "b.png")
    assert [record["image_id"] for record in _labelled(labels)] == ["a"]
    assert "1 images whose label PNG has another size (first: b.jpg)" in caplog.text


def test_masks_of_0_and_255_are_seen_for_what_they_are(labels, caplog):
    values = np.zeros((6, 8), dtype=np.uint8)
    Image.fromarray(values).save(labels / "labels" / "b.png")
    values[2:4] = 255
    Image.fromarray(values).save(labels / "labels" / "a.png")
    _labelled(labels)
    assert "nothing but 0 and 255" in caplog.text and "no pixel has class 'sky'" in caplog.text


def test_more_than_255_classes_take_another_value_for_unlabelled(labels):
    names = [f"kind {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(300)]
    (labels / "classes.txt").write_text("\n".join(names))
    _labelled(labels)
    assert MetadataCatalog.get(NAME).ignore_label == 65535
    (labels / "classes.txt").write_text("\n".join(names[:255]))
    _labelled(labels)
    assert MetadataCatalog.get(NAME).ignore_label == 255


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_class_lists_of_any_editor(tmp_path, encoding, end):
    path = tmp_path / "coco.names"
    path.write_bytes(end.join(["wall", "café", "sky : Stuff", "sign: front", ""]).encode(encoding))
    assert read_class_names(path) == ["wall", "café", "sky", "sign: front"]


@pytest.mark.parametrize(
    "content",
    ["name,r,g,b\nroad,128,64,128\ncar, 0, 0, 142\n", "# label:color_rgb:parts:actions\n"
     "road:128,64,128::\ncar:0,0,142::\n"],
)  # fmt: skip
def test_class_lists_with_colours(labels, content):
    (labels / "classes.txt").write_text(content)
    _labelled(labels)
    metadata = MetadataCatalog.get(NAME)
    assert metadata.stuff_classes == ["road", "car"]
    assert metadata.label_colors == [(128, 64, 128), (0, 0, 142)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("wall\n\nball\n", "Line 2 of .* is empty"),
        ("0: wall\n1: ball\n", "lines that are counted, first '0: wall'"),
        ("1 wall\n2 ball\n", "lines that are counted"),
        ("(0)\twall\n(1)\tball\n", "lines that are counted"),
        ("wall\n3: ball\n", "'3: ball', which begins with a number"),
        ("wall, ball", "one line with commas"),
        ('["wall",\n"ball"]', "as a comment or another kind of file"),
        ("# my classes\nwall\n", "the line '# my classes', as a comment"),
        ("wall,0,0,0\nball,0,0,0\n", "the colour .0, 0, 0., which .* another class's"),
        ("wall,0,0,256\nball,0,0,0\n", "the colour .0, 0, 256., which has a value above 255"),
        ("0\n1\n", "only numbers"),
        ("wall\n<image>\n", "'<image>', which looks like a token"),
        ("wall\n" + "x" * 4000, "a name of 4000 characters"),
        ("", "0 classes"),
    ],
)
def test_class_lists_without_names_are_refused(tmp_path, content, message):
    (tmp_path / "classes.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        read_class_names(tmp_path / "classes.txt")


def test_numbers_in_names_stay(tmp_path):
    names = ["10 euro note", "20 euro note", "3d printer"]
    (tmp_path / "classes.txt").write_text("\n".join(names))
    assert read_class_names(tmp_path / "classes.txt") == names


def test_a_folder_or_a_pipe_is_no_class_list(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ValueError, match="a folder, a pipe or a device; a text file is needed"):
            read_class_names(path)


def test_a_class_list_of_another_encoding_is_named(tmp_path):
    (tmp_path / "classes.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_class_names(tmp_path / "classes.txt")


def _coco(folder, **changes):
    """The folder's annotation file with changes of its only annotation, read."""
    path = folder / "annotations.json"
    content = json.loads(path.read_text())
    content["annotations"][0] |= changes
    path.write_text(json.dumps(content))
    register_custom_coco(NAME, folder / "images", path)
    return DatasetCatalog.get(NAME)


SQUARE = [1, 1, 4, 1, 4, 3, 1, 3]


@pytest.mark.parametrize(
    "segmentation",
    [
        SQUARE,
        [[1, 1], [4, 1], [4, 3], [1, 3]],
        [[[1, 1], [4, 1], [4, 3], [1, 3]]],
        [[[[1.0, 1], [4, 1], [4, 3], [1, 3]]]],
        [SQUARE, [5, 5, 6, 6]],
        ["1", "1", "4", "1", "4", "3", "1", "3"],
        {"size": [6.0, 8.0], "counts": [7, 2, 4, 2, 4, 2, 27]},
        {"size": ["6", "8"], "counts": ["7", 2.0, "4.0", 2, 4, 2, 27]},
        [{"size": [6, 8], "counts": [7, 2, 39]}, {"size": [6, 8], "counts": [48]}],
    ],
)
def test_masks_are_read_in_every_form(coco, segmentation):
    (record,) = _coco(coco, segmentation=segmentation, bbox=None, area=None)
    (annotation,) = record["annotations"]
    assert decode_mask(annotation["segmentation"], 6, 8)[1:3, 1].all()
    assert annotation["bbox"][:2] == [1, 1] and annotation["area"] >= 2


@pytest.mark.parametrize("iscrowd", [None, "0", 0.0, False, "false"])
def test_iscrowd_is_read_in_every_form(coco, iscrowd):
    (record,) = _coco(coco, iscrowd=iscrowd, id="a-text", image_id="5", category_id=40.0)
    assert [a["iscrowd"] for a in record["annotations"]] == [0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"segmentation": [[1, 1, None, 1, 4, 3]]}, "coordinates that are no numbers"),
        ({"segmentation": [[1, 1, 1e9, 1, 4, 3]]}, "absurd coordinates"),
        ({"segmentation": [[1, 1, float("inf"), 1, 4, 3]]}, "coordinates that are no numbers"),
        ({"segmentation": {"size": [6, 8], "counts": [49]}}, "a damaged run-length code"),
        ({"segmentation": {"size": [6, 8], "counts": [50, -2]}}, "a damaged run-length code"),
        ({"segmentation": {"size": [6, 8], "counts": "PP"}}, "a damaged run-length code"),
        ({"segmentation": {"counts": [48]}}, "a damaged run-length code"),
        ({"segmentation": {"size": [8, 6], "counts": [48]}}, "another size than their image"),
        ({"segmentation": []}, "a box but no mask"),
        ({"segmentation": [[0.1, 0.1, 0.5, 0.1, 0.5, 0.5]]}, "1 of 1 objects are so small"),
        ({"segmentation": None, "bbox": None}, "without a mask"),
        ({"iscrowd": "perhaps"}, "an unknown iscrowd"),
        ({"iscrowd": 1}, r"all annotations are crowds \(iscrowd 1\).*set iscrowd to 0"),
        ({"category_id": 9}, "an unknown category"),
        ({"image_id": 9}, "an image that is not listed"),
    ],
)
def test_a_file_without_a_usable_object_says_why(coco, changes, message):
    with pytest.raises(ValueError, match=f"no object is left of 1 annotations.*{message}"):
        _coco(coco, **changes)


def test_corners_far_outside_are_clipped(coco):
    (record,) = _coco(coco, segmentation=[[-1e5, 1, 1e5, 1, 1e5, 3, -1e5, 3]])
    mask = decode_mask(record["annotations"][0]["segmentation"], 6, 8)
    assert mask[1:3].all() and mask.sum() == 16


def _changed(folder, **changes):
    path = folder / "annotations.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    register_custom_coco(NAME, folder / "images", path)
    return DatasetCatalog.get(NAME)


@pytest.mark.parametrize("size", [{}, {"width": 8.0, "height": "6"}, {"width": None, "height": 0}])
@pytest.mark.parametrize("name", ["a.png", ".\\a.png", "C:\\photos\\a.png", "/photos/a.png"])
def test_images_of_other_systems_are_found_and_measured(coco, size, name):
    (record,) = _changed(coco, images=[{"id": 5.0, "file_name": name, **size}])
    assert Path(record["file_name"]).samefile(coco / "images" / "a.png")
    assert (record["height"], record["width"]) == (6, 8)


def test_annotations_may_be_a_dict_by_id(coco):
    content = json.loads((coco / "annotations.json").read_text())
    (record,) = _changed(coco, annotations={"17": content["annotations"][0]})
    assert len(record["annotations"]) == 1


def test_unused_categories_that_only_head_others_are_left_out(coco):
    cup = {"id": 7, "name": "cup", "supercategory": "things"}
    zebra = {"id": 40, "name": "zebra", "supercategory": "things"}
    head = {"id": 0, "name": "things", "supercategory": "none"}
    _changed(coco, categories=[head, cup, zebra])
    assert MetadataCatalog.get(NAME).thing_classes == ["cup", "zebra"]
    _changed(coco, categories=[{"id": 0, "name": "cup"}, cup | {"id": 1}, zebra])
    assert MetadataCatalog.get(NAME).thing_classes == ["cup", "zebra"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": [{"id": 5, "file_name": n} for n in "ab"]}, "image id 5 stands for 'a' and"),
        ({"categories": [{"id": 7, "name": n} for n in "ab"]}, "category id 7 stands for 'a' and"),
        ({"images": [{"file_name": "a.png"}]}, "entry 0 of its images has id None"),
        ({"images": "a.png"}, "its images are of type str"),
        ({"annotations": [None]}, "entry 0 of its annotations is null"),
        ({"categories": [{"id": 1}]}, "entry 0 of its categories has id 1 and name None"),
        ({"images": [{"id": 5, "file_name": "b.png", "width": 8, "height": 6}]}, "does not have"),
    ],
)
def test_a_file_that_cannot_be_understood_is_named(coco, changes, message):
    with pytest.raises(ValueError, match=message):
        _changed(coco, **changes)


def test_deep_nesting_is_no_json(coco):
    (coco / "annotations.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid JSON"):
        register_custom_coco(NAME, coco / "images", coco / "annotations.json")


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


def test_data_of_the_command_line_replace_those_of_the_config(cfg, files):
    cfg.DATASETS.TASK_WEIGHTS.SEMANTIC = 2.0
    given = argparse.Namespace(custom_coco=[files / "images", files / "a.json"])
    use_custom_data(cfg, given)
    assert [view.spec for view in training_weights(cfg)] == [CUSTOM_NAME]
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST == (CUSTOM_NAME,)
    assert cfg.DATASETS.TRAIN_WEIGHTS == ()
    assert MetadataCatalog.get(CUSTOM_NAME).thing_classes == ["cup"]


def test_label_pngs_with_a_list_of_classes(cfg, files):
    arguments = (files / "images", files / "images", files / "classes.txt")
    use_custom_data(cfg, argparse.Namespace(custom_labels=arguments))
    assert MetadataCatalog.get(CUSTOM_NAME).stuff_classes == ["cup", "sky"]


def test_the_config_alone_registers_its_own_names(cfg, files):
    cfg.merge_from_list(
        ["DATASETS.CUSTOM", f"(('mine', 'coco', '{files}/images', '{files}/a.json'),)"]
    )
    use_custom_data(cfg, argparse.Namespace())
    assert "mine" in DatasetCatalog.list()
    assert cfg.DATASETS.TRAIN == ("a", "b")
