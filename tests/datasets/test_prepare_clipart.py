import json
import os
import signal
import time

import pytest
from PIL import Image
from scripts import finish_script, load_script, start_script

from rose_d2.data.coco_files import read_coco
from rose_d2.data.datasets.clipart import THING_NAMES

SCRIPT = "datasets/prepare_clipart.py"
SIZES = ["--num-train", "2", "--num-val", "1", "--num-val-unseen", "1", "--num-workers", "1"]


@pytest.fixture
def main():
    """The script's entry point."""
    return load_script(SCRIPT).main


def test_the_benchmark_is_written_once(main, tmp_path):
    arguments = ["--root", str(tmp_path), "--seed", "7", *SIZES]
    assert main(arguments) == 0
    meta = json.loads((tmp_path / "clipart" / "meta.json").read_text())
    assert (meta["seed"], meta["num_scenes"]["train"]) == (7, 2)
    picture = tmp_path / "clipart" / "images" / "train" / "000001.jpg"
    written = picture.stat().st_mtime_ns
    assert main(arguments) == 0
    assert picture.stat().st_mtime_ns == written


def test_other_settings_need_overwrite(main, tmp_path, capsys):
    assert main(["--root", str(tmp_path), *SIZES]) == 0
    assert main(["--root", str(tmp_path), "--seed", "8", *SIZES]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main(["--root", str(tmp_path), "--seed", "8", *SIZES, "--overwrite"]) == 0


def test_scenes_of_few_kinds_are_another_benchmark(main, tmp_path, capsys):
    few = ["--root", str(tmp_path), *SIZES, "--num-kinds", "8"]
    assert main(few) == main(few) == 0
    assert main(["--root", str(tmp_path), *SIZES]) == 1
    assert "made with other settings" in capsys.readouterr().err
    assert main([*few[:-1], "7", "--overwrite"]) == 1
    assert "num_kinds is 7; choose 8 to" in capsys.readouterr().err


def test_wrong_numbers_are_one_sentence(main, tmp_path, capsys):
    assert main(["--root", str(tmp_path), "--num-val", "-1"]) == 1
    assert "-1 scenes asked for split val" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_new_things_are_coco_data_of_what_no_split_has(main, tmp_path, capsys):
    for folder, seed in (("one", 0), ("same", 0), ("other", 1)):
        command = ["--new-things", str(tmp_path / folder), "--num", "3", "--seed", str(seed)]
        assert main(command) == 0
    assert "3 pictures and instances.json" in capsys.readouterr().out
    one, same, other = (
        (tmp_path / folder / "instances.json").read_bytes() for folder in ("one", "same", "other")
    )
    assert one == same != other
    coco = read_coco(tmp_path / "one" / "instances.json")
    assert not set(coco.category_names.values()) & set(THING_NAMES)
    assert len(coco.images) == 3 and len(coco.annotations) >= 6
    for image in coco.images.values():
        with Image.open(tmp_path / "one" / "images" / image.file_name) as picture:
            assert picture.size == (image.width, image.height)


def test_images_only(main, tmp_path, capsys):
    assert main(["--images-only", str(tmp_path / "pictures"), "--num", "2"]) == 0
    assert len(list((tmp_path / "pictures").glob("*.jpg"))) == 2
    assert "2 pictures are in" in capsys.readouterr().out


def test_help_shows_examples_and_defaults(main, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert "python datasets/prepare_clipart.py" in text
    assert "default: 20000" in text


@pytest.mark.slow
def test_a_killed_run_leaves_nothing(tmp_path):
    root = tmp_path / "root"
    root.mkdir()
    output = tmp_path / "output.txt"
    # Enough scenes to be in the middle of them; those handed to the workers are finished.
    sizes = ("--num-train", 60, "--num-val", 1, "--num-val-unseen", 1)
    process = start_script(SCRIPT, "--root", root, "--num-workers", 2, *sizes, output=output)
    deadline = time.monotonic() + 240
    while not list(root.glob(".clipart.partial-*/images/train/*.jpg")):
        assert process.is_alive(), "the script ended by itself"
        assert time.monotonic() < deadline, "the script wrote nothing"
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    assert finish_script(process, output, timeout=240).status == 143
    assert list(root.iterdir()) == []
