import io
import os

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from rose_d2.data.image_io import ImageReadError, read_image


def _saved(tmp_path, image, name="image.png", **options):
    image.save(tmp_path / name, **options)
    return str(tmp_path / name)


def _half_red(height=4, width=6):
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2] = (255, 0, 0)
    return pixels


def test_rgb_is_read_as_it_is(tmp_path):
    pixels = _half_red()
    image = read_image(_saved(tmp_path, Image.fromarray(pixels)))
    assert image.dtype == np.uint8
    assert np.array_equal(image, pixels)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [
        ("L", "png"),
        ("1", "png"),
        ("P", "png"),
        ("P", "gif"),
        ("LA", "png"),
        ("RGBA", "png"),
        ("RGBA", "webp"),
        ("PA", "im"),
        ("CMYK", "tif"),
        ("F", "tif"),
    ],
)
def test_every_mode_becomes_8_bit_rgb(tmp_path, mode, suffix):
    image = Image.fromarray(_half_red()).convert("RGBA" if mode == "PA" else "RGB").convert(mode)
    pixels = read_image(_saved(tmp_path, image, f"image.{suffix}"))
    assert pixels.shape == (4, 6, 3)
    assert pixels.dtype == np.uint8
    assert pixels[:, :3, 0].mean() > pixels[:, 3:, 0].mean() + 50


def test_sixteen_bits_are_scaled_to_eight(tmp_path):
    values = np.array([[0, 128, 257], [32896, 65535, 65400]], dtype=np.uint16)
    image = read_image(_saved(tmp_path, Image.fromarray(values)))
    assert image[..., 0].tolist() == [[0, 0, 1], [128, 255, 254]]
    assert np.array_equal(image[..., 0], image[..., 2])
    # The mode in which Pillow opens some 16-bit files.
    wide = Image.fromarray(values.astype(np.int32))
    assert np.array_equal(read_image(_saved(tmp_path, wide, "wide.tif")), image)


def test_transparency_is_laid_over_white(tmp_path):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = (0, 255, 51)
    image = read_image(_saved(tmp_path, Image.fromarray(pixels)))
    assert image[0, :, 0].tolist() == [255, 0, 204]


def test_palette_transparency_is_laid_over_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    pixels = read_image(_saved(tmp_path, image, transparency=0))
    assert pixels[0].tolist() == [[255, 255, 255], [40, 50, 60]]


def test_exif_rotation_is_applied(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    path = _saved(tmp_path, Image.fromarray(_half_red(32, 64)), "image.jpg", exif=exif, quality=95)
    image = read_image(path)
    assert image.shape == (64, 32, 3)
    assert image[8, 16, 0] > 200  # the red left half came to the top
    assert image[56, 16, 0] < 50


def test_cmyk_jpeg_keeps_its_colours(tmp_path):
    path = _saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "image.jpg")
    assert read_image(path)[4, 4].tolist() == pytest.approx([255, 0, 0], abs=6)


def _truncated_jpeg():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format="JPEG")
    return buffer.getvalue()[:-800]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (_truncated_jpeg(), "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 30, "bad.jpg"),
    ],
)
def test_bad_files_are_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match=reason) as caught:
        read_image(str(path))
    assert "bad.jpg" in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
        read_image(str(tmp_path / "none.jpg"))
    with pytest.raises(ImageReadError):
        read_image(str(tmp_path))


def test_bombs_are_refused(tmp_path, monkeypatch):
    path = _saved(tmp_path, Image.fromarray(_half_red(20, 20)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="larger than Pillow accepts"):
        read_image(path)


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path):
    path = _saved(tmp_path, Image.fromarray(_half_red(20, 30)))
    assert read_image(path, max_pixels=600).shape == (20, 30, 3)
    with pytest.raises(ImageReadError, match=r"30 x 20 pixels.*599 of INPUT\.MAX_PIXELS"):
        read_image(path, max_pixels=599)


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageReadError, match="not a regular file"):
        read_image(str(tmp_path / "pipe.jpg"))


def test_a_png_may_have_much_text(tmp_path):
    text = PngInfo()
    text.add_text("parameters", "x" * 3_000_000, zip=True)
    path = _saved(tmp_path, Image.fromarray(_half_red()), pnginfo=text)
    assert np.array_equal(read_image(path), _half_red())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_annotated_size_tells_whether_the_annotator_knew_of_exif(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = _saved(tmp_path, Image.fromarray(_half_red(32, 64)), "image.jpg", exif=exif)
    turned = read_image(path)
    assert np.array_equal(read_image(path, annotated_size=turned.shape[:2]), turned)
    assert read_image(path, annotated_size=(32, 64)).shape == (32, 64, 3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.5, 250.0], [0, 100, 250]),
        ([0.0, 0.75, 1.5], [0, 128, 255]),
        ([0.0, 32896.0, 65535.0], [0, 128, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, np.nan, 1.0], [0, 0, 255]),
    ],
)
def test_floats_are_scaled_by_their_range(tmp_path, values, expected):
    image = Image.fromarray(np.array([values], dtype=np.float32))
    assert read_image(_saved(tmp_path, image, "image.tif"))[0, :, 0].tolist() == expected


def test_whole_numbers_up_to_255_in_32_bits_are_bytes(tmp_path):
    image = Image.fromarray(np.array([[0, 7, 255]], dtype=np.int32))
    assert read_image(_saved(tmp_path, image, "image.tif"))[0, :, 0].tolist() == [0, 7, 255]
