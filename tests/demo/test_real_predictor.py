"""Every option of the demo on the shipped model, with the real predictor."""

import csv
import json
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from scripts import ROOT, load_script

from rose_d2.config.fingerprint import file_sha256
from rose_d2.data.datasets.clipart import STUFF_NAMES
from rose_d2.synthetic.clipart import compose_sample, write_sample_images

SEED, PICTURES = 5, 2
SHIPPED = ROOT / "checkpoints" / "rose_tiny" / "model.safetensors"


@pytest.fixture(scope="module")
def demo():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "demo"))
        yield load_script("demo/demo.py")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_sample_images(folder, PICTURES, SEED)
    return folder


@pytest.fixture(scope="module")
def run(demo, pictures, tmp_path_factory):
    """Run the command on the two pictures; returns the folder of its results."""

    def call(*arguments, output=None, inputs=("--input", pictures), config=(), opts=()):
        output = output or tmp_path_factory.mktemp("out")
        command = [*config, *inputs, "--output", output, *arguments, "--opts", *opts]
        command += ["MODEL.DEVICE", "cpu"]
        assert demo.main([str(word) for word in command]) == 0
        return output

    return call


@pytest.fixture(scope="module")
def plain(run):
    """Results of the default settings."""
    return run()


def read(output):
    return json.loads((output / "predictions.json").read_text())


def segments(output, picture=None):
    """(name, score, mask) of all pictures, or of one."""
    return [
        (found["category_name"], found["score"], mask_util.decode(found["segmentation"]) > 0)
        for found in read(output)["annotations"]
        if picture is None or found["image_id"] == picture + 1
    ]


def iou(one, other):
    return (one & other).sum() / max(1, (one | other).sum())


def same(output, expected):
    """Whether two folders hold the same names and nearly the same masks."""
    pairs = list(zip(segments(output), segments(expected), strict=True))
    return all(a[0] == b[0] and iou(a[2], b[2]) > 0.95 for a, b in pairs)


def test_every_option_is_run_here(demo):
    actions = demo.build_parser()._actions
    options = {action.option_strings[-1] for action in actions if action.option_strings}
    here = Path(__file__)  # names of regions have a file of their own
    source = here.read_text("utf-8") + here.with_name("test_name.py").read_text("utf-8")
    assert len(options) > 15
    assert [
        option for option in options - {"--help", "--version"} if f'"{option}"' not in source
    ] == []


def test_the_shipped_model_names_what_is_there(plain):
    info = read(plain)["info"]
    assert info["task"] == "panoptic" and info["weights_sha256"] == file_sha256(str(SHIPPED))
    for picture in range(PICTURES):
        there = {thing.name for thing in compose_sample(SEED, picture).objects}
        found = {name for name, _, _ in segments(plain, picture)} - set(STUFF_NAMES)
        assert len(found & there) >= len(there) / 2
    assert min(score for _, score, _ in segments(plain)) >= 0.5
    assert all(0 < found["name_score"] <= 1 for found in read(plain)["annotations"])
    assert len(list((plain / "overlays").iterdir())) == PICTURES
    assert len(list((plain / "panoptic").iterdir())) == PICTURES
    assert (plain / "contact_sheet.jpg").is_file()


def test_a_higher_threshold_keeps_the_surer_segments(run, plain):
    sure = segments(run("--confidence-threshold", 0.9))
    assert 0 < len(sure) < len(segments(plain))
    assert min(score for _, score, _ in sure) >= 0.9
    assert min(score for _, score, _ in segments(plain)) < 0.9


def test_a_lower_threshold_than_the_configs_reaches_the_model(run):
    scores = [s for _, s, _ in segments(run("--task", "instance", "--confidence-threshold", 0.01))]
    assert any(score < 0.05 for score in scores), "TEST.SCORE_THRESH of the config is 0.05"
    assert min(scores) >= 0.01


@pytest.mark.parametrize("task", ["semantic", "instance"])
def test_other_tasks_find_what_they_are_for(run, task):
    output = run("--task", task)
    names = [name for name, _, _ in segments(output, 1)]
    assert read(output)["info"]["task"] == task and not (output / "panoptic").exists()
    if task == "semantic":
        assert len(set(names)) == len(names) and set(names) & set(STUFF_NAMES)
    else:
        assert names and not set(names) & set(STUFF_NAMES)


def test_an_expression_is_answered_with_its_object(run, plain):
    dog, sheep = (run("--refer", f"the {name}") for name in ("dog", "sheep"))
    expected = {name: mask for name, _, mask in segments(plain, 0)}
    ((_, _, found_dog),) = segments(dog, 0)
    ((_, _, found_sheep),) = segments(sheep, 0)
    assert iou(found_dog, expected["dog"]) > 0.8
    assert iou(found_sheep, expected["sheep"]) > 0.8


