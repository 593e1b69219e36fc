import numpy as np
import pytest

from rose_d2.data.datasets.clipart import HELD_OUT_NAMES
from rose_d2.synthetic.scene import (
    MIN_VISIBLE_PIXELS,
    SIDE_RANGE,
    _Canvas,
    compose_scene,
    draw_names,
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
