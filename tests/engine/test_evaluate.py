import json
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rose_d2.config import fingerprint
from rose_d2.config.fingerprint import config_hash, prediction_fingerprint
from rose_d2.data.datasets.custom import register_custom
from rose_d2.data.datasets.registration import unregister
from rose_d2.engine.evaluate import SavedRun, Weights, check_test_datasets, evaluate_dataset
from rose_d2.evaluation.build import build_evaluator
from rose_d2.reports.report import write_report

NAME = "four_pictures"


WEIGHTS = Weights("weights/model.safetensors", "ab" * 32)


@pytest.fixture
def cfg(tiny_cfg, tmp_path):
    """The tiny config on four pictures of noise, each with a dog."""
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(1, 5):
        file_name = f"{number}.png"
        pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / file_name)
        images.append({"id": number, "file_name": file_name, "height": 24, "width": 32})
        box = [2, 3, 10, 12]
        polygon = [[2, 3, 12, 3, 12, 15, 2, 15]]
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": box,
                "segmentation": polygon,
                "iscrowd": 0,
                "area": 120,
            }
        )
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}],
    }
    (tmp_path / "dogs.json").write_text(json.dumps(content))
    custom = (NAME, "coco", str(tmp_path / "images"), str(tmp_path / "dogs.json"))
    tiny_cfg.DATASETS.CUSTOM = (custom,)
    tiny_cfg.DATALOADER.NUM_WORKERS = 0
    tiny_cfg.OUTPUT_DIR = str(tmp_path / "out")
    tiny_cfg.TEST.SAVE_PREDICTIONS = True
    tiny_cfg.TEST.SCORE_THRESH = 0.0
    tiny_cfg.TEST.TOP_K = 6
    tiny_cfg.TEST.IMS_PER_BATCH = 2
    register_custom(tiny_cfg.DATASETS.CUSTOM)
    yield tiny_cfg
    unregister(NAME)


@pytest.fixture
def predictions(tmp_path):
    return tmp_path / "out" / "predictions" / NAME


class Counting:
    """The tiny model, counting images; one guess of each image is called a dog."""

    def __init__(self, model):
        self.model, self.images = model.eval(), 0

    def __call__(self, batched_inputs):
        self.images += len(batched_inputs)
        outputs = self.model(batched_inputs)
        for output in outputs:
            output["instances"].pred_classes[:1] = 0
        return outputs


def evaluate(cfg, model, **options):
    evaluator = build_evaluator(cfg, NAME)
    return evaluate_dataset(cfg, model, NAME, evaluator, **{"weights": WEIGHTS, **options})


def test_predictions_are_scored_and_continued_to_the_same_numbers(
    cfg, tiny_model, predictions, tmp_path
):
    model = Counting(tiny_model)
    first = evaluate(cfg, model)
    assert model.images == 4 and "segm" in first
    rescored = SavedRun(predictions).score(str(tmp_path / "rescored"))
    assert repr(rescored) == repr(first)
    path = predictions / "process-0000.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]) + b'{"key": "3')
    with pytest.raises(ValueError, match=r"predictions of 2 of the 4 items of 'four_pictures'"):
        SavedRun(predictions)
    assert repr(evaluate(cfg, model)) == repr(first) and model.images == 6
    assert repr(evaluate(cfg, model)) == repr(first) and model.images == 6
    evaluate(cfg, model, overwrite_predictions=True)
    assert model.images == 10


def test_predictions_are_saved_only_of_known_weights(cfg, tiny_model, predictions):
    evaluate(cfg, Counting(tiny_model), weights=None)
    assert not predictions.exists()


def test_predictions_of_other_weights_or_settings_are_refused(cfg, tiny_model):
    evaluate(cfg, Counting(tiny_model))
    with pytest.raises(ValueError, match="checkpoint_sha256"):
        evaluate(cfg, Counting(tiny_model), weights=Weights("other", "cd" * 32))
    cfg.TEST.TOP_K = 7
    with pytest.raises(ValueError, match=r"TEST\.TOP_K: 6, now 7.*--overwrite-predictions"):
        evaluate(cfg, Counting(tiny_model))


def test_scoring_may_change_only_what_needs_no_model(cfg, tiny_model, predictions, tmp_path):
    evaluate(cfg, Counting(tiny_model))
    run = SavedRun(predictions, opts=["TEST.RANK_BY_NAME", "False"])
    assert "segm" in run.score(str(tmp_path / "rescored"))
    with pytest.raises(ValueError, match=r"TEST\.TOP_K: 6, now 5"):
        SavedRun(predictions, opts=["TEST.TOP_K", "5"])


