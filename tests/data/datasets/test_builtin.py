import importlib

from detectron2.data import MetadataCatalog

from rose_d2.data.datasets import builtin


def test_the_root_comes_from_the_environment_when_registered(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/data")
    importlib.reload(builtin)
    image_root = MetadataCatalog.get("clipart_panoptic_val").image_root
    assert image_root == str(tmp_path / "data" / "clipart" / "images" / "val")
    monkeypatch.delenv("DETECTRON2_DATASETS")
    importlib.reload(builtin)
    assert MetadataCatalog.get("clipart_panoptic_val").image_root == "datasets/clipart/images/val"
