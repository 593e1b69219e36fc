import json
import logging
import pickle

import pytest

from rose_d2.data.datasets.refer_files import (
    in_split,
    load_refer,
    load_refer_splits,
    references_file,
)
from rose_d2.data.datasets.registration import strict_annotations


def _annotation(annotation_id, image_id, category_id, segmentation):
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [0, 0, 2, 4],
        "area": 8,
        "iscrowd": 0,
    }


POLYGON = [[0, 0, 2, 0, 2, 4, 0, 4]]
INSTANCES = {
    "images": [
        {"id": 1, "file_name": "COCO_train2014_1.jpg", "height": 4, "width": 6},
        {"id": 2, "file_name": "COCO_train2014_2.jpg", "height": 4, "width": 6},
    ],
    "annotations": [
        _annotation(30, 1, 18, POLYGON),
        _annotation(40, 2, 90, POLYGON),
        _annotation(31, 1, 90, POLYGON),
    ],
    "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
}


def _reference(ref_id, ann_id, image_id, split, *sentences):
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": 18,
        "image_id": image_id,
        # The toolkit's own names carry a suffix, and its readers ignore them.
        "file_name": f"COCO_train2014_{image_id}_{ref_id}.jpg",
        "split": split,
        "sent_ids": [ref_id * 10 + k for k in range(len(sentences))],
        "sentences": [
            {"raw": text.upper(), "sent": text, "sent_id": ref_id * 10 + k, "tokens": text.split()}
            for k, text in enumerate(sentences)
        ],
    }


REFERENCES = [
    _reference(6, 40, 2, "val", "the brush"),
    _reference(5, 31, 1, "val", "left brush", "the brush on the left"),
    _reference(4, 30, 1, "testAB", "dog"),
]


@pytest.fixture
def write(tmp_path):
    """Writes a folder in the REFER layout and returns it."""

    def write(references=REFERENCES, instances=INSTANCES):
        (tmp_path / "instances.json").write_text(json.dumps(instances))
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(references, 2))
        return tmp_path

    return write


def test_one_record_per_reference_and_sentence(write):
    records = load_refer(write(), "unc", "val", "pictures")
    assert [(r["image_id"], r["ref_id"], r["sent_id"]) for r in records] == [
        (1, 5, 50),
        (1, 5, 51),
        (2, 6, 60),
    ]
    assert [r["sentence"] for r in records] == ["left brush", "the brush on the left", "the brush"]
    first = records[0]
    assert first["file_name"] == "pictures/COCO_train2014_1.jpg"
    assert (first["height"], first["width"]) == (4, 6)
    assert [a["category_id"] for a in first["annotations"]] == [0, 1]
    assert first["target_indices"] == [1]
    assert first["annotations"][0]["segmentation"] == POLYGON


def test_category_ids_can_be_given(write):
    record = load_refer(write(), "unc", "val", "pictures", {18: 4, 90: 2})[0]
    assert [a["category_id"] for a in record["annotations"]] == [4, 2]


@pytest.mark.parametrize(
    ("label", "split", "expected"),
    [
        ("train", "train", True),
        ("val", "train", False),
        ("val_unseen", "val", False),
        ("testA", "testA", True),
        ("testAB", "testB", True),
        ("testA", "testB", False),
        ("testC", "test", True),
        ("test", "test", True),
        ("train", "testA", False),
    ],
)
def test_split_labels_follow_the_toolkit(label, split, expected):
    assert in_split(label, split) == expected


def test_a_split_without_references_is_an_error(write):
    with pytest.raises(ValueError, match="no reference of split 'testC'.*testAB, val"):
        load_refer(write(), "unc", "testC", "pictures")


def test_dicts_of_one_image_share_one_annotations_list(write):
    left, second, other = load_refer(write(), "unc", "val", "pictures")
    assert left["annotations"] is second["annotations"]
    assert left["annotations"] is not other["annotations"]
    assert left["target_indices"] is not second["target_indices"]


def test_several_splits_come_from_one_reading(write):
    folder = write()
    splits = load_refer_splits(folder, "unc", ("testA", "val"), "pictures")
    assert {split: [r["sent_id"] for r in records] for split, records in splits.items()} == {
        "testA": [40],
        "val": [50, 51, 60],
    }
    assert splits["val"] == load_refer(folder, "unc", "val", "pictures")
    # Image 1 has references in both splits; its objects are in memory once.
    assert splits["testA"][0]["annotations"] is splits["val"][0]["annotations"]


def test_images_may_have_other_names_on_disk(write):
    record = load_refer(
        write(), "unc", "testB", "train2017", name_image=lambda name: name.split("_")[-1]
    )[0]
    assert record["file_name"] == "train2017/1.jpg"


UNDRAWN = _annotation(60, 1, 18, [])
BROKEN_REFERENCES = {
    "references to an image that instances.json lacks": _reference(9, 40, 77, "val", "x"),
    "references to an annotation that their image does not have": _reference(9, 40, 1, "val", "x"),
    "references to an annotation that cannot be used": _reference(9, 60, 1, "val", "x"),
    "empty sentences": _reference(9, 31, 1, "val", "ok", " ", ""),
}


