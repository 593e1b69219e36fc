import pytest
from PIL import Image

from rose_d2.synthetic.clipart import compose_sample, write_sample_images


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
