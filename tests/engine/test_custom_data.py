import argparse
import json

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from rose_d2.config.defaults import add_rose_config
from rose_d2.data.datasets.custom import CUSTOM_NAME, add_custom_data_arguments, use_custom_data
from rose_d2.data.datasets.registration import unregister
from rose_d2.data.mixture import training_weights


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rose_config(cfg)
    cfg.DATASETS.TRAIN, cfg.DATASETS.TRAIN_WEIGHTS = ("a", "b"), (1.0, 2.0)
    yield cfg
    for name in (CUSTOM_NAME, "mine"):
        unregister(name)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(tmp_path / "images" / "a.png")
    content = {"images": [], "annotations": [], "categories": [{"id": 3, "name": "cup"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    (tmp_path / "classes.txt").write_text("cup\nsky: stuff\n")
    return tmp_path


def _parse(*arguments):
    parser = argparse.ArgumentParser()
    add_custom_data_arguments(parser)
    return parser.parse_args([str(argument) for argument in arguments])


def test_data_of_the_command_line_replace_those_of_the_config(cfg, files):
    cfg.DATASETS.TASK_WEIGHTS.SEMANTIC = 2.0
    use_custom_data(cfg, _parse("--custom-coco", files / "images", files / "a.json"))
    assert [view.spec for view in training_weights(cfg)] == [CUSTOM_NAME]
    assert cfg.DATASETS.TRAIN == cfg.DATASETS.TEST == (CUSTOM_NAME,)
    assert cfg.DATASETS.TRAIN_WEIGHTS == ()
    assert MetadataCatalog.get(CUSTOM_NAME).thing_classes == ["cup"]


def test_label_pngs_with_a_list_of_classes(cfg, files):
    arguments = (files / "images", files / "images", files / "classes.txt")
    use_custom_data(cfg, _parse("--custom-labels", *arguments))
    assert MetadataCatalog.get(CUSTOM_NAME).stuff_classes == ["cup", "sky"]


def test_the_config_alone_registers_its_own_names(cfg, files):
    cfg.merge_from_list(
        ["DATASETS.CUSTOM", f"(('mine', 'coco', '{files}/images', '{files}/a.json'),)"]
    )
    use_custom_data(cfg, argparse.Namespace())
    assert "mine" in DatasetCatalog.list()
    assert cfg.DATASETS.TRAIN == ("a", "b")


def test_both_kinds_at_once_are_refused(files, capsys):
    with pytest.raises(SystemExit):
        _parse("--custom-coco", "a", "b", "--custom-labels", "a", "b", "c")
    assert "not allowed with" in capsys.readouterr().err
