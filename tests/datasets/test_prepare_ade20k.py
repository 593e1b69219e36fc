"""Two hand-made pictures per split through the script: numbers, errors, interruption and resume."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from rose_d2.data.datasets.ade20k import Ade20kPaths
from rose_d2.prepare.preparation import run_preparation

SCRIPT_FOLDER = Path(__file__).parents[2] / "datasets"


# In the files: classes count from 1, categories of the instance annotation from 1 among things.
WALL, SKY, PERSON = 1, 3, 13


PERSON_CATEGORY = 4


FIRST, SECOND = "ADE_train_00000001", "ADE_train_00000002"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT_FOLDER)
    return importlib.import_module("prepare_ade20k")


@pytest.fixture
def prepare(script):
    """Runs the script on a root with further arguments; returns the exit status."""

    def run(root, *arguments):
        arguments = ["--root", str(root), "--num-workers", "1", *arguments]
        return run_preparation(script.main, script.build_parser(), arguments)

    return run


def draw_picture():
    """Labels and instances of 6 x 8 pixels (rows x columns).

    Sky in rows 0-2, wall in rows 3-4, row 5 unlabelled; two persons, of whom the first reaches
    one row higher as an instance than as a label; a pixel of a person without an instance.
    """
    labels = np.zeros((6, 8), np.uint8)
    labels[:3], labels[3:5] = SKY, WALL
    labels[2:4, 0:2] = labels[2:4, 4:6] = labels[0, 7] = PERSON
    instances = np.zeros((6, 8, 3), np.uint8)
    instances[1:4, 0:2] = (PERSON_CATEGORY, 1, 0)
    instances[2:4, 4:6] = (PERSON_CATEGORY, 2, 0)
    return labels, instances


@pytest.fixture
def root(tmp_path):
    """A datasets folder as it is after unpacking."""
    labels, instances = draw_picture()
    for split in ("train", "val"):
        paths = Ade20kPaths(tmp_path, split)
        folders = (paths.image_root, paths.label_root, paths.instance_label_root)
        for folder in folders:
            folder.mkdir(parents=True)
        for number in (1, 2):
            stem = f"ADE_{split}_{number:08d}"
            Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folders[0] / f"{stem}.jpg")
            Image.fromarray(labels).save(folders[1] / f"{stem}.png")
            Image.fromarray(instances).save(folders[2] / f"{stem}.png")
    return tmp_path


def made_files(root):
    """Every file and folder that is not a source, with its time of writing."""
    folder = root / "ADEChallengeData2016"
    sources = {"images", "annotations", "annotations_instance"}
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.relative_to(folder).parts[0] not in sources and path.is_file()
    }


def damage(path):
    """Cuts a file in half; returns its former content."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return content


def test_label_pngs_count_from_zero(prepare, root):
    assert prepare(root) == 0
    made = np.asarray(Image.open(Ade20kPaths(root, "train").sem_seg_root / f"{FIRST}.png"))
    expected = draw_picture()[0].astype(int) - 1
    expected[5] = 255
    assert made.dtype == np.uint8 and (made == expected).all()


def test_panoptic_segments_are_stuff_then_instances(prepare, root):
    assert prepare(root) == 0
    paths = Ade20kPaths(root, "train")
    content = json.loads(paths.panoptic_json.read_text())
    assert [c["name"] for c in content["categories"] if c["id"] in (0, 2, 12)] == [
        "wall",
        "sky",
        "person",
    ]
    assert content["images"][1] == {
        "id": 2,
        "file_name": f"{SECOND}.jpg",
        "height": 6,
        "width": 8,
    }
    annotation = content["annotations"][0]
    assert (annotation["image_id"], annotation["file_name"]) == (1, f"{FIRST}.png")
    segments = [
        (s["id"], s["category_id"], s["area"], s["bbox"], s["iscrowd"])
        for s in annotation["segments_info"]
    ]
    assert segments == [
        (1, 0, 12, [0, 3, 8, 2], 0),
        (2, 2, 17, [0, 0, 8, 3], 0),
        (3, 12, 6, [0, 1, 2, 3], 0),
        (4, 12, 4, [4, 2, 2, 2], 0),
    ]
    ids = np.asarray(Image.open(paths.panoptic_root / f"{FIRST}.png"))[..., 0]
    assert not ids[5].any() and ids[0, 7] == 0
    assert np.bincount(ids.ravel()).tolist() == [9, 12, 17, 6, 4]


