import json
import logging

import numpy as np
import pytest
from pycocotools import mask as mask_util

from rose_d2.data.datasets.refer_files import read_annotated_images
from rose_d2.data.datasets.registration import strict_annotations

POLYGON = [[0, 0, 2, 0, 2, 4, 0, 4]]


def _code(*columns, size=(4, 6)):
    """What RefCLEF has: a run-length code whose counts are text."""
    mask = np.zeros(size, np.uint8, order="F")
    mask[:, list(columns)] = 1
    code = mask_util.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode()}


def _annotation(annotation_id, category_id, segmentation, iscrowd=0):
    return {
        "id": annotation_id,
        "image_id": 1,
        "category_id": category_id,
        "segmentation": segmentation,
        "bbox": [0, 0, 2, 4],
        "area": 8,
        "iscrowd": iscrowd,
    }


SOUND = _annotation(31, 90, [[1, 1], *POLYGON])
BROKEN = {
    "no polygon": _annotation(60, 18, []),
    "two corners": _annotation(61, 18, [[0, 0, 2, 2]]),
    "nothing": _annotation(62, 18, None),
    "empty code": _annotation(63, 18, [_code()]),
    "unknown category": _annotation(64, 7, POLYGON),
    "other size": _annotation(65, 18, [_code(0, size=(6, 4))]),
    "no box": _annotation(66, 18, POLYGON) | {"bbox": []},
}


@pytest.fixture
def read(tmp_path):
    """Writes annotations of image 1 and reads them back, as references to 31 need them."""

    def read(*annotations, thing_ids=None, image_id=1):
        instances = {
            "images": [{"id": i, "file_name": f"{i}.jpg", "height": 4, "width": 6} for i in (1, 2)],
            "annotations": annotations,
            "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
        }
        path = tmp_path / "instances.json"
        path.write_text(json.dumps(instances))
        return read_annotated_images(path, [{"image_id": image_id, "ann_id": 31}], thing_ids)

    return read


def test_only_the_images_that_are_needed_are_read(read):
    assert list(read(SOUND)) == [1]
    assert read(SOUND, image_id=2)[2].annotations == []
    assert read(SOUND, image_id=3) == {}


def test_objects_keep_the_order_of_the_file(read):
    image = read(_annotation(50, 18, POLYGON), _annotation(40, 90, POLYGON), SOUND)[1]
    assert [a["category_id"] for a in image.annotations] == [0, 1, 1]
    assert image.positions == {50: 0, 40: 1, 31: 2}
    assert image.record["height"] == 4


def test_several_run_length_codes_of_one_object_are_joined(read):
    (annotation,) = read(_annotation(31, 90, [_code(0, 1), _code(1, 2)]))[1].annotations
    mask = mask_util.decode(annotation["segmentation"])
    assert mask.any(0).tolist() == [True, True, True, False, False, False]
    assert mask.max() == 1


def test_an_uncompressed_code_is_compressed(read):
    # Column by column: 4 pixels outside, 8 inside, 12 outside.
    code = {"size": [4, 6], "counts": [4, 8, 12]}
    (annotation,) = read(_annotation(31, 90, code))[1].annotations
    mask = mask_util.decode(annotation["segmentation"])
    assert mask.any(0).tolist() == [False, True, True, False, False, False]


def test_an_empty_mapping_leaves_all_objects_without_class(read):
    nameless = _annotation(31, 90, POLYGON)
    del nameless["category_id"]
    image = read(nameless, _annotation(50, 7, POLYGON), thing_ids={})[1]
    assert [a["category_id"] for a in image.annotations] == [-1, -1]


def test_a_described_crowd_is_an_object(read):
    crowds = _annotation(50, 18, _code(0), iscrowd=1), _annotation(31, 18, _code(1), iscrowd=1)
    assert [a["iscrowd"] for a in read(*crowds)[1].annotations] == [1, 0]


def test_broken_annotations_are_left_out_and_counted_in_one_warning(read, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        image = read(*BROKEN.values(), SOUND)[1]
    assert [a["segmentation"] for a in image.annotations] == [POLYGON]
    assert image.positions == {31: 0}
    assert image.unusable_ids == {60, 61, 62, 63, 64, 65, 66}
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'instances.json'}: left out ")
    assert "4 annotations without a mask (first: annotation 60 of image 1)" in message
    assert "1 annotations of an unknown category (first: annotation 64 of image 1, cat" in message
    assert "1 annotations whose mask has another size than their image (first: an" in message
    assert "1 annotations without a box (first: annotation 66 of image 1)" in message


@pytest.mark.parametrize("fault", BROKEN)
def test_broken_annotations_are_fatal_when_strict(read, fault):
    broken = BROKEN[fault]
    with strict_annotations(), pytest.raises(ValueError, match=f"annotation {broken['id']} of im"):
        read(SOUND, broken)


def test_sound_annotations_give_no_warning_and_pass_the_strict_reading(read, caplog):
    with strict_annotations():
        assert len(read(SOUND)[1].annotations) == 1
    assert not caplog.messages


def test_damaged_files_are_an_error(tmp_path):
    path = tmp_path / "instances.json"
    path.write_text('{"images": [')
    with pytest.raises(ValueError, match="instances.json is not valid JSON"):
        read_annotated_images(path, [], None)
    path.write_text('{"images": []}')
    with pytest.raises(ValueError, match="lacks annotations, categories: it is not in the COCO"):
        read_annotated_images(path, [], None)
