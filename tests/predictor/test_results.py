import json

import numpy as np
import pytest
from PIL import Image

from rose_d2.predictor.results import Results
from rose_d2.structures.segments import Segment

HEIGHT, WIDTH = 20, 30


def mask(x1, y1, x2, y2):
    drawn = np.zeros((HEIGHT, WIDTH), dtype=bool)
    drawn[y1:y2, x1:x2] = True
    return drawn


@pytest.fixture
def results():
    """A dog half under a cat that is surer, and grass; the cat has no name score."""
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    segments = (
        Segment(mask(2, 1, 8, 5), "cat", 0.9, None),
        Segment(mask(4, 1, 12, 5), "dög", 0.75, 0.5),
        Segment(mask(0, 10, 30, 20), "grass", 0.5, 0.25, is_thing=False),
    )
    return Results(image, segments, path="photo.jpg")


def test_segments_as_arrays(results):
    assert results.names == ["cat", "dög", "grass"] and len(results) == 3
    assert results.masks.shape == (3, HEIGHT, WIDTH) and results.masks.sum() == 24 + 32 + 300
    assert results.boxes.tolist() == [[2, 1, 8, 5], [4, 1, 12, 5], [0, 10, 30, 20]]
    assert results.scores.tolist() == [np.float32(0.9), 0.75, 0.5]
    assert np.isnan(results.name_scores[0]) and results.name_scores[1:].tolist() == [0.5, 0.25]
    assert results.is_thing.tolist() == [True, True, False]
    assert [segment.category_name for segment in results] == results.names
    assert results[1].category_name == "dög" and results[1:].names == ["dög", "grass"]
    assert "photo.jpg (30 x 20), panoptic: cat, dög, grass" in repr(results)


def test_an_empty_result_has_the_same_shapes(results, tmp_path):
    empty = results[:0]
    assert empty.masks.shape == (0, HEIGHT, WIDTH) and empty.boxes.shape == (0, 4)
    assert empty.to_coco()["annotations"] == []
    assert empty.save(tmp_path / "empty.png").is_file()
    assert "nothing" in repr(empty) and "<table>" in empty._repr_html_()


def test_filters(results):
    assert results.filter(min_score=0.6).names == ["cat", "dög"]
    assert results.filter(min_name_score=0.3).names == ["cat", "dög"]


def test_json_brings_everything_back(results):
    read = Results.from_json(results.to_json(), results.image)
    assert (read.masks == results.masks).all() and read.names == results.names
    assert (read.path, read.task, read.size) == ("photo.jpg", "panoptic", (HEIGHT, WIDTH))
    assert [segment.name_score for segment in read] == [None, 0.5, 0.25]
    assert Results.from_json(json.loads(results.to_json())).image.sum() == 0
    with pytest.raises(ValueError, match=r"image of \(20, 30\)"):
        Results.from_json(results.to_json(), results.image[:5])
    with pytest.raises(ValueError, match="no result of Results.to_json"):
        Results.from_json('{"height": 3}')


def test_coco_has_one_category_a_name(results):
    coco = results.to_coco()
    assert [entry["name"] for entry in coco["categories"]] == ["cat", "dög", "grass"]
    assert [entry["bbox"] for entry in coco["annotations"]][1] == [4, 1, 8, 4]
    assert coco["images"][0]["file_name"] == "photo.jpg"


def test_panoptic_gives_a_pixel_to_the_surer_segment(results):
    png, infos = results.to_panoptic()
    ids = png.astype(int) @ [1, 256, 65536]
    assert [info["id"] for info in infos] == [1, 2, 3]
    assert [info["area"] for info in infos] == [24, 16, 300]
    assert infos[1]["bbox"] == [8, 1, 4, 4] and infos[2]["isthing"] == 0
    assert [(ids == info["id"]).sum() for info in infos] == [24, 16, 300]


def test_supervision_keeps_the_names(results):
    pytest.importorskip("supervision", reason="the extra test is not installed")
    detections = results.to_supervision()
    assert detections.data["class_name"].tolist() == ["cat", "dög", "grass"]
    assert detections.xyxy.tolist() == results.boxes.tolist()
    assert (detections.mask == results.masks).all()
    kept = detections[detections.confidence > 0.6]
    assert kept.data["class_name"].tolist() == ["cat", "dög"]
    assert kept.data["name_score"][1] == 0.5


def test_pandas_has_one_row_a_segment(results):
    pytest.importorskip("pandas", reason="the extra test is not installed")
    frame = results.to_pandas()
    assert frame["name"].tolist() == ["cat", "dög", "grass"]
    assert frame["area"].tolist() == [24, 32, 300]


def test_fiftyone_has_relative_boxes_and_cropped_masks(results):
    fiftyone = pytest.importorskip("fiftyone", reason="fiftyone is not installed (300 MB)")
    dog = results.to_fiftyone().detections[1]
    assert isinstance(dog, fiftyone.Detection) and dog.label == "dög"
    assert dog.bounding_box == [4 / 30, 1 / 20, 8 / 30, 4 / 20] and dog.mask.shape == (4, 8)
    assert (dog.confidence, dog.name_score, dog.is_thing) == (0.75, 0.5, True)


def test_pictures_show_how_sure_the_name_is(results, tmp_path, monkeypatch):
    seen = {}

    def draw(self, masks, names, scores, **options):
        seen.update(names=names, scores=scores)
        return self.output

    monkeypatch.setattr("rose_d2.predictor.results.RoseVisualizer.draw_segments", draw)
    results.plot()
    assert seen == {"names": ["cat", "dög", "grass"], "scores": [None, 0.5, 0.25]}


def test_the_suffix_chooses_the_file(results, tmp_path):
    with Image.open(results.save(tmp_path / "new" / "a.png")) as picture:
        assert picture.size[0] % WIDTH == 0
    assert json.loads(results.save(tmp_path / "a.json").read_text())["height"] == HEIGHT
    with pytest.raises(ValueError, match=r"no picture format; try \.jpg"):
        results.save(tmp_path / "a.doc")


def test_a_notebook_shows_picture_and_table_without_trusting_names(results):
    wild = Results(results.image, (Segment(mask(0, 0, 2, 2), "<b>x", 0.5),))
    shown = wild._repr_html_()
    assert "data:image/jpeg;base64," in shown and "&lt;b&gt;x" in shown and "<b>x" not in shown
