import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from panopticapi.evaluation import pq_compute
from PIL import Image
from pycocotools.coco import COCO

from rose_d2.predictor.predictions_file import (
    PredictionsFile,
    image_record,
    number_records,
    write_panoptic,
)
from rose_d2.structures.mask_codec import ids_to_colours
from rose_d2.structures.segments import Segment

INFO = {"task": "instance", "vocabulary": ["dog", "cat"]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "predictions.json"


def segment(name, score=0.5, **kwargs):
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:4, 2:7] = True
    return Segment(mask, name, score, **kwargs)


def test_the_file_is_a_coco_file(path):
    predictions = PredictionsFile(path, INFO)
    dog = segment("dog", 0.75, name_score=0.5)
    predictions.add("a.jpg", (6, 8), [dog, segment("grass", is_thing=False)])
    predictions.add("b.jpg", (6, 8), [segment("grass")])
    predictions.add("empty.jpg", (1, 1), [])
    predictions.finish()
    coco = COCO(str(path))
    assert sorted(coco.imgs) == [1, 2, 3]
    assert [category["name"] for category in coco.cats.values()] == ["dog", "grass"]
    annotation = coco.anns[1]
    assert (coco.annToMask(annotation) == dog.mask).all()
    assert annotation["bbox"] == [2, 1, 5, 3]
    assert annotation["area"] == 15
    assert (annotation["score"], annotation["name_score"]) == (0.75, 0.5)
    assert (annotation["category_name"], annotation["isthing"]) == ("dog", 1)
    assert isinstance(annotation["segmentation"]["counts"], str)
    assert mask_util.area(annotation["segmentation"]) == 15
    assert coco.anns[2]["isthing"] == 0
    assert coco.anns[2]["segment_id"] == 2
    assert coco.anns[3]["category_id"] == coco.anns[2]["category_id"]


def test_a_file_is_continued_where_it_ended(path):
    first = PredictionsFile.open(path, INFO)
    first.add("a.jpg", (6, 8), [segment("dog")], result_name="a")
    first.finish()
    second = PredictionsFile.open(path, INFO)
    assert second.find("a.jpg")["result_name"] == "a"
    assert second.find("b.jpg") is None
    second.add("b.jpg", (6, 8), [segment("cat"), segment("dog")])
    second.finish()
    content = json.loads(path.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]
    assert [a["category_id"] for a in content["annotations"]] == [1, 2, 1]


def test_a_new_result_replaces_the_old_one_of_the_same_image(path):
    predictions = PredictionsFile(path, INFO)
    predictions.add("a.jpg", (6, 8), [segment("dog")])
    predictions.add("b.jpg", (6, 8), [segment("cat")])
    predictions.add("a.jpg", (6, 8), [segment("cat")])
    predictions.finish()
    content = json.loads(path.read_text())
    assert len(predictions) == len(content["images"]) == 2
    assert sorted(a["image_id"] for a in content["annotations"]) == [1, 2]
    assert [category["name"] for category in content["categories"]] == ["cat"]


def test_results_of_other_settings_are_not_mixed(path):
    first = PredictionsFile.open(path, INFO)
    first.add("a.jpg", (6, 8), [segment("dog")])
    first.finish()
    other = {**INFO, "task": "semantic"}
    with pytest.raises(ValueError, match="task: 'instance', now 'semantic'.*overwrite"):
        PredictionsFile.open(path, other)
    assert len(PredictionsFile.open(path, other, overwrite=True)) == 0
    assert len(PredictionsFile.open(path, INFO, overwrite=True)) == 1


@pytest.mark.parametrize("content", ["", "{", "[]", '{"info": 3}', '{"info": null}'])
def test_a_file_of_something_else_is_refused(path, content):
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match="overwrite"):
        PredictionsFile.open(path, INFO)
    assert path.read_text() == content
    assert len(PredictionsFile.open(path, INFO, overwrite=True)) == 0


def test_what_cannot_be_written_is_not_added(path, monkeypatch):
    predictions = PredictionsFile(path, INFO)
    predictions.add("a.jpg", (6, 8), [segment("dog")])
    with pytest.raises(TypeError):
        predictions.add("b.jpg", (6, 8), [], not_json=object())
    before = predictions.lines.read_bytes()
    full = predictions._file

    class FullDisk:
        """Takes ten bytes of a line and then no more."""

        truncate = full.truncate

        def write(self, data):
            if len(data) < 11:
                raise OSError(28, "No space left on device")
            return full.write(data[:-10])

    predictions._file = FullDisk()
    with pytest.raises(OSError, match="No space"):
        predictions.add("c.jpg", (6, 8), [])
    assert predictions.lines.read_bytes() == before and len(predictions) == 1
    predictions._file = full
    predictions.finish()
    assert [image["file_name"] for image in json.loads(path.read_text())["images"]] == ["a.jpg"]


