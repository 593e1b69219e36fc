import functools
import json
import multiprocessing
import os
import signal
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import psutil
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from rose_d2.files import FolderLock
from rose_d2.modeling.patch_analyzer import ROLES, STUFF_ROLE
from rose_d2.structures.category_names import CategoryNames

ROOT = Path(__file__).parents[2]


CONFIG = str(ROOT / "configs" / "rose_tiny.yaml")


class FakePredictor:
    """Finds a bright "dog" on dark "grass", and a "ghost" it is hardly sure of."""

    calls: list[dict]

    def __init__(self, cfg):
        FakePredictor.calls = []

    def make_input(self, image, **question):
        return image

    def predict_batch(self, images, **question):
        FakePredictor.calls.append({"sizes": [image.shape for image in images], **question})
        return [self._output(image) for image in images]

    def _output(self, image):
        bright = torch.from_numpy(image.mean(axis=2) > 127)
        masks = torch.stack([bright, ~bright, torch.ones_like(bright)])
        names, scores = ["dog", "grass", "ghost"], torch.tensor([0.9, 0.7, 0.1])
        found = Instances(
            tuple(bright.shape),
            pred_masks=masks,
            pred_boxes=Boxes(torch.zeros(3, 4)),
            scores=scores,
            pred_classes=torch.full((3,), -1),
            pred_category_names=CategoryNames(names),
            name_scores=torch.tensor([0.9, 0.8, 0.7]),
            pred_roles=torch.tensor([ROLES.index("small"), STUFF_ROLE, STUFF_ROLE]),
            pred_patches=torch.arange(3),
        )
        info = [
            {
                "id": i + 1,
                "category_id": -1,
                "isthing": i == 0,
                "category_name": names[i],
                "score": float(scores[i]),
                "name_score": 1.0,
            }
            for i in range(2)
        ]
        return {
            "instances": found,
            "panoptic_seg": (bright.int() + 2 * (~bright).int(), info),
            "ref_seg": bright,
            "ref_patch": 0,
            "ref_score": 0.9,
        }


@pytest.fixture
def fake(monkeypatch, demo):
    import folder_run

    monkeypatch.setattr(folder_run, "RosePredictor", FakePredictor)
    return FakePredictor


@pytest.fixture
def run(demo, fake, tmp_path):
    """Run the command on the fake model; inputs are relative to tmp_path."""
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")

    def call(*arguments, inputs=("in",), opts=()):
        paths = [str(tmp_path / entry) for entry in inputs]
        command = ["--config-file", CONFIG, "--input", *paths, "--output", str(tmp_path / "out")]
        return demo.main([*command, *arguments, "--opts", "MODEL.WEIGHTS", str(weights), *opts])

    return call


def picture(size=(12, 16), mode="RGB"):
    """Dark with a bright square in the upper left."""
    values = np.zeros(size, dtype=np.uint8)
    values[1:5, 2:8] = 255
    return Image.fromarray(values).convert(mode)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "b", "c"):
        picture().save(folder / f"{name}.png")
    return folder


def predictions(tmp_path):
    return json.loads((tmp_path / "out" / "predictions.json").read_text())


def overlays(tmp_path):
    return sorted(path.name for path in (tmp_path / "out" / "overlays").iterdir())


