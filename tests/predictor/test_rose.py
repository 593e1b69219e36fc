import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from hub_stand_in import COMMIT, hub_stand_in
from PIL import Image

import rose_d2
from rose_d2.checkpoint.weights import save_weights
from rose_d2.predictor.results import Results
from rose_d2.predictor.rose import Rose
from rose_d2.synthetic.clipart import write_sample_images


@pytest.fixture(scope="module")
def rose():
    return Rose.from_pretrained("tiny", device="cpu")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    write_sample_images(folder, 2, 5)
    return folder


@pytest.fixture(scope="module")
def expected(rose, pictures):
    """Results of the two pictures, one by one."""
    return [rose(file) for file in sorted(pictures.iterdir())]


def same(found, expected):
    return found.names == expected.names and (found.masks == expected.masks).all()


def test_the_package_has_the_one_line():
    assert rose_d2.Rose is Rose and rose_d2.Results is Results
    with pytest.raises(AttributeError, match="Rosé"):
        getattr(rose_d2, "Rosé")  # noqa: B009


@pytest.mark.slow
def test_every_kind_of_source_gives_the_same(rose, pictures, expected):
    first = sorted(pictures.iterdir())[0]
    assert len(expected[0]) > 2 and expected[0].path == str(first)
    with Image.open(first) as picture:
        assert same(rose(picture), expected[0])
        array = np.asarray(picture.convert("RGB"))
    found = rose(array)
    assert same(found, expected[0]) and found.path is None
    found, missing = rose([str(first), array])
    assert same(found, expected[0]) and same(missing, expected[0])
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(pictures))
    handler.log_message = lambda *arguments: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{first.name}"
        found = rose(url)
        with pytest.raises(ValueError, match="could not be fetched"):
            rose(url + "x")
        server.shutdown()
    assert same(found, expected[0]) and found.path == url


def test_a_folder_is_read_as_it_is_needed_and_bad_files_are_passed_over(
    rose, pictures, expected, tmp_path, caplog
):
    for file in pictures.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "aaa.jpg").write_bytes(b"no picture")
    (tmp_path / "notes.txt").write_text("not asked for")
    stream = rose(tmp_path, batch_size=2)
    assert not isinstance(stream, list)
    found = list(stream)
    assert [Path(results.path).name for results in found] == [
        Path(results.path).name for results in expected
    ]
    assert all(results.names == one.names for results, one in zip(found, expected))
    assert "aaa.jpg" in caplog.text and "notes" not in caplog.text
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="no images in the folder"):
        rose(empty)


@pytest.mark.slow
def test_questions(rose, expected):
    image = expected[0].image
    name = next(segment.category_name for segment in expected[0] if segment.is_thing)
    asked = rose(image, refer=f"the {name}")
    assert asked.task == "referring" and len(asked) == 1 and asked.expression == f"the {name}"
    assert asked.plot().ndim == 3
    chosen = rose(image, vocabulary=f"{name}, zebra", task="instance")
    assert set(chosen.names) <= {name, "zebra"}
    in_box = rose(image, boxes=[expected[0].boxes[0], (0, 0, 20, 20)])
    assert len(in_box) == 2 and in_box.task == "region" and all(in_box.names)
    assert not rose.open(image).segments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"boxes": [(0, 0, 1, 1)], "refer": "the dog"}, "without task, refer or vocabulary"),
        ({"task": "boxes"}, "semantic, instance, panoptic"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_contradictions_are_refused_at_once(rose, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        rose(tmp_path, **options)


def test_what_is_no_image_is_refused(rose, tmp_path):
    with pytest.raises(ValueError, match="Got int where an image is needed"):
        rose(3)
    with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
        rose("nowhere.jpg")


def test_a_threshold_reaches_the_model(rose, expected):
    sure = Rose.from_pretrained("tiny", device="cpu", min_score=0.9)(expected[0].image)
    assert 0 < len(sure) < len(expected[0]) and sure.scores.min() >= 0.9
    with pytest.raises(ValueError, match="not in 0 to 1"):
        Rose.from_pretrained(min_score=2)


def test_a_training_folder_means_its_newest_checkpoint(tiny_cfg, tiny_model, tmp_path):
    tiny_cfg.MODEL.DEVICE = "cpu"
    (tmp_path / "config.yaml").write_text(tiny_cfg.dump())
    (tmp_path / "last_checkpoint").write_text("model_final")
    (tmp_path / "model_final").mkdir()
    save_weights(tiny_model, str(tmp_path / "model_final" / "model.safetensors"))
    for folder in (tmp_path, tmp_path / "model_final"):
        assert Rose.from_pretrained(folder, device="cpu").device.type == "cpu"
    deep = tmp_path / "empty" / "deep"
    deep.mkdir(parents=True)
    with pytest.raises(ValueError, match="has no config.yaml"):
        Rose.from_pretrained(deep)
    with pytest.raises(ValueError, match="There is no model 'huge'"):
        Rose.from_pretrained("huge")


@pytest.mark.slow
def test_a_model_goes_to_the_hub_and_comes_back(rose, expected, tmp_path, monkeypatch):
    cache = {"cache_dir": tmp_path / "cache", "token": "hf_secret"}
    with hub_stand_in() as hub:
        with monkeypatch.context() as patch:
            patch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
            commit = rose.push_to_hub("me/clip-art", token="hf_secret")
        assert commit.endswith(f"me/clip-art/commit/{COMMIT}")
        assert {"README.md", "config.yaml", "model.safetensors", "sam.pth"} <= set(hub.files)
        again = Rose.from_pretrained("me/clip-art", device="cpu", endpoint=hub.url, **cache)
    assert same(again(expected[0].image), expected[0])
    offline = Rose.from_pretrained("me/clip-art", local_files_only=True, **cache)
    assert offline.cfg.MODEL.WEIGHTS == again.cfg.MODEL.WEIGHTS
