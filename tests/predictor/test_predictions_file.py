import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
from pycocotools.coco import COCO

from rose_d2.predictor.predictions_file import PredictionsFile
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
    predictions.save()
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
    first.save()
    second = PredictionsFile.open(path, INFO)
    assert second.find("a.jpg")["result_name"] == "a"
    assert second.find("b.jpg") is None
    second.add("b.jpg", (6, 8), [segment("cat"), segment("dog")])
    second.save()
    content = json.loads(path.read_text())
    assert [image["id"] for image in content["images"]] == [1, 2]
    assert [a["id"] for a in content["annotations"]] == [1, 2, 3]
    assert [a["category_id"] for a in content["annotations"]] == [1, 2, 1]


def test_a_new_result_replaces_the_old_one_of_the_same_image(path):
    predictions = PredictionsFile(path, INFO)
    predictions.add("a.jpg", (6, 8), [segment("dog")])
    predictions.add("b.jpg", (6, 8), [segment("cat")])
    predictions.add("a.jpg", (6, 8), [segment("cat")])
    predictions.save()
    content = json.loads(path.read_text())
    assert len(predictions) == len(content["images"]) == 2
    assert sorted(a["image_id"] for a in content["annotations"]) == [1, 2]
    assert [category["name"] for category in content["categories"]] == ["cat"]


def test_results_of_other_settings_are_not_mixed(path):
    first = PredictionsFile.open(path, INFO)
    first.add("a.jpg", (6, 8), [segment("dog")])
    first.save()
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


def test_a_failed_write_leaves_the_old_file(path):
    predictions = PredictionsFile(path, INFO)
    predictions.save()
    before = path.read_text()
    predictions.add("a.jpg", (6, 8), [], not_json=object())
    with pytest.raises(TypeError):
        predictions.save()
    assert path.read_text() == before


def test_long_files_are_not_rewritten_all_the_time(path):
    predictions = PredictionsFile(path, INFO)
    predictions.save(always=False)
    assert path.exists(), "the first batch is written at once"
    predictions._save_seconds = 60.0
    predictions.add("a.jpg", (6, 8), [])
    predictions.save(always=False)
    assert "a.jpg" not in path.read_text()
    predictions.save()
    assert "a.jpg" in path.read_text()