def test_a_killed_process_loses_its_last_line_at_most(path):
    predictions = PredictionsFile(path, INFO)
    for name in ("a.jpg", "b.jpg"):
        predictions.add(name, (6, 8), [segment("dog")])
    predictions.close()
    whole = predictions.lines.read_bytes()
    for cut in (0, 5, len(whole) - 1):
        predictions.lines.write_bytes(whole[:cut])
        again = PredictionsFile.open(path, INFO)
        assert len(again) == (1 if cut > 5 else 0)
        again.add("b.jpg", (6, 8), [segment("cat")])
        again.close()
        assert PredictionsFile.open(path, INFO).names("b.jpg") == ("cat",)


def test_many_images_are_written_twice_and_not_more(path, monkeypatch):
    """What reaches the disk grows with the number of images, and not with its square."""

    def written(count):
        content = PredictionsFile.open(path, INFO)
        content.begin()
        tally = [0]
        append = content._file.write

        class Counting:
            truncate, close = content._file.truncate, content._file.close

            def write(self, data):
                tally[0] += len(data)
                return append(data)

        content._file = Counting()
        for number in range(count):
            content.add(f"{number:06d}.jpg", (6, 8), [segment("dog"), segment("cat")])
        content.finish()
        total = tally[0] + path.stat().st_size
        path.unlink()
        return total

    few, many = written(100), written(1000)
    assert 9.8 < many / few < 10.2


def test_shares_join_to_what_one_process_writes(path):
    names = [f"{number}.jpg" for number in range(7)]
    kinds = ("dog", "cat", "grass")

    def add(predictions, numbers):
        for number in numbers:
            found = [segment(kinds[number % 3]), segment(kinds[number // 3])]
            predictions.add(names[number], (6, 8), found)

    alone = PredictionsFile(path.with_name("alone.json"), INFO)
    add(alone, range(7))
    alone.finish(names)
    for share in (2, 0, 1):
        predictions = PredictionsFile.open(path, INFO, share=(share, 3))
        add(predictions, range(share, 7, 3))
        predictions.close()
    joined = PredictionsFile.open(path, INFO)
    assert len(joined) == 7 and not joined.is_joined
    joined.finish(names)
    assert path.read_text() == alone.path.read_text()
    assert [file.name for file in path.parent.iterdir()].count("predictions.json") == 1
    assert not list(path.parent.glob("*.jsonl"))
    assert PredictionsFile.open(path, INFO).is_joined


def test_the_folder_of_images_is_the_first_ones(path):
    first = PredictionsFile.open(path, {**INFO, "image_folder": "photos"})
    first.add("a.jpg", (6, 8), [])
    first.finish()
    second = PredictionsFile.open(path, {**INFO, "image_folder": "."})
    assert second.info["image_folder"] == "photos"
    other = PredictionsFile(path, {**INFO, "image_folder": "elsewhere"}, (1, 2))
    other.add("b.jpg", (6, 8), [])
    other.close()
    with pytest.raises(ValueError, match="1-of-2.jsonl was made with other settings .image_folder"):
        PredictionsFile.open(path, INFO)


def test_the_panoptic_json_is_what_panopticapi_reads(tmp_path):
    folder = tmp_path / "panoptic"
    folder.mkdir()
    ids = np.zeros((6, 8), dtype=np.int64)
    ids[1:4, 2:7], ids[4:, :] = 1, 2
    Image.fromarray(ids_to_colours(ids)).save(folder / "a.png")
    parts = [Segment(ids == 1, "dog", 0.9), Segment(ids == 2, "grass", 0.8, is_thing=False)]
    record = image_record("a.jpg", (6, 8), parts, result_name="a")
    file = tmp_path / "panoptic.json"
    write_panoptic(file, INFO, number_records([record]))
    content = json.loads(file.read_text())
    assert [(c["name"], c["isthing"]) for c in content["categories"]] == [("dog", 1), ("grass", 0)]
    assert all(len(c["color"]) == 3 and max(c["color"]) <= 255 for c in content["categories"])
    quality = pq_compute(str(file), str(file), str(folder), str(folder))
    assert quality["All"]["pq"] == 1 and quality["All"]["n"] == 2
