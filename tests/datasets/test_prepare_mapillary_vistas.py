"""Training images of 6 x 8 pixels: sky in rows 0-2, road in rows 3-4, row 5 unlabelled."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scripts import load_script

from rose_d2.data.datasets.mapillary_vistas import V1_2, V2_0

SCRIPT = Path(__file__).parents[2] / "datasets" / "prepare_mapillary_vistas.py"
HEIGHT, WIDTH = 6, 8
KEYS = ("aaaaaaaaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbbbbbbb")


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


def label(name, version=V1_2):
    return [entry.name for entry in version.labels].index(name)


def draw_instances(version=V1_2):
    """Two cars with the numbers 0 and 200, and a strange number on the sky."""
    values = np.full((HEIGHT, WIDTH), 256 * label("Sky", version), dtype=np.uint16)
    values[0, 0] += 3
    values[3:5] = 256 * label("Road", version)
    values[5] = 256 * label("Unlabeled", version)
    values[2:4, 1:3] = 256 * label("Car", version)
    values[2:4, 5:7] = 256 * label("Car", version) + 200
    return values


def write_split(folder, version=V1_2):
    for name in ("instances", "labels"):
        (folder / name).mkdir(parents=True)
    for key in KEYS:
        values = draw_instances(version)
        Image.fromarray(values).save(folder / "instances" / f"{key}.png")
        labels = Image.fromarray((values // 256).astype(np.uint8))
        labels.putpalette([part for entry in version.labels for part in entry.color])
        labels.save(folder / "labels" / f"{key}.png")
    return folder


@pytest.fixture
def root(tmp_path):
    write_split(tmp_path / "mapillary_vistas" / "training")
    return tmp_path


def run(script, root, *options):
    return script.main(["--root", str(root), "--splits", "train", "--num-workers", "1", *options])


def read_panoptic(folder, file_name="panoptic_2018.json"):
    """Segments of the first image: category, is it alone, mask."""
    content = json.loads((folder / file_name).read_text())
    annotation = content["annotations"][0]
    colours = np.asarray(Image.open(folder / annotation["file_name"])).astype(int)
    ids = colours @ np.array([1, 256, 65536])
    return content, ids, annotation["segments_info"]


def test_each_instance_of_a_thing_and_each_kind_of_stuff_is_a_segment(script, root):
    assert run(script, root) == 0
    content, ids, segments = read_panoptic(root / "mapillary_vistas" / "training" / "panoptic")
    assert content["images"][0] == {
        "id": KEYS[0],
        "file_name": f"{KEYS[0]}.jpg",
        "height": HEIGHT,
        "width": WIDTH,
    }
    # Categories count from 1.
    expected = [("Sky", 3 * 8 - 4), ("Road", 2 * 8 - 4), ("Car", 4), ("Car", 4)]
    assert sorted((s["category_id"], s["area"]) for s in segments) == sorted(
        (label(name) + 1, area) for name, area in expected
    )
    assert (ids[5] == 0).all() and (ids[:5] > 0).all()
    assert ids[0, 0] == ids[1, 7]
    assert ids[2, 1] == ids[3, 2] != ids[2, 5] == ids[3, 6]


def test_categories_are_the_65_evaluated_classes(script, root):
    assert run(script, root) == 0
    content, *_ = read_panoptic(root / "mapillary_vistas" / "training" / "panoptic")
    categories = content["categories"]
    assert [category["id"] for category in categories] == list(range(1, 66))
    assert sum(category["isthing"] for category in categories) == 37
    assert (categories[0]["name"], categories[-1]["name"]) == ("Bird", "Ego Vehicle")


def test_the_layout_of_newer_downloads(script, tmp_path):
    folder = write_split(tmp_path / "mapillary_vistas" / "training" / "v1.2")
    assert run(script, tmp_path) == 0
    assert (folder / "panoptic" / "panoptic_2018.json").exists()


def test_a_second_run_does_nothing(script, root):
    assert run(script, root) == 0
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert run(script, root) == 0
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_what_was_made_here_can_be_made_again(script, root):
    assert run(script, root) == 0
    folder = root / "mapillary_vistas" / "training"
    values = np.full((HEIGHT, WIDTH), 256 * label("Road"), dtype=np.uint16)
    Image.fromarray(values).save(folder / "instances" / f"{KEYS[0]}.png")
    assert run(script, root, "--overwrite") == 0
    _, _, segments = read_panoptic(folder / "panoptic")
    assert [segment["category_id"] for segment in segments] == [label("Road") + 1]


@pytest.mark.parametrize("options", [(), ("--overwrite",)])
def test_official_panoptic_files_stay_as_they_are(script, root, options):
    panoptic = root / "mapillary_vistas" / "training" / "panoptic"
    panoptic.mkdir()
    (panoptic / "panoptic_2018.json").write_text("{}")
    (panoptic / f"{KEYS[0]}.png").write_bytes(b"official")
    assert run(script, root, *options) == 0
    assert (panoptic / "panoptic_2018.json").read_text() == "{}"
    assert (panoptic / f"{KEYS[0]}.png").read_bytes() == b"official"


def test_half_unpacked_official_files_are_not_replaced(script, root, capsys):
    panoptic = root / "mapillary_vistas" / "training" / "panoptic"
    panoptic.mkdir()
    (panoptic / f"{KEYS[0]}.png").write_bytes(b"official")
    assert run(script, root, "--overwrite") == 1
    assert "no panoptic_2018.json: unpack the dataset again" in capsys.readouterr().err
    assert (panoptic / f"{KEYS[0]}.png").read_bytes() == b"official"


def test_a_failure_leaves_no_output_and_the_next_run_goes_on(script, root, capsys):
    folder = root / "mapillary_vistas" / "training"
    bad = folder / "instances" / f"{KEYS[1]}.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 256 * 90, dtype=np.uint16)).save(bad)
    assert run(script, root) == 1
    error = capsys.readouterr().err
    assert str(bad) in error and "labels up to 90" in error and "labels up to 65" in error
    assert not (folder / "panoptic").exists()
    finished = (folder / ".panoptic.partial" / f"{KEYS[0]}.png").stat().st_mtime_ns
    Image.fromarray(draw_instances()).save(bad)
    assert run(script, root) == 0
    assert (folder / "panoptic" / f"{KEYS[0]}.png").stat().st_mtime_ns == finished
    assert len(list((folder / "panoptic").iterdir())) == 3


def test_version_2_gets_contiguous_labels_and_its_own_panoptic_files(script, tmp_path):
    folder = write_split(tmp_path / "mapillary_vistas" / "training" / "v2.0", V2_0)
    values = draw_instances(V2_0)
    values[4, 0:2] = 256 * label("Person Group", V2_0)
    values[4, 2:4] = 256 * label("Static", V2_0)
    Image.fromarray((values // 256).astype(np.uint8)).save(folder / "labels" / f"{KEYS[0]}.png")
    Image.fromarray(values).save(folder / "instances" / f"{KEYS[0]}.png")
    assert run(script, tmp_path, "--version", "v2.0") == 0
    labels = np.asarray(Image.open(folder / "labels_detectron2" / f"{KEYS[0]}.png"))
    # One void label comes before road, 21; three before sky, 61; six before car, 108.
    assert [labels[3, 0], labels[0, 0], labels[2, 1]] == [20, 58, 102]
    assert labels[4, 2:4].tolist() == [115, 115]
    assert (labels[4, :2] == 255).all() and (labels[5] == 255).all()
    _, ids, segments = read_panoptic(folder / "panoptic", "panoptic_2020.json")
    assert {s["category_id"] for s in segments} == {21, 59, 103, 116}
    assert (ids[4, :2] == 0).all()


def test_version_2_labels_are_made_beside_official_panoptic_files(script, tmp_path):
    folder = write_split(tmp_path / "mapillary_vistas" / "training" / "v2.0", V2_0)
    (folder / "panoptic").mkdir()
    (folder / "panoptic" / "panoptic_2020.json").write_text("{}")
    assert run(script, tmp_path, "--version", "v2.0") == 0
    made = {path: path.stat().st_mtime_ns for path in (folder / "labels_detectron2").iterdir()}
    assert {path.stem for path in made} == set(KEYS)
    assert run(script, tmp_path, "--version", "v2.0") == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_missing_download_is_one_sentence(script, tmp_path, capsys):
    assert run(script, tmp_path) == 1
    error = capsys.readouterr().err
    assert "training/instances has no PNGs" in error and "https://www.mapillary.com" in error
    assert list(tmp_path.iterdir()) == []
