import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools import mask as mask_util

from rose_d2.data.datasets.reasonseg import load_reasonseg, paint_shapes
from rose_d2.data.datasets.registration import strict_annotations

TARGET = [[2, 2], [9, 2], [9, 6], [2, 6]]  # columns 2 to 9, rows 2 to 6
CORNER = [[2, 2], [4, 2], [4, 3], [2, 3]]


def shape(label, points):
    return {"label": label, "points": points}


@pytest.fixture
def folder(tmp_path):
    """Two images of 12 x 8 pixels, the second with a polygon that is left out of the score."""
    shapes = [shape("target", TARGET), shape("flag", CORNER)]
    write(tmp_path, "a", ["What is it?", "the plate"], shapes)
    write(
        tmp_path,
        "b",
        ["Who caf\u00e9?"],
        [shape("ignore", CORNER), shape("target", TARGET)],
        "cp1252",
    )
    return tmp_path


def write(folder, name, text, shapes, encoding="utf-8", size=(12, 8), **save):
    Image.new("RGB", size).save(folder / f"{name}.jpg", **save)
    annotation = {"text": text, "is_sentence": True, "shapes": shapes}
    (folder / f"{name}.json").write_text(
        json.dumps(annotation, ensure_ascii=False), encoding=encoding
    )


def test_the_boundary_belongs_to_a_polygon():
    target, ignore = paint_shapes([shape("target", TARGET)], 8, 12)
    expected = np.zeros((8, 12), dtype=bool)
    expected[2:7, 2:10] = True
    np.testing.assert_array_equal(target, expected)
    assert not ignore.any()


def test_smaller_shapes_lie_on_larger_ones_whatever_their_order():
    shapes = [shape("ignore", CORNER), shape("target", TARGET)]
    for order in (shapes, shapes[::-1]):
        target, ignore = paint_shapes(order, 8, 12)
        assert (target.sum(), ignore.sum()) == (40 - 6, 6)
        assert not (target & ignore).any()
    target, ignore = paint_shapes([shape("Ignored", TARGET), shape("target", CORNER)], 8, 12)
    assert (target.sum(), ignore.sum()) == (6, 40 - 6)


def test_of_equal_shapes_the_first_of_the_file_lies_on_top():
    other = [[x + 1, y] for x, y in CORNER]  # columns 3 to 5 on columns 2 to 4
    for order in (["target", "ignore"], ["ignore", "target"]):
        shapes = [shape(order[0], CORNER), shape(order[1], other)]
        target, ignore = paint_shapes(shapes, 8, 12)
        top, below = (target, ignore) if order[0] == "target" else (ignore, target)
        assert (top.sum(), below.sum()) == (6, 2) and below[2:4, 5].all()


@pytest.mark.parametrize(("points", "pixels"), [([[2, 2]], 1), ([[2, 3], [6, 3]], 5)])
def test_one_point_is_a_pixel_and_two_are_a_line(points, pixels):
    target, _ = paint_shapes([shape("target", points)], 8, 12)
    assert target.sum() == pixels and target[points[-1][1], points[-1][0]]


@pytest.mark.parametrize("label", ["target", "Target ", "target2", "targets", "object"])
def test_whatever_is_not_ignored_is_the_target(tmp_path, label):
    write(tmp_path, "a", ["what"], [shape(label, TARGET), shape("ignored?", CORNER)])
    (record,) = load_reasonseg(tmp_path, all_texts=False)
    assert [mask_util.area(a["segmentation"]) for a in record["annotations"]] == [34, 6]
    assert record["target_indices"] == [0]


