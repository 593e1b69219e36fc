from pathlib import Path

import pytest

from rose_d2 import model_zoo
from rose_d2.config import released

ROOT = Path(__file__).parents[2]


def test_configs_are_found_by_name_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("rose_tiny.yaml", "configs/rose_tiny.yaml", "./configs/rose_tiny.yaml"):
        assert Path(model_zoo.get_config_file(name)) == ROOT / "configs" / "rose_tiny.yaml"
    Path("rose_tiny.yaml").write_text("VERSION: 2")
    assert model_zoo.get_config_file("rose_tiny.yaml") == "rose_tiny.yaml"
    with pytest.raises(ValueError, match=r"no config file 'rose_9b.yaml'.* rose_7b.yaml"):
        model_zoo.get_config_file("rose_9b.yaml")


def test_a_package_with_its_own_copies_uses_them(monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "rose_tiny.yaml").write_text("VERSION: 2")
    monkeypatch.setattr(released, "_PACKAGED", tmp_path)
    assert released.released_configs() == ["rose_tiny.yaml"]
    assert model_zoo.get_config_file("rose_tiny.yaml").startswith(str(tmp_path))
    assert model_zoo.get_checkpoint_url("rose_tiny.yaml").startswith(str(tmp_path))


def test_weights_that_were_never_released_are_not_promised():
    with pytest.raises(ValueError, match="No weights of 'rose_7b.yaml' have been released"):
        model_zoo.get_config("rose_7b.yaml", trained=True)


def test_a_trained_model_by_name():
    model = model_zoo.get("rose_tiny.yaml", trained=True, device="cpu")
    assert not model_zoo.get_config("rose_tiny.yaml").MODEL.WEIGHTS
    assert Path(model_zoo.get_config("rose_tiny.yaml", trained=True).MODEL.WEIGHTS).is_dir()
    assert model.device.type == "cpu"