def test_instances_of_the_hundred_things(prepare, root):
    assert prepare(root) == 0
    content = json.loads(Ade20kPaths(root, "val").instance_json.read_text())
    assert len(content["categories"]) == 100 and content["categories"][3]["id"] == 12
    found = [(a["id"], a["image_id"], a["category_id"]) for a in content["annotations"]]
    assert found == [(1, 1, 12), (2, 1, 12), (3, 2, 12), (4, 2, 12)]
    first = content["annotations"][0]
    assert (first["area"], first["bbox"], first["iscrowd"]) == (6, [0, 1, 2, 3], 0)
    mask = mask_util.decode(first["segmentation"])
    assert mask.shape == (6, 8) and mask[1:4, 0:2].all() and mask.sum() == 6


def test_a_second_run_writes_nothing(prepare, root):
    assert prepare(root) == 0
    made = made_files(root)
    assert len(made) == 2 * (2 + 2 + 2)
    assert not any(part.startswith(".") for name in made for part in Path(name).parts)
    assert prepare(root) == 0
    assert made_files(root) == made


def test_overwrite_makes_everything_again(prepare, root):
    assert prepare(root) == 0
    labels, _ = draw_picture()
    paths = Ade20kPaths(root, "train")
    Image.fromarray(np.full_like(labels, SKY)).save(paths.label_root / f"{FIRST}.png")
    assert prepare(root, "--overwrite", "--splits", "train") == 0
    assert (np.asarray(Image.open(paths.sem_seg_root / f"{FIRST}.png")) == SKY - 1).all()
    annotation = json.loads(paths.panoptic_json.read_text())["annotations"][0]
    assert [s["area"] for s in annotation["segments_info"]] == [48 - 6 - 4, 6, 4]