def test_help_teaches_by_examples(demo, capsys):
    with pytest.raises(SystemExit) as stop:
        demo.main(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for option in ("--refer", "--vocabulary", "--task", "--opts", "--confidence-threshold"):
        assert shown.count(option) >= 2, f"{option} is listed but not shown in an example"


def test_a_folder_gives_pictures_predictions_and_a_contact_sheet(run, folder, tmp_path, fake):
    assert run("--batch-size", "2") == 0
    assert [len(call["sizes"]) for call in fake.calls] == [2, 1]
    assert overlays(tmp_path) == ["a.jpg", "b.jpg", "c.jpg"]
    content = predictions(tmp_path)
    assert [Path(image["file_name"]).name for image in content["images"]] == [
        "a.png",
        "b.png",
        "c.png",
    ]
    assert [category["name"] for category in content["categories"]] == ["dog", "grass"]
    assert len(content["annotations"]) == 6
    with Image.open(tmp_path / "out" / "contact_sheet.jpg") as sheet:
        assert sheet.width > 900
    with Image.open(tmp_path / "out" / "panoptic" / "a.png") as png:
        ids = np.asarray(png).astype(int) @ [1, 256, 65536]
    for annotation in content["annotations"][:2]:
        mask = mask_util.decode(annotation["segmentation"]).astype(bool)
        assert (mask == (ids == annotation["segment_id"])).all()
    assert not list((tmp_path / "out").rglob("*partial*"))


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--task", "instance"], {"dog", "grass"}),
        (["--task", "instance", "--confidence-threshold", "0.8"], {"dog"}),
        (["--task", "instance", "--confidence-threshold", "0"], {"dog", "grass", "ghost"}),
        (["--task", "semantic", "--confidence-threshold", "0"], {"dog", "grass"}),
    ],
)
def test_tasks_and_threshold_decide_what_is_kept(run, folder, tmp_path, arguments, names):
    assert run(*arguments) == 0
    assert {a["category_name"] for a in predictions(tmp_path)["annotations"]} == names


def test_an_expression_and_a_vocabulary_reach_the_model(run, folder, tmp_path, fake):
    assert run("--refer", "the dog") == 0
    assert (fake.calls[0]["refer"], fake.calls[0]["task"]) == ("the dog", None)
    assert predictions(tmp_path)["info"]["task"] == "referring"
    assert run("--vocabulary", " dog, cat,,dog", "--overwrite") == 0
    assert fake.calls[0]["candidates"] == ["dog", "cat"]


def test_a_custom_dataset_gives_the_images_and_the_names(demo, folder, tmp_path, fake, capsys):
    categories = [{"id": 9, "name": "zebra"}, {"id": 2, "name": "dog"}]
    content = {"images": [], "annotations": [], "categories": categories}
    (tmp_path / "train.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("sky: stuff\ncar\n")
    output = ["--output", str(tmp_path / "out"), "--overwrite"]
    assert demo.main(["--custom-coco", str(folder), str(tmp_path / "train.json"), *output]) == 0
    assert len(fake.calls) == 3
    assert fake.calls[0]["candidates"] == ["dog", "zebra"]
    assert demo.main(["--custom-labels", str(folder), str(tmp_path / "classes.txt"), *output]) == 0
    assert fake.calls[0]["candidates"] == ["sky", "car"]
    assert demo.main(["--custom-coco", str(folder), str(tmp_path / "none.json"), *output]) == 2
    assert "none.json" in capsys.readouterr().err


def test_images_of_every_mode_and_size_are_done_at_their_size(run, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    picture(mode="L").save(folder / "grey.png")
    picture(mode="RGBA").save(folder / "rgba.png")
    picture(mode="P").save(folder / "palette.gif")
    picture(mode="1").save(folder / "bits.png")
    picture(mode="CMYK").save(folder / "print.jpg")
    Image.fromarray(np.asarray(picture(mode="L")).astype(np.uint16) * 257).save(folder / "deep.png")
    rotated = picture()
    exif = rotated.getexif()
    exif[0x0112] = 6  # the camera was turned by 90 degrees
    rotated.save(folder / "turned.jpg", exif=exif)
    for name, size in (("dot", (1, 1)), ("line", (1, 300)), ("column", (300, 1))):
        Image.new("RGB", size[::-1], "white").save(folder / f"{name}.png")
    assert run("--batch-size", "4") == 0
    content = predictions(tmp_path)
    sizes = {Path(i["file_name"]).stem: (i["height"], i["width"]) for i in content["images"]}
    assert len(sizes) == 10
    assert sizes["turned"] == (16, 12)
    assert sizes["deep"] == (12, 16)
    assert (sizes["dot"], sizes["line"], sizes["column"]) == ((1, 1), (1, 300), (300, 1))
    by_id = {image["id"]: image for image in content["images"]}
    dogs = {}
    for annotation in content["annotations"]:
        image = by_id[annotation["image_id"]]
        assert annotation["segmentation"]["size"] == [image["height"], image["width"]]
        if annotation["category_name"] == "dog":
            dogs[Path(image["file_name"]).stem] = annotation["bbox"]
    for name in ("grey", "rgba", "palette", "bits", "deep"):
        assert dogs[name] == [2, 1, 6, 4], name
    assert dogs["turned"][2:] == pytest.approx([4, 6], abs=2), "the square turned with the image"


def test_broken_files_are_reported_and_all_others_done(run, folder, tmp_path, capsys):
    whole = (folder / "a.png").read_bytes()
    big = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8))
    big.save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:900])
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").write_bytes(b"")
    (folder / "letter.jpg").write_text("Dear reader")
    (folder / "notes.txt").write_text("not an image")
    (folder / "scan").write_text("no suffix, so it may be one")
    assert run("--batch-size", "3") == 1
    assert overlays(tmp_path) == ["a.jpg", "b.jpg", "c.jpg", "whole.jpg"]
    assert len(predictions(tmp_path)["images"]) == 4
    reported = capsys.readouterr().err
    assert "5 images could not be done" in reported
    reasons = {"cut.jpg": "truncated", "cut.png": "truncated", "empty.png": "empty"}
    reasons |= {"letter.jpg": "not an image", "scan": "not an image"}
    assert "notes.txt" not in reported
    for name, reason in reasons.items():
        (line,) = [line for line in reported.splitlines() if name in line]
        assert reason in line


