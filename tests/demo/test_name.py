"""`demo.py --name-masks` and `--name-boxes`: on a stand-in for the session, and on a real one."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from rose_d2.structures.segments import Segment

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "rose_tiny.yaml")
SIZE = (40, 60)
BOXES = {"a": [[2, 3, 20, 30]], "b": [[10, 5, 40, 30], [0, 0, 9.5, 8]]}


class FakeSession:
    """Names masks "blob" and boxes "thing in a box", of which it draws all."""

    asked: list = []

    def name(self, region):
        FakeSession.asked.append(region)
        if region.ndim == 2:
            return [Segment(region, "blob", 0.5, 0.9)]
        x1, y1, x2, y2 = (int(edge) for edge in region)
        mask = np.zeros(SIZE, dtype=bool)
        mask[y1:y2, x1:x2] = True
        return [Segment(mask, "thing in a box", 0.5, 0.9)]


class FakePredictor:
    def __init__(self, cfg):
        FakeSession.asked = []

    def open(self, image):
        return FakeSession()


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in BOXES:
        Image.new("RGB", SIZE[::-1], "gray").save(folder / f"{name}.png")
    return folder


@pytest.fixture
def run(demo, images, tmp_path, monkeypatch):
    """Run the command on both images with the stand-in."""
    import folder_run

    monkeypatch.setattr(folder_run, "RosePredictor", FakePredictor)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")

    def call(*arguments):
        command = ["--config-file", CONFIG, "--input", str(images)]
        command += ["--output", str(tmp_path / "out"), *map(str, arguments)]
        return demo.main([*command, "--opts", "MODEL.WEIGHTS", str(weights)])

    return call


@pytest.fixture
def regions(tmp_path):
    """A COCO file with boxes, and masks that fill them."""
    annotations = []
    for number, boxes in enumerate(BOXES.values()):
        for x, y, width, height in boxes:
            mask = np.zeros(SIZE, dtype=np.uint8)
            mask[y : y + height, x : x + int(width)] = 1
            code = mask_util.encode(np.asfortranarray(mask))
            code["counts"] = code["counts"].decode()
            annotations.append(
                {
                    "image_id": number,
                    "bbox": [x, y, width, height],
                    "segmentation": {**code, "size": list(SIZE)},
                }
            )
    names = [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(BOXES)]
    path = tmp_path / "regions.json"
    path.write_text(json.dumps({"images": names, "annotations": annotations}))
    return path


def annotations(tmp_path):
    return json.loads((tmp_path / "out" / "predictions.json").read_text())["annotations"]


def test_masks_get_names_and_stay(run, regions, tmp_path):
    assert run("--name-masks", regions) == 0
    found = annotations(tmp_path)
    assert [entry["category_name"] for entry in found] == ["blob"] * 3
    assert [int(mask_util.area(entry["segmentation"])) for entry in found] == [600, 1200, 72]
    assert sorted(path.name for path in (tmp_path / "out" / "named").iterdir()) == [
        "a.jpg",
        "b.jpg",
    ]


def test_boxes_get_masks_and_names(run, regions, tmp_path):
    assert run("--name-boxes", regions, "--no-overlay") == 0
    assert [box.tolist() for box in FakeSession.asked] == [
        [2, 3, 22, 33],
        [10, 5, 50, 35],
        [0, 0, 9.5, 8],
    ]
    assert {entry["category_name"] for entry in annotations(tmp_path)} == {"thing in a box"}
    assert not (tmp_path / "out" / "named").exists()


def test_a_second_run_goes_on_and_other_regions_are_refused(run, regions, tmp_path, capsys):
    assert run("--name-masks", regions) == run("--name-masks", regions) == 0
    assert "2 were done before" in capsys.readouterr().out
    assert run("--name-boxes", regions) == 2
    assert "predictions.json" in capsys.readouterr().err


def test_an_entry_without_a_box_costs_its_image(run, regions, tmp_path, capsys):
    content = json.loads(regions.read_text())
    content["annotations"][0]["bbox"] = [1, 2, 3]
    regions.write_text(json.dumps(content))
    assert run("--name-boxes", regions) == 1
    assert "an annotation of a.png without a bbox of four numbers" in capsys.readouterr().err
    assert len(annotations(tmp_path)) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--name-masks", "none.json"], "--name-masks 'none.json' does not exist"),
        (["--name-masks", CONFIG, "--name-boxes", CONFIG], "so it takes no --name-boxes"),
        (["--name-boxes", CONFIG, "--refer", "the dog"], "so it takes no --refer"),
        (["--name-boxes", CONFIG], "is not valid JSON"),
    ],
)
def test_what_does_not_go_together_is_refused(run, options, message, capsys):
    assert run(*options) == 2
    assert message in capsys.readouterr().err


def test_a_real_model_names_what_it_is_shown(demo, images, regions, exported, tmp_path):
    command = ["--config-file", str(exported / "config.yaml"), "--input", str(images)]
    for option in ("--name-masks", "--name-boxes"):
        output = tmp_path / option.strip("-")
        weights = ["MODEL.WEIGHTS", str(exported), "MODEL.DEVICE", "cpu"]
        assert demo.main([*command, "--output", str(output), option, str(regions), *weights]) == 0
        content = json.loads((output / "predictions.json").read_text())
        assert 1 <= len(content["annotations"]) <= 3
        assert all(entry["category_name"] for entry in content["annotations"])
