import itertools

import numpy as np
import pytest

from rose_d2.data.datasets.clipart import STUFF_NAMES
from rose_d2.synthetic.scene import TEXTURES, compose_background, texture


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