def test_an_image_the_model_fails_on_does_not_take_its_batch_along(
    run, folder, tmp_path, monkeypatch, capsys
):
    picture((13, 17)).save(folder / "b.png")
    works = FakePredictor.predict_batch

    def fails_on_b(self, images, **question):
        if any(image.shape == (13, 17, 3) for image in images):
            raise RuntimeError("out of memory")
        return works(self, images, **question)

    monkeypatch.setattr(FakePredictor, "predict_batch", fails_on_b)
    assert run("--batch-size", "3") == 1
    assert overlays(tmp_path) == ["a.jpg", "c.jpg"]
    reported = capsys.readouterr().err
    assert "b.png" in reported
    assert "out of memory" in reported


def test_a_second_run_skips_what_is_done(run, folder, tmp_path, fake, capsys):
    assert run() == 0
    before = predictions(tmp_path)
    picture().save(folder / "d.png")
    assert run() == 0
    assert sum(len(call["sizes"]) for call in fake.calls) == 1
    assert "3 were done before" in capsys.readouterr().out
    after = predictions(tmp_path)
    assert after["images"][:3] == before["images"]
    assert len(after["images"]) == 4
    fake.calls.clear()
    assert run() == 0
    assert fake.calls == [], "nothing to do"


def test_missing_pictures_are_redone_and_overwrite_redoes_all(run, folder, tmp_path, fake):
    assert run("--no-overlay") == 0
    assert not (tmp_path / "out" / "overlays").exists()
    assert run() == 0
    assert len(fake.calls) == 3, "the pictures were missing"
    (tmp_path / "out" / "panoptic" / "b.png").unlink()
    assert run() == 0
    assert len(fake.calls) == 1
    assert run("--overwrite") == 0
    assert len(fake.calls) == 3
    assert [image["id"] for image in predictions(tmp_path)["images"]] == [1, 2, 3]


def test_an_interrupted_run_keeps_its_work_and_is_continued(
    run, folder, tmp_path, fake, monkeypatch
):
    works = FakePredictor.predict_batch

    def stops_at_the_third(self, images, **question):
        if len(FakePredictor.calls) == 2:
            raise KeyboardInterrupt
        return works(self, images, **question)

    with monkeypatch.context() as patch:
        patch.setattr(FakePredictor, "predict_batch", stops_at_the_third)
        assert run() == 130
    assert len(predictions(tmp_path)["images"]) == 2
    assert run() == 0
    assert len(fake.calls) == 1
    assert len(predictions(tmp_path)["images"]) == 3


def test_predictions_are_on_disk_soon_after_their_batch(run, folder, tmp_path, monkeypatch):
    for name in "defg":
        picture().save(folder / f"{name}.png")
    works, seen = FakePredictor.predict_batch, []

    def looks(self, images, **question):
        lines = (tmp_path / "out" / "predictions.0-of-1.jsonl").read_text().splitlines()
        seen.append(len(lines) - 1)  # the first says what they are made with
        return works(self, images, **question)

    monkeypatch.setattr(FakePredictor, "predict_batch", looks)
    assert run() == 0
    assert all(batch - 3 <= written <= batch for batch, written in enumerate(seen))
    assert len(seen) == len(predictions(tmp_path)["images"]) == 7


