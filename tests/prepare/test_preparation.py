import json
import os

import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.registration import BrokenAnnotations
from rose_d2.prepare.preparation import (
    PanopticImage,
    preparation_parser,
    run_parallel,
    run_preparation,
    write_coco_panoptic,
    write_label_maps,
)

CATEGORIES = [{"id": 1, "name": "dog", "isthing": 1}, {"id": 7, "name": "sky", "isthing": 0}]


def _square_and_pid(number):
    return number * number, os.getpid()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_items(num_workers):
    results = list(
        run_parallel(_square_and_pid, range(40), num_workers=num_workers, description="squares")
    )
    assert [square for square, _ in results] == [number * number for number in range(40)]
    assert (os.getpid() in {pid for _, pid in results}) == (num_workers < 2)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ValueError("the folder is empty; fill it."), 1, "the folder is empty; fill it."),
        (FileNotFoundError("no such folder"), 1, "no such folder"),
        (KeyboardInterrupt(), 130, "run it again to go on"),
    ],
)
def test_errors_become_one_sentence_and_a_status(error, status, said, capsys):
    def main(args):
        raise error

    assert run_preparation(main, preparation_parser("Prepares."), []) == status
    message = capsys.readouterr().err
    assert said in message
    assert message.count("\n") == 1


def test_root_expands_the_home_folder_and_strict_reaches_the_loaders(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/reader")
    seen = []

    def main(args):
        seen.append(args.root)
        BrokenAnnotations("refs.p").add("empty sentences", "sentence 1")

    parser = preparation_parser("Prepares.")
    assert run_preparation(main, parser, ["--root", "~/data"]) == 0
    assert str(seen[0]) == "/home/reader/data"
    assert run_preparation(main, parser, ["--strict"]) == 1
    assert "empty sentences" in capsys.readouterr().err


def test_the_status_of_main_is_the_status():
    assert run_preparation(lambda args: 3, preparation_parser("Checks."), []) == 3


def _label_map(value):
    if value < 0:
        raise ValueError("the label map is damaged")
    return np.full((2, 3), value, dtype=np.uint8)


def test_label_maps_appear_when_all_are_made_and_a_second_run_makes_the_rest(tmp_path):
    folder = tmp_path / "labels"
    made = []

    def read(value):
        made.append(value)
        return _label_map(value)

    options = {"num_workers": 0, "description": "labels"}
    with pytest.raises(ValueError, match="damaged"):
        write_label_maps([1, 2, -1], read, str, folder, **options)
    assert not folder.exists()
    write_label_maps([1, 2, 3], read, str, folder, **options)
    assert made == [1, 2, -1, 3]
    assert (np.asarray(Image.open(folder / "3.png")) == 3).all()
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["1.png", "2.png", "3.png"]
    made.clear()
    write_label_maps([7], read, str, folder, overwrite=True, **options)
    assert [path.name for path in folder.iterdir()] == ["7.png"]


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
