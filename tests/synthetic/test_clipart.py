import json
import logging
import pickle

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from rose_d2.data.datasets.clipart import HELD_OUT_NAMES
from rose_d2.synthetic import clipart as writer
from rose_d2.synthetic.clipart import (
    BenchmarkSettings,
    compose_sample,
    compose_split_scene,
    write_sample_images,
)

SETTINGS = BenchmarkSettings(3, {"train": 20, "val": 3, "val_unseen": 2})
TINY = BenchmarkSettings(3, {"train": 1, "val": 1, "val_unseen": 1})


def test_settings_refuse_what_cannot_be_made():
    sizes = {"train": 1, "val": 1, "val_unseen": 1}
    with pytest.raises(ValueError, match="seed is -1"):
        BenchmarkSettings(-1, sizes)
    with pytest.raises(ValueError, match=r"\['train'\].*val_unseen"):
        BenchmarkSettings(0, {"train": 1})
    with pytest.raises(ValueError, match="900000 scenes asked for split train"):
        BenchmarkSettings(0, sizes | {"train": 900_000})


def test_only_val_unseen_shows_held_out_names():
    for split in ("train", "val", "val_unseen"):
        for number in range(8):
            scene, _ = compose_split_scene(0, split, number)
            shown = {thing.name for thing in scene.objects} & set(HELD_OUT_NAMES)
            assert bool(shown) == (split == "val_unseen")


def test_splits_and_numbers_give_different_scenes():
    boxes = [
        tuple(thing.box for thing in compose_split_scene(0, split, number)[0].objects)
        for split in ("train", "val")
        for number in (0, 1)
    ]
    assert len(set(boxes)) == 4


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "clipart"
    writer.write_benchmark(SETTINGS, folder)
    return folder


def _files(folder):
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def test_two_workers_write_the_same_bytes_as_one(benchmark, tmp_path):
    writer.write_benchmark(SETTINGS, tmp_path / "clipart", num_workers=2)
    one, two = _files(benchmark), _files(tmp_path / "clipart")
    assert len(one) == 25 * 3 + 6 + 2 + 2
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []


def test_another_seed_gives_other_scenes(tmp_path):
    other = BenchmarkSettings(4, TINY.num_scenes)
    writer.write_benchmark(TINY, tmp_path / "a" / "clipart")
    writer.write_benchmark(other, tmp_path / "b" / "clipart")
    first, second = _files(tmp_path / "a" / "clipart"), _files(tmp_path / "b" / "clipart")
    assert first["images/train/000001.jpg"] != second["images/train/000001.jpg"]


@pytest.mark.parametrize("split", ["train", "val", "val_unseen"])
def test_all_annotations_of_a_split_agree_pixel_by_pixel(benchmark, split):
    instances = json.loads((benchmark / f"annotations/instances_{split}.json").read_text())
    panoptic = json.loads((benchmark / f"annotations/panoptic_{split}.json").read_text())
    assert instances["images"] == panoptic["images"]
    for image, segments in zip(panoptic["images"], panoptic["annotations"], strict=True):
        picture = Image.open(benchmark / "images" / split / image["file_name"])
        assert picture.size == (image["width"], image["height"])
        png = f"{image['id']:06d}.png"
        labels = np.asarray(Image.open(benchmark / "sem_seg" / split / png)).astype(int)
        colors = np.asarray(Image.open(benchmark / f"annotations/panoptic_{split}" / png))
        ids = colors.astype(int) @ [1, 256, 65536]
        assert set(np.unique(ids)) == {s["id"] for s in segments["segments_info"]}
        for segment in segments["segments_info"]:
            assert (labels[ids == segment["id"]] == segment["category_id"] - 1).all()
        for annotation in instances["annotations"]:
            if annotation["image_id"] == image["id"]:
                mask = mask_util.decode(annotation["segmentation"]).astype(bool)
                assert len(np.unique(ids[mask])) == 1
                assert annotation["area"] == mask.sum() == (ids == ids[mask][0]).sum()


