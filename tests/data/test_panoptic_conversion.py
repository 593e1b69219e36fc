import json

import numpy as np
import pytest
from PIL import Image

from rose_d2.prepare.preparation import PanopticImage, id_to_rgb, write_coco_panoptic

CATEGORIES = [{"id": 1, "name": "dog", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]


class _Convert:
    """Two segments of known size per image; fails on the image it is told to, and counts."""

    def __init__(self, fails_on=None):
        self.fails_on = fails_on
        self.converted = []

    def __call__(self, image_id):
        if image_id == self.fails_on:
            raise ValueError(f"image {image_id} is damaged")
        self.converted.append(image_id)
        ids = np.zeros((4, 6), dtype=np.int64)
        ids[0, :] = 300
        ids[1:3, 2:4] = 70_000
        return PanopticImage(
            image={"id": image_id, "file_name": f"{image_id}.jpg", "height": 4, "width": 6},
            segment_ids=ids,
            segments=[
                {"id": 300, "category_id": 7, "iscrowd": 0},
                {"id": 70_000, "category_id": 1, "iscrowd": 0},
                {"id": 9, "category_id": 1, "iscrowd": 0},
            ],
        )


def _write(root, convert, images=(5, 6, 7), **options):
    return write_coco_panoptic(
        images,
        convert,
        str,
        json_file=root / "annotations" / "panoptic.json",
        panoptic_root=root / "panoptic",
        categories=CATEGORIES,
        num_workers=0,
        description="test",
        **options,
    )


def test_segments_have_area_and_box_and_empty_ones_go(tmp_path):
    assert _write(tmp_path, _Convert())
    content = json.loads((tmp_path / "annotations" / "panoptic.json").read_text())
    assert content["categories"] == CATEGORIES
    assert [image["id"] for image in content["images"]] == [5, 6, 7]
    assert content["annotations"][1] == {
        "image_id": 6,
        "file_name": "6.png",
        "segments_info": [
            {"id": 300, "category_id": 7, "iscrowd": 0, "area": 6, "bbox": [0, 0, 6, 1]},
            {"id": 70_000, "category_id": 1, "iscrowd": 0, "area": 4, "bbox": [2, 1, 2, 2]},
        ],
    }
    png = np.asarray(Image.open(tmp_path / "panoptic" / "6.png")).astype(int)
    assert (png[0, 0] == [300 % 256, 1, 0]).all()
    assert (png @ [1, 256, 65536])[1, 2] == 70_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["annotations", "panoptic"]
    assert all(path.suffix == ".png" for path in (tmp_path / "panoptic").iterdir())


def test_a_failure_leaves_no_result_and_the_next_run_does_only_the_rest(tmp_path):
    with pytest.raises(ValueError, match="image 7 is damaged"):
        _write(tmp_path, _Convert(fails_on=7))
    assert not (tmp_path / "panoptic").exists()
    assert not (tmp_path / "annotations").exists()
    convert = _Convert()
    assert _write(tmp_path, convert)
    assert convert.converted == [7]
    content = json.loads((tmp_path / "annotations" / "panoptic.json").read_text())
    assert [len(a["segments_info"]) for a in content["annotations"]] == [2, 2, 2]


def test_what_is_complete_is_left_alone_unless_asked(tmp_path):
    _write(tmp_path, _Convert())
    convert = _Convert()
    assert not _write(tmp_path, convert)
    assert convert.converted == []
    assert _write(tmp_path, convert, overwrite=True)
    assert convert.converted == [5, 6, 7]


def test_no_images_and_equal_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="No image to make"):
        _write(tmp_path, _Convert(), images=())
    with pytest.raises(ValueError, match="same name"):
        _write(tmp_path, _Convert(), images=(5, 5))
    assert list(tmp_path.iterdir()) == []


def test_id_to_rgb_spells_little_endian():
    assert id_to_rgb(np.array([[1 + 2 * 256 + 3 * 65536]])).tolist() == [[[1, 2, 3]]]
