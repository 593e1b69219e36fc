from pathlib import Path

import pytest
from scripts import load_script

from rose_d2.data.datasets.builtin import DEFAULT_ROOT, register_all
from rose_d2.synthetic.clipart import BenchmarkSettings, write_benchmark

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