def test_references_point_at_annotations_of_their_image(benchmark):
    instances = json.loads((benchmark / "refer/instances.json").read_text())
    references = pickle.loads((benchmark / "refer/refs(unc).p").read_bytes())
    annotations = {a["id"]: a for a in instances["annotations"]}
    images = {image["id"]: image for image in instances["images"]}
    assert len(images) == 25
    for reference in references:
        annotation = annotations[reference["ann_id"]]
        image = images[reference["image_id"]]
        assert annotation["image_id"] == reference["image_id"]
        assert annotation["category_id"] == reference["category_id"]
        assert image["file_name"] == reference["file_name"]
        assert image["file_name"].startswith(f"{reference['split']}/")
        assert (benchmark / "images" / image["file_name"]).is_file()


def test_meta_and_license_are_written(benchmark):
    meta = json.loads((benchmark / "meta.json").read_text())
    assert meta["seed"] == 3
    assert meta["num_scenes"] == SETTINGS.num_scenes
    assert meta["counts"]["val"]["images"] == 3
    assert "CC BY-SA 4.0" in (benchmark / "LICENSE.txt").read_text()


def test_a_finished_folder_is_left_alone(tmp_path, caplog):
    folder = tmp_path / "clipart"
    first = writer.write_benchmark(TINY, folder)
    marker = folder / "images" / "train" / "000001.jpg"
    written = marker.stat().st_mtime_ns
    with caplog.at_level(logging.INFO, logger=writer.__name__):
        assert writer.write_benchmark(TINY, folder) == first
    assert marker.stat().st_mtime_ns == written
    assert "nothing to do" in caplog.text


def test_other_settings_need_permission_to_overwrite(tmp_path):
    folder = tmp_path / "clipart"
    writer.write_benchmark(TINY, folder)
    other = BenchmarkSettings(5, TINY.num_scenes)
    with pytest.raises(FileExistsError, match="seed 3.*--overwrite"):
        writer.write_benchmark(other, folder)
    assert writer.read_meta(folder)["seed"] == 3
    writer.write_benchmark(other, folder, overwrite=True)
    assert writer.read_meta(folder)["seed"] == 5
    assert [path.name for path in tmp_path.iterdir()] == ["clipart"]


def test_a_foreign_folder_is_not_touched(tmp_path):
    (tmp_path / "clipart").mkdir()
    (tmp_path / "clipart" / "thesis.txt").write_text("precious")
    with pytest.raises(FileExistsError, match="not a finished clip-art benchmark"):
        writer.write_benchmark(TINY, tmp_path / "clipart")
    assert (tmp_path / "clipart" / "thesis.txt").read_text() == "precious"


@pytest.mark.parametrize("num_workers", [1, 2])
def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch, num_workers):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "_write_refer", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.write_benchmark(TINY, tmp_path / "clipart", num_workers=num_workers)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_overwrite_keeps_the_former_folder(tmp_path, monkeypatch):
    folder = tmp_path / "clipart"
    writer.write_benchmark(TINY, folder)
    before = _files(folder)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(writer, "_write_split", fail)
    with pytest.raises(OSError, match="disk full"):
        writer.write_benchmark(TINY, folder, overwrite=True)
    assert _files(folder) == before
    assert list(tmp_path.iterdir()) == [folder]


def test_samples_are_pictures_with_their_license(tmp_path):
    paths = write_sample_images(tmp_path / "new" / "folder", 2, seed=0)
    assert [path.name for path in paths] == ["clipart_000.jpg", "clipart_001.jpg"]
    with Image.open(paths[0]) as image:
        assert image.mode == "RGB"
        assert b"CC BY-SA 4.0" in image.info["comment"]


def test_samples_repeat_exactly(tmp_path):
    first = write_sample_images(tmp_path / "a", 2, seed=0)
    second = write_sample_images(tmp_path / "b", 2, seed=0)
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_samples_are_not_empty_scenes():
    assert all(len(compose_sample(0, number).objects) >= 4 for number in range(6))


def test_wrong_numbers_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 images and seed 1"):
        write_sample_images(tmp_path, 0, seed=1)
