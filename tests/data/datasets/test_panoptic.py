import json

import pytest

from rose_d2.data.datasets.coco import load_coco_panoptic

CONTENT = {
    "images": [
        {"id": 7, "file_name": "sub/7.jpeg", "height": 4, "width": 6},
        {"id": 8, "file_name": "8.png", "height": 5, "width": 5},
    ],
    "annotations": [
        {
            "image_id": 8,
            "file_name": "8.png",
            "segments_info": [{"id": 5, "category_id": 90, "iscrowd": 1}],
        },
        {
            "image_id": 7,
            "file_name": "7.png",
            "segments_info": [{"id": 1, "category_id": 3}, {"id": 70000, "category_id": 200}],
        },
    ],
}


def _load(tmp_path, content):
    path = tmp_path / "panoptic.json"
    path.write_text(json.dumps(content))
    return load_coco_panoptic(path, "pictures", "labels", {3: 0, 90: 1}, {3: 9, 200: 2})


def test_records_have_sizes_paths_and_contiguous_ids(tmp_path):
    first, second = _load(tmp_path, CONTENT)
    assert second == {
        "file_name": "pictures/sub/7.jpeg",
        "image_id": 7,
        "height": 4,
        "width": 6,
        "pan_seg_file_name": "labels/7.png",
        "segments_info": [
            {"id": 1, "category_id": 0, "iscrowd": 0, "isthing": True},
            {"id": 70000, "category_id": 2, "iscrowd": 0, "isthing": False},
        ],
    }
    assert first["file_name"] == "pictures/8.png"
    assert first["segments_info"][0] == {"id": 5, "category_id": 1, "iscrowd": 1, "isthing": True}


def test_unknown_categories_and_images_are_named(tmp_path):
    segment = {"id": 1, "category_id": 4}
    annotation = {"image_id": 7, "file_name": "7.png", "segments_info": [segment]}
    with pytest.raises(ValueError, match="category 4"):
        _load(tmp_path, CONTENT | {"annotations": [annotation]})
    with pytest.raises(ValueError, match="image 99"):
        _load(tmp_path, CONTENT | {"annotations": [annotation | {"image_id": 99}]})
