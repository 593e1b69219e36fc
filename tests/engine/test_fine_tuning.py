import argparse
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from PIL import Image
from scripts import run_script

from rose_d2 import Rose
from rose_d2.config.read import read_config
from rose_d2.data.build import load_dataset_dicts
from rose_d2.data.datasets.custom import held_out, register_custom
from rose_d2.data.datasets.registration import unregister
from rose_d2.engine import fine_tuning
from rose_d2.engine.fine_tuning import prepare_fine_tuning, short_schedule
from rose_d2.evaluation.instance import RoseCOCOEvaluator


@pytest.fixture(autouse=True)
def _unregister():
    yield
    for name in ("custom", "custom_val"):
        unregister(name)


@pytest.fixture
def data(tmp_path):
    """Eleven dark pictures with a bright square, a "lamp"."""
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for i in range(1, 12):
        pixels = np.zeros((40, 40, 3), np.uint8)
        pixels[10:30, 10:30] = 255
        Image.fromarray(pixels).save(tmp_path / "images" / f"{i:02}.png")
        images.append({"id": i, "file_name": f"{i:02}.png", "height": 40, "width": 40})
        annotations.append(
            {"id": i, "image_id": i, "category_id": 1, "iscrowd": 0, "area": 400}
            | {"bbox": [10, 10, 20, 20], "segmentation": [[10, 10, 30, 10, 30, 30, 10, 30]]}
        )
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "lamp"}]
    (tmp_path / "all.json").write_text(json.dumps(content))
    return tmp_path


def arguments(data, *opts, **options):
    plain = {"custom_coco": [str(data / "images"), str(data / "all.json")], "custom_labels": None}
    plain |= {"custom_val": None, "eval_only": False, "config_file": "rose_tiny.yaml"}
    return argparse.Namespace(**(plain | options), opts=["OUTPUT_DIR", str(data / "out"), *opts])


def prepared(data, *opts, **options):
    args = arguments(data, *opts, **options)
    cfg = read_config("rose_tiny.yaml", args.opts)
    return cfg, " ".join(prepare_fine_tuning(cfg, args))


def test_every_fifth_image_is_held_out():
    assert held_out(11) == {4, 9} and held_out(2) == {1} and len(held_out(10_000)) == 500
    with pytest.raises(ValueError, match="1 image to train on"):
        held_out(1)


def test_a_schedule_fits_the_number_of_images():
    assert short_schedule(16, 8, 56_200) == 150
    assert short_schedule(1000, 8, 56_200) == 7500
    assert short_schedule(1_000_000, 8, 56_200) == 56_200


def test_released_weights_held_out_images_and_a_short_schedule(data):
    cfg, told = prepared(data)
    assert cfg.MODEL.WEIGHTS.endswith("checkpoints/rose_tiny") and "released weights" in told
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS) == (150, 15) and "150 steps" in told
    assert pytest.approx(0.0003) == cfg.SOLVER.BASE_LR
    assert cfg.DATASETS.TRAIN == ("custom",) and cfg.DATASETS.TEST == ("custom_val",)
    assert "2 of 11 images are held out" in told
    train, val = (load_dataset_dicts(n, filter_empty=False) for n in ("custom", "custom_val"))
    assert [record["image_id"] for record in val] == [5, 10] and len(train) == 9


def rewritten(data, **changes):
    content = json.loads((data / "all.json").read_text())
    content |= {key: change(content[key]) for key, change in changes.items()}
    (data / "all.json").write_text(json.dumps(content), encoding="utf-8-sig")


def test_files_of_any_shape_are_divided(data):
    """A byte order mark, a dict by id, ids as text: what the one reader takes."""
    rewritten(
        data,
        annotations=lambda entries: {
            str(e["id"]): e | {"image_id": f"{e['id']}.0"} for e in entries
        },
        images=lambda entries: [{"id": str(e["id"]), "file_name": e["file_name"]} for e in entries],
    )
    cfg, told = prepared(data)
    assert "2 of 11" in told and not (data / "out").exists()
    register_custom(cfg.DATASETS.CUSTOM)  # as a resumed run does, or tools/score.py
    # Text comes in the order of text: 1, 10, 11, 2, 3.
    assert [record["image_id"] for record in DatasetCatalog.get("custom_val")] == ["3", "8"]
    assert len(RoseCOCOEvaluator("custom_val", distributed=False)._coco_api.anns) == 2