def test_broken_references_are_left_out_and_counted_in_one_warning(write, caplog):
    instances = INSTANCES | {"annotations": [*INSTANCES["annotations"], UNDRAWN]}
    folder = write([*BROKEN_REFERENCES.values(), REFERENCES[0]], instances)
    with caplog.at_level(logging.WARNING):
        records = load_refer(folder, "unc", "val", "pictures")
    assert [r["sentence"] for r in records] == ["ok", "the brush"]
    about_annotations, about_references = caplog.messages
    assert "1 annotations without a mask" in about_annotations
    assert about_references.startswith(f"{folder / 'refs(unc).p'}: left out ")
    for reason in BROKEN_REFERENCES:
        count = 2 if "sentences" in reason else 1
        assert f"{count} {reason} (first: " in about_references


# In the strict reading an annotation that cannot be used is an error by itself.
@pytest.mark.parametrize("reason", [r for r in BROKEN_REFERENCES if "cannot be used" not in r])
def test_broken_references_are_fatal_when_strict(write, reason):
    folder = write([BROKEN_REFERENCES[reason], REFERENCES[0]])
    with strict_annotations(), pytest.raises(ValueError, match=f"{reason}, first .*reference 9"):
        load_refer(folder, "unc", "val", "pictures")


def test_sound_files_give_no_warning_and_pass_the_strict_reading(write, caplog):
    with strict_annotations():
        assert len(load_refer(write(), "unc", "val", "pictures")) == 3
    assert not caplog.messages


def test_files_that_do_not_belong_together_are_an_error(write):
    folder = write([_reference(9, 40, 77, "val", "x"), _reference(8, 40, 1, "val", "x")])
    with pytest.raises(ValueError, match="no reference of split 'val' can be used"):
        load_refer(folder, "unc", "val", "pictures")


def test_malformed_references_are_an_error(write):
    with pytest.raises(ValueError, match="holds dict; a list of dicts"):
        load_refer(write({"ref_id": 1}), "unc", "val", "pictures")
    with pytest.raises(ValueError, match="lacks ann_id, image_id, split, sentences"):
        load_refer(write([{"ref_id": 1}]), "unc", "val", "pictures")
    nameless = _reference(5, 31, 1, "val", "x")
    del nameless["sentences"][0]["sent"]
    with pytest.raises(ValueError, match="a sentence of reference 5 lacks sent;"):
        load_refer(write([nameless]), "unc", "val", "pictures")


def test_a_hostile_pickle_stops_the_loader(write):
    folder = write()
    (folder / "refs(unc).p").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match=r"refs\(unc\).p is not a plain pickle.*os.system"):
        load_refer(folder, "unc", "val", "pictures")


@pytest.fixture
def write_generalised(tmp_path):
    """Writes a folder of gRefCOCO with references of image 1 to lists of annotations."""

    def write(*targets, crowds=()):
        folder = tmp_path / "grefcoco"
        folder.mkdir()
        annotations = [a | {"iscrowd": int(a["id"] in crowds)} for a in INSTANCES["annotations"]]
        instances = INSTANCES | {"annotations": annotations}
        references = [_reference(k, ids, 1, "val", f"no {k}") for k, ids in enumerate(targets)]
        (folder / "instances.json").write_text(json.dumps(instances))
        (folder / "grefs(unc).json").write_text(json.dumps(references))
        return folder

    return write


def test_generalised_references_are_about_any_number_of_objects(write_generalised):
    folder = write_generalised([31, 30], [-1], [30])
    records = load_refer(folder, "unc", "val", "pictures")
    assert [r["target_indices"] for r in records] == [[1, 0], [], [0]]
    assert [len(r["annotations"]) for r in records] == [2, 2, 2]


def test_crowds_are_no_targets_of_generalised_references(write_generalised, caplog):
    folder = write_generalised([31, 30], [30], [-1], crowds=[30])
    records = load_refer(folder, "unc", "val", "pictures")
    # The second one, about a crowd only, must not pass for a sentence about nothing.
    assert [(r["ref_id"], r["target_indices"]) for r in records] == [(0, [1]), (2, [])]
    assert [a["iscrowd"] for a in records[0]["annotations"]] == [1, 0]
    assert "1 references to crowds only (first: reference 1 of image 1)" in caplog.text


def test_a_generalised_reference_with_one_bad_object_is_left_out(write_generalised, caplog):
    records = load_refer(write_generalised([30, 99], [30]), "unc", "val", "pictures")
    assert [r["ref_id"] for r in records] == [1]
    assert "references to an annotation that their image does not have" in caplog.text


def test_a_single_target_of_minus_one_is_no_reference_to_nothing(write, caplog):
    folder = write([_reference(1, -1, 1, "val", "x"), REFERENCES[1]])
    assert {r["ref_id"] for r in load_refer(folder, "unc", "val", "pictures")} == {5}
    assert "annotation -1" in caplog.text


def test_damaged_generalised_references_are_an_error(write_generalised):
    folder = write_generalised([30])
    references_file(folder, "unc").write_text("[{")
    with pytest.raises(ValueError, match=r"grefs\(unc\).json is not valid JSON"):
        load_refer(folder, "unc", "val", "pictures")