def test_names_come_from_the_vocabulary(run, pictures, tmp_path):
    categories = [{"id": 1, "name": "sheep"}, {"id": 2, "name": "zebra"}]
    coco = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "data.json").write_text(json.dumps(coco))
    (tmp_path / "names.txt").write_text("sheep\nzebra\n")
    given = run("--vocabulary", "sheep,zebra")
    assert {name for name, _, _ in segments(given)} == {"sheep"}
    for option, file in (("--custom-coco", "data.json"), ("--custom-labels", "names.txt")):
        assert same(run(inputs=(option, pictures, tmp_path / file)), given)


def test_a_batch_gives_what_single_images_give(run, plain, monkeypatch):
    import folder_run

    sizes = []
    works = folder_run.RosePredictor.predict_batch

    def counting(self, images, **question):
        sizes.append(len(images))
        return works(self, images, **question)

    monkeypatch.setattr(folder_run.RosePredictor, "predict_batch", counting)
    assert same(run("--batch-size", 2), plain)
    assert sizes == [2]


def test_done_images_are_redone_only_when_asked(run, plain, tmp_path, capsys):
    output = shutil.copytree(plain, tmp_path / "out")
    picture = output / "overlays" / "clipart_000.jpg"
    before = picture.read_bytes()
    Image.new("RGB", (9, 9)).save(picture)
    run(output=output)
    assert "0 images segmented, 2 were done before" in capsys.readouterr().out
    assert picture.read_bytes() != before
    run("--overwrite", output=output)
    assert picture.read_bytes() == before


@pytest.mark.slow
def test_processes_share_a_folder(run, plain, capsys):
    output = run("--num-gpus", 2, "--device", "cpu")
    assert "2 images segmented\n" in capsys.readouterr().out
    assert read(output) == read(plain)
    assert (output / "gallery.html").read_bytes() == (plain / "gallery.html").read_bytes()
    one = run("--shard", "1/2")
    assert len((one / "predictions.1-of-2.jsonl").read_text().splitlines()) == 2


def test_pictures_can_be_left_out_and_the_log_be_shown(run, plain):
    output = run("--no-overlay", "--device", "cpu", "--verbose")
    found = sorted(path.name for path in output.iterdir())
    assert found == ["panoptic", "panoptic.json", "panoptic_coloured", "predictions.json"]
    assert same(output, plain)


def test_another_config_and_changes_to_it_reach_the_model(run, tmp_path):
    (tmp_path / "one.yaml").write_text(
        f'_BASE_: "{ROOT}/configs/rose_tiny.yaml"\n'
        f'MODEL: {{WEIGHTS: "{SHIPPED}"}}\nTEST: {{TOP_K: 1}}\n'
    )
    one = run(config=("--config-file", tmp_path / "one.yaml"))
    assert len(segments(one)) == PICTURES
    assert same(run(opts=("TEST.TOP_K", 1)), one)


def test_masks_are_refined_by_policy_count_and_words(run, plain, tmp_path):
    chosen = {
        ("--refine-policy", "lowest-score", "--refine-count", 1): PICTURES,
        ("--refine-policy", "uncertain-boundary", "--refine-count", 2): 2 * PICTURES,
        ("--instruction", "This mask is incomplete.", "--truth", plain / "predictions.json"): len(
            segments(plain)
        ),
    }
    for options, count in chosen.items():
        output = run("--refine", plain / "predictions.json", *options)
        with open(output / "changes.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count
        assert np.mean([float(row["iou_before_after"]) for row in rows]) > 0.3
        if "--truth" in options:  # which is what was refined
            assert {row["true_iou_before"] for row in rows} == {"1.0"}
            assert all(row["true_iou_after"] == row["iou_before_after"] for row in rows)
        if "lowest-score" in options:
            lowest = min(score for _, score, _ in segments(plain, 0))
            assert float(rows[0]["score_before"]) == pytest.approx(lowest, abs=1e-4)


def test_the_command_of_an_exported_models_card_runs_as_it_stands(
    demo, exported, pictures, monkeypatch
):
    card = (exported / "README.md").read_text(encoding="utf-8")
    (command,) = [line for line in card.splitlines() if line.startswith("python demo/demo.py ")]
    # Where the card's words are true: the folder beside `demo/` and a folder of photos.
    monkeypatch.chdir(exported.parent)
    shutil.copytree(pictures, "photos")
    _, script, *arguments = shlex.split(command)
    assert (ROOT / script).samefile(sys.modules["demo"].__file__)
    assert demo.main(arguments) == 0
    info = read(Path("output/demo"))["info"]
    assert info["weights_sha256"] == file_sha256(str(exported / "model.safetensors"))
    assert len(read(Path("output/demo"))["images"]) == PICTURES