def test_reading_and_drawing_are_elsewhere_and_only_a_little_off(
    run, folder, tmp_path, fake, monkeypatch
):
    import folder_run

    for name in "defgh":
        picture((14, 15)).save(folder / f"{name}.png")
    pids, ahead, threads = tmp_path / "pids", [], set()
    read, draw, works = folder_run.read_image, folder_run.FolderRun._draw, fake.predict_batch
    reads = []

    def reads_one(path, **settings):
        reads.append(path)
        threads.add(threading.current_thread().name)
        return read(path, **settings)

    def draws(self, image, segments):
        with open(pids, "a") as file:
            print(os.getpid(), file=file)
        return draw(self, image, segments)

    def predicts(self, images, **question):
        ahead.append(len(reads) - len(images) * len(ahead))
        return works(self, images, **question)

    monkeypatch.setattr(folder_run, "read_image", reads_one)
    monkeypatch.setattr(folder_run.FolderRun, "_draw", draws)
    monkeypatch.setattr(FakePredictor, "predict_batch", predicts)
    assert run("--batch-size", "2") == 0
    assert max(ahead) <= 2 + 2 + 1, "a batch, the next one, and the image that is just read"
    assert all("reading" in name for name in threads)
    (pid,) = set(pids.read_text().split())
    assert int(pid) not in (os.getpid(), os.getppid())
    assert multiprocessing.active_children() == []
    names = [Path(image["file_name"]).stem for image in predictions(tmp_path)["images"]]
    assert names == list("abcdefgh")


def test_one_batch_is_drawn_without_another_process(run, folder, fake, monkeypatch):
    import folder_run

    monkeypatch.setattr(folder_run, "_artist", None)  # which would fail
    assert run("--batch-size", "3") == 0


def test_images_are_drawn_all_the_same_when_the_drawing_process_is_killed(
    run, folder, tmp_path, fake, monkeypatch
):
    import folder_run

    draw, here = folder_run.FolderRun._draw, os.getpid()

    def is_killed(self, image, segments):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(self, image, segments)

    monkeypatch.setattr(folder_run.FolderRun, "_draw", is_killed)
    assert run() == 0
    assert overlays(tmp_path) == ["a.jpg", "b.jpg", "c.jpg"]


def _draw_for_a_moment(sender):
    import folder_run

    artist = folder_run._artist(None)
    sender.send(artist.submit(os.getpid).result())
    os._exit(0)  # as one that is killed


def test_the_drawing_process_ends_with_a_killed_run(demo):
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    killed = context.Process(target=_draw_for_a_moment, args=(sender,))
    killed.start()
    artist = psutil.Process(receiver.recv())
    killed.join()
    artist.wait(30)


