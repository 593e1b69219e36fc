import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from pycocotools import mask as mask_util

from rose_d2.data.datasets.refcoco import in_split, load_plain_pickle, load_refer


def _code(*columns):
    mask = np.zeros((4, 6), np.uint8, order="F")
    mask[:, list(columns)] = 1
    code = mask_util.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode()}


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
        _annotation(40, 2, 90, _code(0)),
        _annotation(31, 1, 90, [_code(0, 1), _code(1, 2)]),
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


def test_several_run_length_codes_of_one_object_are_joined(write):
    record = load_refer(write(), "unc", "val", "pictures")[0]
    mask = mask_util.decode(record["annotations"][1]["segmentation"])
    assert mask.any(0).tolist() == [True, True, True, False, False, False]
    assert mask.max() == 1


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


def test_files_that_do_not_belong_together_are_an_error(write):
    with pytest.raises(ValueError, match="reference 9 points at annotation 40"):
        load_refer(write([_reference(9, 40, 1, "val", "x")]), "unc", "val", "pictures")
    with pytest.raises(ValueError, match="reference 9 belongs to image 77"):
        load_refer(write([_reference(9, 40, 77, "val", "x")]), "unc", "val", "pictures")


def test_malformed_references_are_an_error(write):
    with pytest.raises(ValueError, match="holds dict; a list of dicts"):
        load_refer(write({"ref_id": 1}), "unc", "val", "pictures")
    with pytest.raises(ValueError, match="lacks ann_id, image_id, split, sentences"):
        load_refer(write([{"ref_id": 1}]), "unc", "val", "pictures")


class _Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_pickle_is_refused_and_not_executed(tmp_path, protocol):
    target = tmp_path / "executed"
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([_Malicious(target)], protocol))
    with pytest.raises(ValueError, match=r"refs\(unc\).p is not a plain pickle.*mkdir"):
        load_plain_pickle(path)
    assert not target.exists()


@pytest.mark.parametrize("content", [OrderedDict(a=1), {1, 2}, np.arange(3), len])
def test_even_harmless_classes_are_refused_by_old_protocols(tmp_path, content):
    # Protocol 2 spells sets as a call of builtins.set: nothing is imported, so it is refused too.
    path = tmp_path / "file.p"
    path.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(path)


@pytest.mark.parametrize("content", [b"", b"hello", pickle.dumps(REFERENCES, 2)[:-20]])
def test_damaged_files_are_refused(tmp_path, content):
    path = tmp_path / "file.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a plain pickle"):
        load_plain_pickle(path)


def test_python_2_pickles_with_accents_can_be_read(tmp_path):
    # What Python 2 wrote for ["caf\xe9"]: a byte string, not text.
    path = tmp_path / "file.p"
    path.write_bytes(b"\x80\x02]q\x00U\x04caf\xe9q\x01a.")
    assert load_plain_pickle(path) == ["caf\xe9"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_of_plain_content_can_be_read(tmp_path, protocol):
    path = tmp_path / "file.p"
    path.write_bytes(pickle.dumps(REFERENCES, protocol))
    assert load_plain_pickle(path) == REFERENCES