def test_the_number_of_workers_changes_nothing(prepare, root, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    (other / "ADEChallengeData2016").mkdir()
    for name in ("images", "annotations", "annotations_instance"):
        (other / "ADEChallengeData2016" / name).symlink_to(root / "ADEChallengeData2016" / name)
    assert prepare(root) == 0
    assert prepare(other, "--num-workers", "2") == 0
    assert made_files(root).keys() == made_files(other).keys()
    for name in made_files(root):
        files = [folder / "ADEChallengeData2016" / name for folder in (root, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


def test_a_damaged_label_png_stops_it_and_it_resumes_after_repair(prepare, root, capsys):
    paths = Ade20kPaths(root, "train")
    broken = paths.label_root / f"{SECOND}.png"
    content = damage(broken)
    assert prepare(root) == 1
    assert f"{broken} cannot be read" in capsys.readouterr().err
    assert not paths.sem_seg_root.exists() and not paths.panoptic_json.exists()
    waiting = made_files(root)
    assert list(waiting) == [f"annotations_detectron2/.training.partial/{FIRST}.png"]

    broken.write_bytes(content)
    assert prepare(root) == 0
    made = made_files(root)
    assert made[f"annotations_detectron2/training/{FIRST}.png"] in waiting.values()
    assert {f"annotations_detectron2/training/{SECOND}.png", "ade20k_instance_val.json"} <= set(
        made
    )
    assert not any("partial" in name for name in made)


def test_a_damaged_instance_png_leaves_the_labels_alone(prepare, root, capsys):
    paths = Ade20kPaths(root, "train")
    broken = paths.instance_label_root / f"{SECOND}.png"
    content = damage(broken)
    assert prepare(root) == 1
    assert str(broken) in capsys.readouterr().err
    assert not paths.panoptic_json.exists() and not paths.panoptic_root.exists()
    assert not paths.instance_json.exists()
    done = made_files(root)

    broken.write_bytes(content)
    assert prepare(root) == 0
    made = made_files(root)
    assert paths.panoptic_json.exists() and paths.instance_json.exists()
    for name in (f"annotations_detectron2/training/{stem}.png" for stem in (FIRST, SECOND)):
        assert made[name] == done[name]
    # The first picture's segments waited in the hidden folder.
    waited = done[f".ade20k_panoptic_train.partial/{FIRST}.png"]
    assert made[f"ade20k_panoptic_train/{FIRST}.png"] == waited


def test_one_missing_output_is_made_alone(prepare, root):
    assert prepare(root) == 0
    made = made_files(root)
    Ade20kPaths(root, "val").instance_json.unlink()
    assert prepare(root) == 0
    again = made_files(root)
    assert {name for name in made if again[name] != made[name]} == {"ade20k_instance_val.json"}


def test_an_incomplete_label_folder_of_another_tool_is_replaced(prepare, root):
    folder = Ade20kPaths(root, "train").sem_seg_root
    folder.mkdir(parents=True)
    (folder / f"{FIRST}.png").write_bytes(b"half a file")
    assert prepare(root) == 0
    assert np.asarray(Image.open(folder / f"{FIRST}.png")).shape == (6, 8)


@pytest.mark.parametrize(
    ("folder", "archive"),
    [
        ("images", "ADEChallengeData2016.zip"),
        ("annotations", "ADEChallengeData2016.zip"),
        ("annotations_instance", "annotations_instance.tar"),
    ],
)
def test_a_missing_folder_is_named_with_its_archive(prepare, root, capsys, folder, archive):
    (root / "ADEChallengeData2016" / folder).rename(root / "elsewhere")
    assert prepare(root) == 1
    message = capsys.readouterr().err
    assert f"{folder}/training is missing: unpack {archive}" in message and "--help" in message
    assert made_files(root) == {}


def test_a_missing_annotation_is_counted_before_anything_is_made(prepare, root, capsys):
    missing = Ade20kPaths(root, "val").instance_label_root / "ADE_val_00000002.png"
    missing.unlink()
    assert prepare(root) == 1
    assert "1 of 2 pictures in" in (message := capsys.readouterr().err)
    assert f"first {missing}" in message
    assert made_files(root) == {}


@pytest.mark.parametrize(
    ("folder", "values", "message"),
    [
        (
            "label_root",
            np.full((6, 8), 151, np.uint8),
            "values up to 151; one channel with 0 to 150",
        ),
        ("label_root", np.ones((6, 8, 3), np.uint8), r"shape \(6, 8, 3\)"),
        ("label_root", np.ones((8, 6), np.uint8), r"\(6, 8\) but its annotation \(8, 6\)"),
        ("instance_label_root", np.full((6, 8, 3), 101, np.uint8), "0 to 100 in red"),
        ("instance_label_root", np.ones((6, 7, 3), np.uint8), r"has size \(6, 7\)"),
    ],
)
def test_annotations_of_another_kind_are_refused(script, root, folder, values, message):
    paths = Ade20kPaths(root, "train")
    Image.fromarray(values).save(getattr(paths, folder) / f"{FIRST}.png")
    source = script.find_sources(paths)[0]
    with pytest.raises(ValueError, match=message):
        script.convert_panoptic(source)


def test_help_teaches(prepare, root, capsys):
    with pytest.raises(SystemExit, match="0"):
        prepare(root, "--help")
    text = capsys.readouterr().out
    for part in ("ADEChallengeData2016.zip", "annotations_instance.tar", "--splits", "void"):
        assert part in text
