"""`demo.py --refine`: on a stand-in for the session, and once on a small random model."""

import csv
import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from rose_d2.predictor.predictor import RosePredictor
from rose_d2.predictor.session_state import SessionState

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs" / "rose_tiny.yaml")
SIZE = (12, 16)


class FakeSession:
    """Cuts the leftmost column off a mask, and turns "cat" into "dog" if the name is wrong."""

    asked: list[tuple[str, str | None]] = []

    def __init__(self):
        self.state = SessionState("key")
        self.add = lambda *segments: self.state.add(segments)

    def refine(self, segment, text):
        FakeSession.asked.append((segment.category_name, text))
        if segment.category_name == "bomb":
            raise RuntimeError("out of memory")
        mask = segment.mask.copy()
        mask[:, np.flatnonzero(mask.any(axis=0))[0]] = False
        name = "dog" if text and "name" in text else segment.category_name or "thing"
        return [dataclasses.replace(segment, mask=mask, category_name=name, score=0.9)]


class FakePredictor:
    def __init__(self, cfg):
        FakeSession.asked = []

    def open(self, image):
        return FakeSession()


@pytest.fixture
def demo(demo, monkeypatch):
    import folder_run

    monkeypatch.setattr(folder_run, "RosePredictor", FakePredictor)
    return demo


@pytest.fixture
def run(demo, tmp_path):
    """Run the command on the images a, b and c in tmp_path."""
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", SIZE[::-1], "gray").save(folder / f"{name}.png")
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")

    def call(*arguments):
        command = ["--config-file", CONFIG, "--input", str(folder)]
        command += ["--output", str(tmp_path / "out"), *map(str, arguments)]
        return demo.main([*command, "--opts", "MODEL.WEIGHTS", str(weights)])

    return call


def square(left, top=2, side=6):
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[top : top + side, left : left + side] = 1
    return mask


def rle(mask):
    code = mask_util.encode(np.asfortranarray(mask))
    return {"size": list(code["size"]), "counts": code["counts"].decode("ascii")}


def coco(images=("a", "b", "c"), names=("dog", "cat"), scores=(0.8, 0.3)):
    """Two segments an image, as demo.py writes them."""
    return {
        "images": [{"id": i, "file_name": f"{name}.png"} for i, name in enumerate(images)],
        "categories": [{"id": 5, "name": names[0]}, {"id": 6, "name": names[1]}],
        "annotations": [
            {
                "image_id": i,
                "category_id": 5 + k,
                "segmentation": rle(square(1 + 8 * k)),
                "score": scores[k],
            }
            for i in range(len(images))
            for k in range(2)
        ],
    }


@pytest.fixture
def masks(tmp_path):
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(coco()))
    return path


def predictions(tmp_path):
    return json.loads((tmp_path / "out" / "predictions.json").read_text())