@pytest.mark.parametrize(
    ("shapes", "annotated"),
    [
        ([shape("ignore", TARGET)], [1]),
        ([shape("ignore", CORNER), shape("target", CORNER)], [1]),
        ([shape("flag", TARGET)], []),
        ([], []),
    ],
)
def test_an_image_without_target_pixels_asks_for_nothing(tmp_path, shapes, annotated):
    write(tmp_path, "a", ["what"], shapes)
    (record,) = load_reasonseg(tmp_path, all_texts=False)
    assert record["target_indices"] == []
    assert [a["iscrowd"] for a in record["annotations"]] == annotated
    assert len(record["ignore_annotations"]) == len(annotated)


def test_training_has_all_questions_and_evaluation_the_first(folder):
    records = load_reasonseg(folder, all_texts=True)
    assert [(r["image_id"], r["sent_id"], r["sentence"]) for r in records] == [
        (0, 0, "What is it?"),
        (0, 1, "the plate"),
        (1, 0, "Who caf\u00e9?"),
    ]
    first = load_reasonseg(folder, all_texts=False)
    assert [r["sentence"] for r in first] == ["What is it?", "Who caf\u00e9?"]
    assert len({(r["ref_id"], r["sent_id"]) for r in records}) == 3


def test_target_and_ignored_pixels_are_annotations(folder):
    plain, _, ignoring = load_reasonseg(folder, all_texts=True)
    assert (plain["height"], plain["width"], plain["target_indices"]) == (8, 12, [0])
    assert plain["ignore_annotations"] == []
    (target,) = plain["annotations"]
    assert (target["category_id"], target["iscrowd"]) == (-1, 0)
    assert target["bbox"] == [2, 2, 8, 5]
    assert mask_util.area(target["segmentation"]) == 40  # "flag" was not painted
    target, crowd = ignoring["annotations"]
    assert mask_util.area(target["segmentation"]) == 34
    assert (mask_util.area(crowd["segmentation"]), crowd["iscrowd"]) == (6, 1)
    assert ignoring["ignore_annotations"] == [crowd]


def test_the_size_is_that_of_the_rotated_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path, "a", ["what"], [shape("target", TARGET)], size=(8, 12), exif=exif)
    (record,) = load_reasonseg(tmp_path, all_texts=False)
    assert (record["height"], record["width"]) == (8, 12)


@pytest.mark.parametrize(
    ("text", "shapes", "reason"),
    [
        ([" "], [shape("target", TARGET)], "images without a question"),
        (["what"], [shape("target", TARGET), shape("target", [])], "shapes without a point"),
    ],
)
def test_what_cannot_be_used_is_left_out_and_reported(folder, caplog, text, shapes, reason):
    write(folder, "c", text, shapes)
    assert len(load_reasonseg(folder, all_texts=False)) == (3 if text[0].strip() else 2)
    assert reason in caplog.text
    with strict_annotations(), pytest.raises(ValueError, match=reason):
        load_reasonseg(folder, all_texts=False)


def test_an_annotation_without_its_image_is_left_out(folder, caplog):
    (folder / "a.jpg").unlink()
    assert len(load_reasonseg(folder, all_texts=True)) == 1
    assert "annotations without their image" in caplog.text


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"text": ["a"]}',
        '{"text": [], "shapes": [1]}',
        '{"text": "a", "shapes": []}',
    ],
)
def test_a_damaged_file_is_named(folder, content):
    (folder / "a.json").write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is not an annotation of ReasonSeg"):
        load_reasonseg(folder, all_texts=True)


def test_a_damaged_image_is_named(folder):
    (folder / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"a\.jpg is not a readable image"):
        load_reasonseg(folder, all_texts=True)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no question that can be used"):
        load_reasonseg(tmp_path, all_texts=True)


def test_three_splits_are_registered():
    for split in ("train", "val", "test"):
        assert f"reasonseg_{split}" in DatasetCatalog.list()
        metadata = MetadataCatalog.get(f"reasonseg_{split}")
        assert (metadata.task, metadata.evaluator_type) == ("referring", "refcoco")
    with pytest.raises(FileNotFoundError, match="README of https://github.com/dvlab-research/LISA"):
        DatasetCatalog.get("reasonseg_val")