def test_what_was_unusable_is_scored_without_it_and_tried_again(
    cfg, tiny_model, predictions, tmp_path
):
    picture = tmp_path / "images" / "2.png"
    sound = picture.read_bytes()
    picture.write_bytes(b"no image")
    model = Counting(tiny_model)
    first = evaluate(cfg, model)
    assert first["left_out"] == {"samples": 1, "of": 4} and model.images == 3
    assert repr(SavedRun(predictions).score(str(tmp_path / "rescored"))) == repr(first)
    assert "1 of 4 samples could not be used" in _report(cfg, {NAME: first}, tmp_path)
    evaluate(cfg, model)
    assert model.images == 3
    picture.write_bytes(sound)
    mended = evaluate(cfg, model)
    assert "left_out" not in mended and model.images == 5
    assert repr(SavedRun(predictions).score(str(tmp_path / "rescored"))) == repr(mended)


def test_images_without_a_label_are_no_benchmark(cfg, tiny_model, tmp_path):
    (tmp_path / "labels").mkdir()
    for path in (tmp_path / "images").iterdir():
        Image.new("L", (32, 24), 255).save(tmp_path / "labels" / path.name)
    (tmp_path / "classes.txt").write_text("dog\nwall: stuff\n")
    paths = [str(tmp_path / name) for name in ("images", "labels", "classes.txt")]
    try:
        register_custom([("unlabelled", "labels", *paths)])
        evaluator = build_evaluator(cfg, "unlabelled")
        with pytest.raises(ValueError, match="mIoU of unlabelled is not a number: no pixel"):
            evaluate_dataset(cfg, Counting(tiny_model), "unlabelled", evaluator)
    finally:
        unregister("unlabelled")


def _report(cfg, results, folder):
    return Path(write_report(cfg, results, str(folder))).read_text()


def test_the_fingerprint_forgets_place_and_scoring(cfg):
    cfg.TEST.TOP_K = 6
    made = prediction_fingerprint(cfg, NAME, 4, "ab")
    for key, value in (
        ("MODEL.WEIGHTS", "elsewhere"),
        ("MODEL.DEVICE", "cuda"),
        ("OUTPUT_DIR", "elsewhere"),
        ("SEED", 8),
        ("TEST.RANK_BY_NAME", False),
        ("SOLVER.MAX_ITER", 9),
    ):
        cfg.merge_from_list([key, value])
    assert prediction_fingerprint(cfg, NAME, 4, "ab") == made
    assert made["TEST.TOP_K"] == 6 and made["num_samples"] == 4
    cfg.TEST.NMS.THRESH = 0.7
    assert prediction_fingerprint(cfg, NAME, 4, "ab")["config_hash"] != made["config_hash"]


def test_the_box_of_a_second_turn_counts_where_there_is_one(cfg):
    first = {}
    for enabled in (False, True):
        for box in ("prior", "target"):
            cfg.TEST.REFINEMENT.ENABLED, cfg.TEST.REFINEMENT.BOX = enabled, box
            first[enabled, box] = prediction_fingerprint(cfg, NAME, 4, "ab")["config_hash"]
    assert first[False, "prior"] == first[False, "target"]
    assert first[True, "prior"] != first[True, "target"]


def test_a_key_that_came_later_changes_no_hash_where_it_asks_for_nothing_new(cfg, monkeypatch):
    before = config_hash(cfg)
    cfg.OUTPUT_DIR, cfg.DATALOADER.NUM_WORKERS = "elsewhere", 9
    cfg.MODEL.LATER = "none"
    assert config_hash(cfg) != before
    monkeypatch.setitem(fingerprint._NEW_KEYS, "MODEL.LATER", "none")
    assert config_hash(cfg) == before
    cfg.MODEL.LATER = "all"
    assert config_hash(cfg) != before


def test_unknown_datasets_are_refused_with_near_names():
    with pytest.raises(ValueError, match=r"'clipart_instanc_val', which .* clipart_instance_val"):
        check_test_datasets(["clipart_instanc_val"])
    with pytest.raises(ValueError, match="check_data"):
        check_test_datasets(["xyzzy"])


def test_missing_files_are_refused_at_once(cfg, tmp_path):
    check_test_datasets([NAME])
    (tmp_path / "dogs.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"dogs\.json is missing"):
        check_test_datasets([NAME])


def test_unknown_evaluators_are_refused_at_once():
    DatasetCatalog.register("odd", list)
    MetadataCatalog.get("odd").evaluator_type = "lvis"
    try:
        with pytest.raises(ValueError, match=r"evaluator type 'lvis'; known are sem_seg, coco"):
            check_test_datasets(["odd"])
    finally:
        DatasetCatalog.remove("odd")
        MetadataCatalog.remove("odd")