def changes(tmp_path):
    with open(tmp_path / "out" / "changes.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_least_sure_segments_are_refined_and_the_others_kept(run, masks, tmp_path, capsys):
    assert run("--refine", masks, "--refine-count", 1) == 0
    assert FakeSession.asked == [("cat", None)] * 3
    content = predictions(tmp_path)
    assert len(content["annotations"]) == 6
    dog, cat = content["annotations"][:2]
    assert (mask_util.decode(dog["segmentation"]) == square(1)).all()
    assert (dog["category_name"], dog["score"]) == ("dog", 0.8)
    assert cat["bbox"] == [10, 2, 5, 6], "its leftmost column is gone"
    assert cat["score"] == 0.9
    rows = changes(tmp_path)
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.png", "c.png"]
    assert float(rows[0]["iou_before_after"]) == pytest.approx(30 / 36, abs=1e-5)
    assert (rows[0]["segment_id"], rows[0]["name_after"]) == ("2", "cat")
    assert content["images"][0]["refinements"][0]["score_before"] == 0.3
    out = capsys.readouterr().out
    assert "3 segments refined" in out
    assert "mean 0.833" in out


def test_before_and_after_stand_side_by_side(run, masks, tmp_path):
    assert run("--refine", masks) == 0
    names = sorted(path.name for path in (tmp_path / "out" / "before_after").iterdir())
    assert names == ["a.jpg", "b.jpg", "c.jpg"]
    with Image.open(tmp_path / "out" / "before_after" / "a.jpg") as picture:
        assert picture.width > 900
        left, right = (np.asarray(picture)[:, half] for half in (slice(0, 480), slice(-480, None)))
    assert left.shape == right.shape
    assert (left != right).any()
    assert (tmp_path / "out" / "contact_sheet.jpg").is_file()


def test_words_are_asked_of_every_segment(run, masks, tmp_path, capsys):
    assert run("--refine", masks, "--instruction", "the name is wrong", "--no-overlay") == 0
    assert FakeSession.asked[:2] == [("dog", "the name is wrong"), ("cat", "the name is wrong")]
    assert {row["name_after"] for row in changes(tmp_path)} == {"dog"}
    out = capsys.readouterr().out
    assert "3 got another name" in out
    assert "segment 2: 'cat' -> 'dog'" in out
    assert not (tmp_path / "out" / "before_after").exists()


def test_the_roughest_outline_is_chosen(run, masks, tmp_path):
    content = coco()
    frayed = square(9)
    frayed[3:8:2, 9:15:2] = 0
    content["annotations"][0]["segmentation"] = rle(frayed)
    masks.write_text(json.dumps(content))
    policy = ["--refine-policy", "uncertain-boundary", "--refine-count", 1]
    assert run("--refine", masks, *policy) == 0
    assert FakeSession.asked[0][0] == "dog"


def test_label_pngs_give_nameless_segments(run, tmp_path):
    folder = tmp_path / "labels"
    folder.mkdir()
    labels = square(1) * 7 + square(9) * 3
    labels[0] = 255
    Image.fromarray(labels).save(folder / "a.png")
    Image.fromarray(square(1) * 255).save(folder / "b.png")
    panoptic = np.stack([square(1) * 4, square(9), square(9) * 0], axis=-1)
    Image.fromarray(panoptic).save(folder / "c.png")
    assert run("--refine", folder, "--refine-policy", "all") == 0
    assert [len(i["refinements"]) for i in predictions(tmp_path)["images"]] == [2, 1, 2]
    assert {(row["name_before"], row["name_after"]) for row in changes(tmp_path)} == {("", "thing")}


@pytest.mark.parametrize("form", ["file_name", "number", "polygon", "uncompressed"])
def test_other_systems_forms_are_understood(run, tmp_path, form):
    for name in ("a", "b", "c"):
        (tmp_path / "in" / f"{name}.png").rename(tmp_path / "in" / f"{ord(name):012d}.png")
    results = [{"image_id": ord(n), "segmentation": rle(square(1)), "score": 0.5} for n in "abc"]
    for entry in results:
        if form == "file_name":
            entry["file_name"] = f"elsewhere/{entry.pop('image_id'):012d}.png"
        elif form == "polygon":
            entry["segmentation"] = [[1, 2, 7, 2, 7, 8, 1, 8]]
        elif form == "uncompressed":
            entry["segmentation"] = {"size": list(SIZE), "counts": [14, 6, 6, 6, 160]}
    (tmp_path / "masks.json").write_text(json.dumps(results))
    assert run("--refine", tmp_path / "masks.json") == 0
    assert len(changes(tmp_path)) == 3
    assert {row["score_before"] for row in changes(tmp_path)} == {"0.5"}


def test_bad_files_are_reported_and_the_others_done(run, masks, tmp_path, capsys):
    content = coco(images=("a", "b"))
    content["annotations"][2]["segmentation"] = rle(square(1).T.copy())
    masks.write_text(json.dumps(content))
    (tmp_path / "in" / "d.png").write_bytes(b"")
    assert run("--refine", masks) == 1
    assert [Path(i["file_name"]).name for i in predictions(tmp_path)["images"]] == ["a.png"]
    reported = capsys.readouterr().err
    assert "3 images could not be done" in reported
    for name, reason in (("b.png", "does not fit"), ("c.png", "no image of this name")):
        (line,) = [line for line in reported.splitlines() if f"{name}'" in line]
        assert reason in line
    assert "empty" in reported


def test_an_image_the_model_fails_on_is_reported(run, masks, tmp_path, capsys):
    content = coco()
    content["annotations"][2]["category_name"] = "bomb"
    masks.write_text(json.dumps(content))
    assert run("--refine", masks) == 1
    assert len(predictions(tmp_path)["images"]) == 2
    assert "out of memory" in capsys.readouterr().err


def test_images_without_masks_are_done_with_nothing_to_refine(run, masks, tmp_path, capsys):
    masks.write_text(json.dumps(coco() | {"annotations": []}))
    assert run("--refine", masks) == 0
    assert len(predictions(tmp_path)["images"]) == 3
    assert changes(tmp_path) == []
    assert "nothing was refined" in capsys.readouterr().out


def test_a_second_run_skips_what_is_done_and_refuses_other_settings(run, masks, tmp_path, capsys):
    assert run("--refine", masks) == 0
    FakeSession.asked = []
    (tmp_path / "out" / "before_after" / "b.jpg").unlink()
    assert run("--refine", masks) == 0
    assert len(FakeSession.asked) == 2, "only b, whose picture was missing"
    assert len(changes(tmp_path)) == 6
    assert run("--refine", masks, "--instruction", "better") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run("--refine", masks, "--instruction", "better", "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--instruction", "better"], "needs --refine"),
        (["--refine-count", "2"], "needs --refine"),
        (["--refine", "none.json"], "does not exist"),
        (["--refine", "{masks}", "--refer", "the dog"], "takes no --refer"),
        (["--refine", "{masks}", "--task", "instance"], "takes no --task"),
        (["--refine", "{masks}", "--vocabulary", "dog"], "takes no --vocabulary"),
        (["--refine", "{masks}", "--instruction", " "], "--instruction is empty"),
        (["--refine", "{masks}", "--refine-count", "0"], "at least 1"),
        (["--refine", "{masks}", "--instruction", "x", "--refine-count", "1"], "takes them all"),
        (["--refine", "{masks}", "--instruction", "an <image>"], "only the model uses"),
        (["--refine", "{empty}"], "without label PNGs"),
        (["--refine", "{broken}"], "not a COCO file"),
    ],
)
def test_wrong_options_are_one_sentence(run, masks, tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.json").write_text('[{"score": 1}]')
    paths = {"masks": masks, "empty": tmp_path / "empty", "broken": tmp_path / "broken.json"}
    assert run(*(argument.format(**paths) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_masks_are_not_overwritten(run, masks, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    masks.rename(tmp_path / "out" / "predictions.json")
    assert run("--refine", tmp_path / "out" / "predictions.json") == 2
    assert "give another one" in capsys.readouterr().err


def test_help_teaches_it_by_examples(demo, capsys):
    with pytest.raises(SystemExit):
        demo.main(["--help"])
    shown = capsys.readouterr().out
    for option in ("--refine ", "--instruction", "--refine-policy", "--refine-count"):
        assert shown.count(option) >= 2, f"{option} is listed but not shown in an example"


def test_a_real_session_runs_through(run, masks, tmp_path, monkeypatch, tiny_cfg, tiny_model):
    import folder_run

    monkeypatch.setattr(
        folder_run, "RosePredictor", lambda cfg: RosePredictor(tiny_cfg, model=tiny_model)
    )
    assert run("--refine", masks, "--instruction", "The name is wrong.") == 0
    rows = changes(tmp_path)
    assert [row["name_before"] for row in rows] == ["dog", "cat"] * 3
    assert not {"", "dog", "cat"} & {row["name_after"] for row in rows}, "the model names at random"


def _run_with(run, tmp_path, **changes):
    content = coco()
    content["annotations"][0] |= changes
    (tmp_path / "masks.json").write_text(json.dumps(content))
    return run("--refine", tmp_path / "masks.json", "--no-overlay")


def test_boxes_without_masks_are_left_out_and_a_score_may_be_null(run, tmp_path, capsys):
    assert _run_with(run, tmp_path, segmentation=[], score=None) == 0
    assert "1 objects of " in capsys.readouterr().out
    assert len(predictions(tmp_path)["annotations"]) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "high"}, "the score 'high'"),
        ({"name_score": [1]}, "the name_score"),
        ({"segmentation": [[0, 0, 1e9, 0, 1, 1]]}, "1e\\+09 pixels"),
        ({"segmentation": {"size": [12, 16], "counts": [-5, 197]}}, "pixels in all"),
    ],
)
def test_a_bad_mask_costs_its_image_alone(run, tmp_path, capsys, changes, message):
    assert _run_with(run, tmp_path, **changes) == 1
    assert re.search(message, capsys.readouterr().err)
    assert len(predictions(tmp_path)["images"]) == 2


def test_ids_as_text_are_the_same_ids(run, tmp_path):
    content = coco()
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
    (tmp_path / "masks.json").write_text(json.dumps(content))
    assert run("--refine", tmp_path / "masks.json", "--no-overlay") == 0
    assert len(predictions(tmp_path)["annotations"]) == 6


def test_annotations_of_other_images_are_refused(run, tmp_path, capsys):
    content = coco()
    for annotation in content["annotations"]:
        annotation["image_id"] += 100
    (tmp_path / "masks.json").write_text(json.dumps(content))
    assert run("--refine", tmp_path / "masks.json") == 2
    assert "none of its 6 annotations belongs to one of its 3 images" in capsys.readouterr().err