def test_an_error_names_the_users_own_file(data):
    rewritten(data, annotations=lambda entries: [e | {"segmentation": None} for e in entries])
    with pytest.raises(ValueError, match=r"all\.json: no object is left of 11 annotations"):
        prepared(data)


def test_parts_without_any_object_are_refused(data):
    rewritten(data, annotations=lambda entries: entries[:3])
    with pytest.raises(ValueError, match="None of the 2 of 11 images held out .* has an object"):
        prepared(data)


def test_what_the_command_line_says_stays(data):
    opts = ("SOLVER.MAX_ITER", "7", "SOLVER.BASE_LR", "0.5", "MODEL.WEIGHTS", "")
    cfg, told = prepared(data, *opts, "DATASETS.TEST", "()")
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.BASE_LR) == (7, 1, 0.5)
    assert cfg.MODEL.WEIGHTS == "" and "from scratch" in told
    assert tuple(cfg.DATASETS.TEST) == ()


def test_own_data_for_evaluation(data):
    cfg, told = prepared(data, custom_val=[str(data / "images"), str(data / "all.json")])
    assert cfg.DATASETS.TEST == ("custom_val",) and "--custom-val" in told
    assert len(DatasetCatalog.get("custom")) == len(DatasetCatalog.get("custom_val")) == 11


def test_label_pngs_are_held_out_too(data):
    (data / "labels").mkdir()
    for file in (data / "images").iterdir():
        Image.new("L", (40, 40)).save(data / "labels" / file.name)
    (data / "classes.txt").write_text("wall: stuff\nlamp\n")
    paths = [str(data / name) for name in ("images", "labels", "classes.txt")]
    cfg, told = prepared(data, custom_coco=None, custom_labels=paths)
    assert "2 of 11" in told and cfg.DATASETS.TRAIN == ("custom",)
    names = [record["image_id"] for record in DatasetCatalog.get("custom_val")]
    assert names == ["05", "10"] and len(DatasetCatalog.get("custom")) == 9
    assert MetadataCatalog.get("custom_val").stuff_classes == ["wall", "lamp"]


def test_a_config_without_released_weights_says_so(data):
    args = arguments(data, config_file="rose_7b.yaml")
    cfg = read_config("rose_7b.yaml", args.opts)
    assert "No weights of this config" in " ".join(prepare_fine_tuning(cfg, args))
    assert cfg.MODEL.WEIGHTS == ""


def test_data_that_detectron2_registered_know_their_task(data):
    register_coco_instances("rose_test_lamps", {}, str(data / "all.json"), str(data / "images"))
    try:
        dicts = load_dataset_dicts("rose_test_lamps", filter_empty=True)
        assert {record["task"] for record in dicts} == {"instance"}
    finally:
        DatasetCatalog.remove("rose_test_lamps")
        MetadataCatalog.remove("rose_test_lamps")


def test_other_datasets_weigh_the_same(caplog):
    cfg = read_config("rose_tiny.yaml", ["DATASETS.TRAIN", "('clipart_sem_seg_train',)"])
    assert cfg.DATASETS.TRAIN_WEIGHTS == () and "all weigh the same" in caplog.text


@pytest.mark.slow
def test_from_data_to_a_model_that_the_demo_takes(data, tmp_path):
    out = tmp_path / "trained"
    printed = run_script(
        "train_net.py",
        *("--config-file", "rose_tiny.yaml", "--custom-coco", data / "images", data / "all.json"),
        *("OUTPUT_DIR", out, "SOLVER.MAX_ITER", 2, "SOLVER.IMS_PER_BATCH", 2, "SEED", 1),
        output=tmp_path / "log.txt",
    )
    assert "2 of 11 images are held out" in printed and "AP" in printed
    (command,) = [line for line in printed.splitlines() if "demo/demo.py photos/" in line]
    assert command.endswith(
        f"--config-file {out}/exported/config.yaml MODEL.WEIGHTS {out}/exported"
    )
    for folder in (out / fine_tuning.EXPORT_FOLDER, out):
        assert Rose.from_pretrained(folder, device="cpu")(data / "images" / "01.png").size == (
            40,
            40,
        )
