import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rose_d2.evaluation.instance import OFFICIAL, evaluate_coco, open_average_precision

IDS = {3: 0, 5: 1, 7: 2}


@pytest.mark.parametrize("max_dets", [1, 100])
@pytest.mark.parametrize("seed", range(4))
def test_the_identity_gives_ap(random_instances, seed, max_dets):
    truth, results, _ = random_instances(seed)
    options = {"max_dets": max_dets, "implementation": OFFICIAL}
    stats = evaluate_coco(truth, results, "segm", **options).stats
    hard = open_average_precision(truth, results, np.eye(3), IDS, max_dets=max_dets)
    for key, index in (("Open AP", 0), ("Open AP50", 1), ("Open AP75", 2)):
        assert hard[key] == pytest.approx(100 * stats[index], abs=1e-9)


def test_it_grows_with_the_similarity(random_instances):
    truth, results, _ = random_instances(0)
    scores = []
    for value in (0.0, 0.4, 1.0):
        similarity = np.where(np.eye(3, dtype=bool), 1.0, value)
        scores.append(open_average_precision(truth, results, similarity, IDS)["Open AP"])
    assert scores[0] < scores[1] < scores[2]


def _entry(mask, category_id, **more):
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"image_id": 1, "category_id": category_id, "segmentation": code, **more}


@pytest.fixture
def scene():
    """One image with two objects side by side, of the classes 3 and 5."""
    masks = np.zeros((2, 10, 20), dtype=bool)
    masks[0, 2:8, 2:8], masks[1, 2:8, 12:18] = True, True
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 1, "height": 10, "width": 20}],
        "annotations": [
            _entry(masks[0], 3, id=1, iscrowd=0, area=36, bbox=[2, 2, 6, 6]),
            _entry(masks[1], 5, id=2, iscrowd=0, area=36, bbox=[12, 2, 6, 6]),
        ],
        "categories": [{"id": i, "name": str(i)} for i in IDS],
    }
    truth.createIndex()
    return truth, masks


def _similar(predicted, annotated, value):
    similarity = np.eye(3)
    similarity[predicted, annotated] = value
    return similarity


def test_a_wrong_name_by_hand(scene):
    """The object of class 5 called 3: half a hit of 5, half an error of 3."""
    truth, masks = scene
    results = [_entry(masks[0], 3, score=0.8), _entry(masks[1], 3, score=0.9)]
    scores = open_average_precision(truth, results, _similar(0, 1, 0.5), IDS)
    # Class 3: half an error, then a hit: precision 1 / 1.5. Class 5: precision 1 up to recall
    # 0.5, which is 51 of the 101 points.
    assert scores["Open AP"] == pytest.approx(50 * (1 / 1.5 + 51 / 101))
    assert scores["Open AP75"] == pytest.approx(scores["Open AP50"])


def test_a_wrong_name_does_not_take_the_object_from_the_right_one(scene):
    truth, masks = scene
    results = [
        _entry(masks[0], 3, score=0.5),
        _entry(masks[1], 3, score=0.9),
        _entry(masks[1], 5, score=0.4),
    ]
    scores = open_average_precision(truth, results, _similar(0, 1, 0.5), IDS)
    # The error on class 3 stays whole, because its object is taken: precision 1 / 2.
    assert scores["Open AP"] == pytest.approx(50 * (1 / 2 + 1))


def test_a_prediction_with_an_object_of_its_own_does_not_take_another(scene):
    """Both objects in one place: the one of class 5 is missed, however similar."""
    truth, masks = scene
    truth.anns[2] |= {"segmentation": truth.anns[1]["segmentation"], "bbox": [2, 2, 6, 6]}
    results = [_entry(masks[0], 3, score=0.8)]
    scores = open_average_precision(truth, results, _similar(0, 1, 0.5), IDS)
    assert scores["Open AP"] == pytest.approx(50)


def test_nothing_predicted_and_nothing_annotated(scene):
    truth, masks = scene
    assert open_average_precision(truth, [], np.eye(3), IDS)["Open AP"] == 0
    truth.dataset["annotations"] = []
    truth.createIndex()
    results = [_entry(masks[0], 3, score=0.5)]
    assert np.isnan(open_average_precision(truth, results, np.eye(3), IDS)["Open AP"])


def test_a_matrix_of_another_size_is_refused(scene):
    with pytest.raises(ValueError, match=r"\(2, 2\) for 3 classes"):
        open_average_precision(scene[0], [], np.eye(2), IDS)