def test_equal_names_do_not_overwrite_each_other(run, tmp_path):
    for name in ("x/dog.png", "y/dog.png", "y/dog.jpg", "y/DOG.bmp", "y/y_dog.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        picture().save(tmp_path / name)
    assert run(inputs=("x", "y")) == 0
    results = {i["file_name"]: i["result_name"] for i in predictions(tmp_path)["images"]}
    assert len(results) == len({name.casefold() for name in results.values()}) == 5
    assert len(overlays(tmp_path)) == 5
    assert run(inputs=("y", "x")) == 0
    assert {i["file_name"]: i["result_name"] for i in predictions(tmp_path)["images"]} == results


def test_globs_files_and_results_inside_the_input(run, folder, tmp_path):
    (folder / "deeper").mkdir()
    picture().save(folder / "deeper" / "d[1].png")
    assert run(inputs=("in/[ab].png", "in/a.png", "in/deeper/d[1].png")) == 0
    assert overlays(tmp_path) == ["a.jpg", "b.jpg", "d[1].jpg"]
    assert run(inputs=("**/*.*g",)) == 0
    names = [Path(i["file_name"]).name for i in predictions(tmp_path)["images"]]
    assert sorted(names) == ["a.png", "b.png", "c.png", "d[1].png"], "no overlay was segmented"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--refer", "the dog", "--task", "instance"], "--refer asks for one"),
        (["--refer", "the dog", "--vocabulary", "dog"], "no --vocabulary"),
        (["--refer", " "], "--refer is empty"),
        (["--vocabulary", ""], "--vocabulary is empty"),
        (["--vocabulary", " , "], "--vocabulary is empty"),
        (["--confidence-threshold", "1.5"], "not in 0 to 1"),
        (["--batch-size", "0"], "at least 1"),
        (["--config-file", "none.yaml"], "no config file 'none.yaml'"),
    ],
)
def test_contradictory_and_missing_options_are_one_sentence(
    run, folder, tmp_path, capsys, arguments, message
):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.WEIGHTS", "none.safetensors"], "none.safetensors"),
        (["MODEL.WEIGHTS", ""], "MODEL.WEIGHTS is empty"),
        (["MODEL.WEIGHT", "x"], "MODEL.WEIGHT"),
        (["TEST.TOP_K", "many"], "TEST.TOP_K"),
        (["TEST.TOP_K"], "pairs"),
    ],
)
def test_wrong_configs_and_missing_weights_are_one_sentence(
    run, folder, tmp_path, capsys, opts, message
):
    assert run(opts=opts) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (["none"], "does not exist"),
        (["in/*.tif"], "matches no file"),
        (["bare"], "no images"),
        (["texts"], "no images"),
        (["in", "none.png"], "does not exist"),
    ],
)
def test_no_images_is_one_sentence(run, folder, tmp_path, capsys, inputs, message):
    (tmp_path / "bare").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "notes.txt").write_text("nothing to see")
    assert run(inputs=inputs) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_results_of_other_settings_are_not_mixed_in(run, folder, tmp_path, capsys):
    assert run() == 0
    assert run("--task", "instance") == 2
    assert "--overwrite" in capsys.readouterr().err
    assert predictions(tmp_path)["info"]["task"] == "panoptic"
    assert run("--task", "instance", "--overwrite") == 0
    assert predictions(tmp_path)["info"]["task"] == "instance"


def test_shares_give_other_settings_up_and_not_each_other(run, folder, tmp_path):
    assert run() == 0
    for share in ("0/2", "1/2"):
        assert run("--task", "instance", "--shard", share) == 2
    for share in ("0/2", "1/2"):
        assert run("--task", "instance", "--shard", share, "--overwrite") == 0
    assert run("--task", "instance") == 0
    assert predictions(tmp_path)["info"]["task"] == "instance"
    assert len(predictions(tmp_path)["images"]) == 3


def test_paths_and_config_keys_need_no_option(demo, fake, folder, tmp_path, monkeypatch):
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)  # and any folder will do: the config is found by its name
    command = ["in/a.png", "--output", "out", "in/b.png", "MODEL.WEIGHTS", "weights.safetensors"]
    assert demo.main(["--task", "instance", *command, "TEST.TOP_K", "3"]) == 0
    assert overlays(tmp_path) == ["a.jpg", "b.jpg"]
    args = demo.parse_args(["a.png", "MODEL.X.JPG", "--device", "cuda:1", "TEST.TOP_K", "3"])
    assert (args.input, args.opts) == (["a.png"], ["MODEL.X.JPG", "TEST.TOP_K", "3"])
    assert demo._device(args) == ["MODEL.DEVICE", "cuda:1"]


def test_no_images_and_two_kinds_of_images_are_refused(demo, capsys):
    assert demo.main([]) == 2
    assert "name files, a folder or an address" in capsys.readouterr().err
    assert demo.main(["photos", "--custom-coco", "images", "names.json"]) == 2
    assert "leave other paths out" in capsys.readouterr().err


def test_the_version_is_that_of_the_package(demo, capsys):
    import rose_d2

    assert demo.main(["--version"]) == 0
    assert capsys.readouterr().out == f"rose_d2 {rose_d2.__version__}\n"


def test_an_address_is_fetched_once(run, folder, tmp_path, demo, monkeypatch):
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        for _ in range(2):
            assert run(address) == 0
        server.shutdown()
    assert len(predictions(tmp_path)["images"]) == 4
    assert run(address) == 0, "it is there already"


