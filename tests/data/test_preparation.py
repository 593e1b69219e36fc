import json
import os

import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.registration import BrokenAnnotations
from rose_d2.prepare.preparation import (
    dump_json,
    preparation_parser,
    run_main,
    run_parallel,
    write_atomically,
    write_label_maps,
)


def _square_and_pid(number):
    return number * number, os.getpid()


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_results_come_in_the_order_of_the_items(num_workers):
    results = list(
        run_parallel(_square_and_pid, range(40), num_workers=num_workers, description="squares")
    )
    assert [square for square, _ in results] == [number * number for number in range(40)]
    assert (os.getpid() in {pid for _, pid in results}) == (num_workers < 2)


def test_a_file_that_fails_half_way_leaves_the_former_one(tmp_path):
    path = tmp_path / "labels.json"
    dump_json({"a": 1}, path)

    def fail(partial):
        partial.write_text("{")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_the_temporary_file_keeps_the_suffix(tmp_path):
    seen = []
    write_atomically(tmp_path / "a.png", lambda path: (seen.append(path), path.touch()))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path


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

    assert run_main(main, preparation_parser("Prepares."), []) == status
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
    assert run_main(main, parser, ["--root", "~/data"]) == 0
    assert str(seen[0]) == "/home/reader/data"
    assert run_main(main, parser, ["--strict"]) == 1
    assert "empty sentences" in capsys.readouterr().err


def test_the_status_of_main_is_the_status():
    assert run_main(lambda args: 3, preparation_parser("Checks."), []) == 3


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
