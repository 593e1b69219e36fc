import json
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from PIL import Image
from scripts import load_script

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.dataset_mapper import RoseDatasetMapper
from rose_d2.data.datasets.builtin import DEFAULT_ROOT, register_all
from rose_d2.data.datasets.registration import DatasetEntry, register, unregister
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark

tool = load_script("tools/check_data.py")
check_dataset = tool.check_dataset
NAME = "rose_test_integrity"


@pytest.fixture
def mapper():
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.MODEL.LMM.IMAGE_SIZE, cfg.MODEL.MASK_HEAD.IMAGE_SIZE = 20, 32
    return RoseDatasetMapper(cfg, is_train=True)


@pytest.fixture
def make_entry(scene, tmp_path):
    """An entry of four panoptic records; `images` is published as five."""

    def make(records=None, classes=("dog", "cat", "red car", "sky", "grass"), load=None):
        records = [dict(scene["panoptic"]) for _ in range(4)] if records is None else records
        entry = DatasetEntry(
            name=NAME,
            load=load or (lambda: records),
            metadata={
                "task": "panoptic",
                "evaluator_type": "coco_panoptic_seg",
                "stuff_classes": list(classes),
            },
            files=(tmp_path / "image.png", tmp_path / "panoptic.png"),
            how_to_get="Draw it.",
            num_images=5,
        )
        register(entry)
        return entry

    yield make
    unregister(NAME)


def test_a_sound_dataset_is_counted_and_opened(make_entry, mapper):
    report = check_dataset(make_entry(), mapper, num_samples=3)
    assert (report.status, report.num_images, report.num_items) == ("present", 1, 4)
    assert (report.num_opened, report.problems) == (3, [])


def test_more_samples_than_items_open_each_once(make_entry, mapper):
    assert check_dataset(make_entry(), mapper, num_samples=50).num_opened == 4


def test_some_or_no_files(make_entry, mapper, tmp_path):
    entry = make_entry()
    (tmp_path / "panoptic.png").unlink()
    report = check_dataset(entry, mapper, 3)
    assert (report.status, report.missing) == ("partial", [tmp_path / "panoptic.png"])
    (tmp_path / "image.png").unlink()
    assert check_dataset(entry, mapper, 3).status == "missing"


def test_an_item_that_cannot_be_used_is_named(make_entry, mapper, scene, tmp_path):
    records = [dict(scene["panoptic"]) for _ in range(3)]
    records[2]["file_name"] = str(tmp_path / "gone.jpg")
    report = check_dataset(make_entry(records), mapper, 3)
    assert (report.status, report.num_opened) == ("damaged", 2)
    assert "gone.jpg" in report.problems[0]


def test_annotations_that_cannot_be_read(make_entry, mapper):
    def fail():
        return json.loads("{")

    report = check_dataset(make_entry(load=fail), mapper, 3)
    assert report.status == "damaged"
    assert report.num_items is None
    empty = check_dataset(make_entry(records=[]), mapper, 3)
    assert (empty.status, empty.problems) == ("damaged", ["its annotation files list no item"])


def test_classes_beyond_the_metadata(make_entry, mapper):
    report = check_dataset(make_entry(classes=("dog", "cat")), mapper, 1)
    assert report.status == "damaged"
    assert "IndexError" in report.problems[0]


SCRIPT = Path(__file__).parents[2] / "tools" / "check_data.py"


@pytest.fixture(scope="module")
def check_data():
    module = load_script(SCRIPT)
    yield module
    register_all(DEFAULT_ROOT)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets")
    settings = BenchmarkSettings(1, {"train": 2, "val": 2, "val_unseen": 1})
    write_benchmark(settings, folder / "clipart")
    return folder


def test_an_empty_folder_says_what_to_do(check_data, tmp_path, capsys):
    assert check_data.main(["--root", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "missing   clipart_panoptic_val " in shown
    assert f"python datasets/prepare_clipart.py --root {tmp_path}" in " ".join(shown.split())
    assert "\n0 present, 0 partial" in shown


def test_what_is_there_is_counted_against_what_is_published(check_data, root, capsys):
    names = ("clipart_panoptic_train", "clipart_refer_val")
    asked = [part for name in names for part in ("--dataset", name)]
    assert check_data.main(["--root", str(root), *asked]) == 0
    shown = capsys.readouterr().out
    assert "2 of 20,000 images, 2 opened" in shown
    assert "2 present, 0 partial, 0 missing, 0 damaged" in shown


def test_without_names_what_is_missing_altogether_does_not_count(check_data, root, capsys):
    assert check_data.main(["--root", str(root), "--samples", "1"]) == 0
    assert "\n13 present, 0 partial" in capsys.readouterr().out


def test_a_named_dataset_that_is_incomplete_fails(check_data, root, tmp_path, capsys):
    asked = ["--root", str(tmp_path), "--dataset", "clipart_refer_val"]
    assert check_data.main(asked) == 1
    assert "clipart_panoptic_val" not in capsys.readouterr().out


def test_an_unknown_name_lists_the_known_ones(check_data, root, capsys):
    with pytest.raises(SystemExit) as stop:
        check_data.main(["--root", str(root), "--dataset", "coco_1999"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "coco_1999" in error
    assert "clipart_refer_val" in error


@pytest.fixture
def own_data(tmp_path):
    """One image; of its two annotations one has no mask."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    square = {"image_id": 1, "category_id": 1, "segmentation": [[1, 1, 4, 1, 4, 3, 1, 3]]}
    content = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "annotations": [square | {"id": 3}, square | {"id": "=1+1", "segmentation": []}],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (tmp_path / "ann.json").write_text(json.dumps(content))
    yield tmp_path
    unregister("custom")


def test_own_data_are_checked_without_training(own_data, capsys, caplog):
    left_out = own_data / "left_out.csv"
    arguments = [
        "--custom-coco",
        own_data / "images",
        own_data / "ann.json",
        "--left-out",
        left_out,
    ]
    assert tool.main([str(argument) for argument in arguments]) == 0
    assert "present   custom  1 images, 1 opened" in capsys.readouterr().out
    assert "left out 1 annotations without a mask" in caplog.text
    (row,) = left_out.read_text().splitlines()[1:]
    assert row.endswith("annotations without a mask,annotation =1+1 of image 1")


def test_own_data_without_any_object_are_refused(own_data, capsys):
    path = own_data / "ann.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"annotations": []}))
    arguments = ["--custom-coco", str(own_data / "images"), str(path)]
    assert tool.main(arguments) == 1
    assert "no object is left of 0 annotations" in capsys.readouterr().out