def test_coloured_copies_and_a_gallery_to_search(run, folder, tmp_path):
    assert run() == 0
    with Image.open(tmp_path / "out" / "panoptic_coloured" / "a.png") as png:
        colours = np.asarray(png)
    assert (colours[2:4, 3:7] == colours[2, 3]).all() and colours[2, 3].any()
    assert (colours[2, 3] != colours[10, 12]).any()
    page = (tmp_path / "out" / "gallery.html").read_text()
    assert page.count("<figure data-words=") == 3 and 'src="overlays/a.jpg"' in page
    assert "dog\ngrass" in page and "https://" not in page


def test_what_is_no_image_costs_no_other_one(run, folder, tmp_path, capsys):
    """A pipe, a link in a circle, a name that is not UTF-8, one of 255 bytes and one column."""
    os.mkfifo(folder / "pipe.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    picture().save(folder / ("x" * 251 + ".png"))
    picture((3000, 1)).save(folder / "thin.png")
    picture().save(tmp_path / "latin.png")
    os.rename(tmp_path / "latin.png", os.fsencode(folder) + b"/caf\xe9.png")
    assert run() == 1
    said = capsys.readouterr().err
    assert "2 images could not be done" in said and "pipe.png" in said and "circle.png" in said
    assert len(predictions(tmp_path)["images"]) == 6
    assert len(overlays(tmp_path)) == 6
    assert run() == 1
    assert "0 images segmented, 6 were done before" in capsys.readouterr().out


def test_results_stay_in_the_output_folder(run, folder, tmp_path, capsys):
    assert run() == 0
    path = tmp_path / "out" / "predictions.json"
    sound = path.read_text()
    for name in ("../../escaped", str(tmp_path / "escaped"), "..", 7):
        content = json.loads(sound)
        content["images"][0]["result_name"] = name
        path.write_text(json.dumps(content))
        assert run() == 2
        assert "no plain file name" in capsys.readouterr().err
    assert not list(tmp_path.glob("escaped*"))
    assert run("--overwrite") == 0


def test_shares_give_what_one_run_gives(run, folder, tmp_path, fake, capsys):
    for name in ("deep/a.png", "d.png", "e.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture().save(folder / name)
    (folder / "f.png").write_bytes(b"")
    inputs = ("in/**/*.png",)
    assert run(inputs=inputs) == 1
    alone = {
        file.relative_to(tmp_path / "out"): file.read_bytes()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert len(alone) == 4 + 3 * 6
    (tmp_path / "out").rename(tmp_path / "alone")
    statuses = [run("--shard", f"{share}/3", inputs=inputs) for share in (2, 0, 1)]
    assert statuses == [0, 1, 0], "the broken image is of the first share"
    assert "the same command without --shard joins them" in capsys.readouterr().out
    assert not list((tmp_path / "out").glob("*.json"))
    fake.calls.clear()
    assert run("--shard", "2/3", inputs=inputs) == 0
    assert run(inputs=inputs) == 1
    assert fake.calls == [], "nothing is done twice"
    assert "0 images segmented, 6 were done before" in capsys.readouterr().out
    joined = {
        file.relative_to(tmp_path / "out"): file.read_bytes()
        for file in (tmp_path / "out").rglob("*")
        if file.is_file()
    }
    assert joined == alone


def test_shares_of_other_lists_do_not_keep_pictures_of_each_other(run, folder, tmp_path, fake):
    assert run("--shard", "0/2", inputs=("in/a.png",)) == 0
    picture((12, 20)).save(folder / "a.bmp")
    assert run("--shard", "1/2", inputs=("in/a.png", "in/a.bmp")) == 0
    lines = (tmp_path / "out" / "predictions.1-of-2.jsonl").read_text()
    assert '"result_name": "in_a"' in lines, "the first share has a.jpg"
    (tmp_path / "out" / "predictions.1-of-2.jsonl").write_text(lines.replace("in_a", "A"))
    assert run() == 0
    assert sorted(i["result_name"] for i in predictions(tmp_path)["images"]) == [
        "a", "b", "c", "in_a",
    ]  # fmt: skip


def test_a_share_is_refused_what_it_cannot_have(run, folder, tmp_path, capsys):
    for share in ("4/4", "1", "-1/2", "a/b"):
        with pytest.raises(SystemExit) as stop:
            run("--shard", share)
        assert stop.value.code == 2
    assert "the first of four is 0/4" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("--shard", "0/2", "--num-gpus", "2")
    assert run("--num-gpus", "0") == 2
    capsys.readouterr()
    assert run("--num-gpus", "99") == 2
    said = capsys.readouterr().err
    assert "--num-gpus 99: PyTorch finds" in said and said.count("\n") == 1
    assert run("--num-gpus", "2", "--device", "cuda:1") == 2
    assert "leave out cuda:1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_names_are_relative_to_the_folder_of_the_images(run, folder, tmp_path, monkeypatch):
    (folder / "deep").mkdir()
    picture().save(folder / "deep" / "d.png")
    assert run(inputs=("in", "in/deep/*")) == 0
    content = predictions(tmp_path)
    names = [image["file_name"] for image in content["images"]]
    assert names == ["a.png", "b.png", "c.png", "deep/d.png"]
    panoptic = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert [image["file_name"] for image in panoptic["images"]] == names
    assert {a["file_name"] for a in panoptic["annotations"]} == {
        path.name for path in (tmp_path / "out" / "panoptic").iterdir()
    }
    # Of what else comes into the same results, names lead there from the first folder.
    (tmp_path / "more").mkdir()
    picture().save(tmp_path / "more" / "a.png")
    assert run(inputs=("more",)) == 0
    assert predictions(tmp_path)["images"][-1]["file_name"] == "../more/a.png"
    folder.rename(tmp_path / "gone")
    assert run(inputs=("more",)) == 2


def test_results_of_earlier_versions_are_continued(run, folder, tmp_path, fake, capsys):
    assert run(inputs=("in/[ab].png",)) == 0
    path = tmp_path / "out" / "predictions.json"
    content = predictions(tmp_path)
    del content["info"]["image_folder"]
    for image in content["images"]:
        image["file_name"] = str(folder / image["file_name"])  # as they were
    path.write_text(json.dumps(content))
    (tmp_path / "out" / "panoptic.json").unlink()
    assert run() == 0
    assert len(fake.calls) == 1
    after = predictions(tmp_path)
    assert after["images"][:2] == content["images"]
    assert after["images"][2]["file_name"] == str(folder / "c.png")
    assert (tmp_path / "out" / "panoptic.json").is_file()


def _hold(folder, held, part=None):
    lock = FolderLock(folder, purpose="--output", part=part)  # until it is forgotten
    held.set()
    time.sleep(60)
    lock.release()


def test_two_runs_do_not_share_an_output_folder(run, folder, tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", held))
    other.start()
    assert held.wait(30)
    assert run() == 2
    assert f"in use by process {other.pid}" in capsys.readouterr().err
    other.kill()
    other.join()
    assert run() == 0


def test_shares_run_at_the_same_time_and_keep_others_away(run, folder, tmp_path, capsys):
    context = multiprocessing.get_context("fork")
    held = context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "out", held, "0-of-2"))
    other.start()
    assert held.wait(30)
    assert run() == 2, "a run of everything would join what is being written"
    assert run("--shard", "0/2") == 2
    assert f"in use by process {other.pid}" in capsys.readouterr().err
    assert run("--shard", "1/2") == 0
    assert run() == 2, "the other share goes on"
    other.kill()
    other.join()
    assert run() == 0
    assert len(predictions(tmp_path)["images"]) == 3
    assert not list((tmp_path / "out").glob(".lock*"))


def test_the_images_are_those_that_the_annotation_file_lists(demo, fake, folder, tmp_path):
    (folder / "deep").mkdir()
    picture().save(folder / "deep" / "d.png")
    content = {
        "images": [{"id": 1, "file_name": "deep\\d.png"}, {"id": 2, "file_name": "a.png"}],
        "annotations": [],
        "categories": [{"id": 1, "name": "dog"}],
    }
    (folder / "_annotations.json").write_text(json.dumps(content))
    output = ["--output", str(tmp_path / "out")]
    assert (
        demo.main(["--custom-coco", str(folder), str(folder / "_annotations.json"), *output]) == 0
    )
    assert overlays(tmp_path) == ["a.jpg", "d.jpg"]


def test_any_existing_file_is_a_list_of_names(demo, tmp_path):
    (tmp_path / "coco.names").write_text("dog\ncat\n")
    assert demo.read_vocabulary(str(tmp_path / "coco.names")) == ["dog", "cat"]
