"""Every sentence is read back by a checker that shares no code with the generator."""

import re

import numpy as np
import pytest

from rose_d2.data.datasets.clipart import THING_NAMES
from rose_d2.synthetic.expressions import draw_references, list_expressions
from rose_d2.synthetic.scene import SceneObject, compose_scene

RELATION = re.compile(
    r"the (.+?) (to the left of|left of|to the right of|right of|above|higher up than|below|under)"
    r" the (.+)"
)


SUFFIX = re.compile(r"the (.+) (?:on the|furthest to the) (left|right)")


PREFIX = re.compile(
    r"the (left|leftmost|right|rightmost|top|upper|topmost|highest|bottom|lower|bottommost|lowest"
    r"|largest|biggest|smallest|tiniest) (.+)"
)


DIRECTION = {
    **dict.fromkeys(("left", "leftmost", "to the left of", "left of"), "left"),
    **dict.fromkeys(("right", "rightmost", "to the right of", "right of"), "right"),
    **dict.fromkeys(("top", "upper", "topmost", "highest", "above", "higher up than"), "up"),
    **dict.fromkeys(("bottom", "lower", "bottommost", "lowest", "below", "under"), "down"),
    **dict.fromkeys(("largest", "biggest"), "large"),
    **dict.fromkeys(("smallest", "tiniest"), "small"),
}


def _middle(thing):
    """Middle of the mask's extent, x and y: a reading of its own, from the pixels."""
    ys, xs = np.nonzero(thing.mask)
    return (xs.min() + xs.max()) / 2, (ys.min() + ys.max()) / 2


def _rank(thing, direction):
    x, y = _middle(thing)
    size = np.count_nonzero(thing.mask)
    return {"left": -x, "right": x, "up": -y, "down": y, "large": size, "small": -size}[direction]


def _called(noun, objects):
    if noun == "object":
        return list(range(len(objects)))
    found = [i for i, thing in enumerate(objects) if f" {thing.name}".endswith(f" {noun}")]
    assert found, f"nothing is called {noun!r}"
    return found


def _superlative(noun, direction, objects):
    candidates = _called(noun, objects)
    ranks = [_rank(objects[i], direction) for i in candidates]
    best = max(ranks)
    return [i for i, rank in zip(candidates, ranks, strict=True) if rank == best]


def understand(sentence, objects):
    """Indices of all objects that a sentence fits, without any margin."""
    if match := RELATION.fullmatch(sentence):
        (anchor,) = _called(match[3], objects)
        direction = DIRECTION[match[2]]
        limit = _rank(objects[anchor], direction)
        nouns = [i for i in _called(match[1], objects) if i != anchor]
        return [i for i in nouns if _rank(objects[i], direction) > limit]
    if match := SUFFIX.fullmatch(sentence):
        return _superlative(match[1], match[2], objects)
    if (match := PREFIX.fullmatch(sentence)) and sentence.removeprefix("the ") not in THING_NAMES:
        return _superlative(match[2], DIRECTION[match[1]], objects)
    return _called(sentence.removeprefix("the "), objects)


def _thing(name, x0, y0, x1, y1, height=200, width=200):
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    area = (x1 - x0) * (y1 - y0)
    return SceneObject(name, mask, area, (x0, y0, x1, y1), ((x0 + x1) / 2, (y0 + y1) / 2))


def _sentences(objects, index):
    found = list_expressions(objects, 200, 200, index)
    return {sentence for sentences in found.values() for sentence in sentences}


def test_every_sentence_of_random_scenes_fits_exactly_its_target():
    kinds = set()
    for seed in range(60):
        scene = compose_scene(np.random.default_rng(seed))
        height, width = scene.stuff.shape
        for index in range(len(scene.objects)):
            for kind, sentences in list_expressions(scene.objects, height, width, index).items():
                kinds.add(kind)
                for sentence in sentences:
                    assert understand(sentence, scene.objects) == [index], sentence
    assert kinds == {"name", "position", "size", "relation"}


def test_two_dogs_side_by_side():
    objects = [_thing("dog", 10, 90, 30, 110), _thing("dog", 150, 90, 170, 110)]
    assert _sentences(objects, 0) == {
        "the left dog",
        "the dog on the left",
        "the leftmost dog",
        "the dog furthest to the left",
    }


def test_positions_need_a_clear_margin():
    # 12 % of 200 pixels is 24: the first pair is 24 apart, the second 25.
    close = [_thing("dog", 10, 90, 30, 110), _thing("dog", 34, 90, 54, 110)]
    apart = [_thing("dog", 10, 90, 30, 110), _thing("dog", 35, 90, 55, 110)]
    assert _sentences(close, 0) == set()
    assert "the left dog" in _sentences(apart, 0)


def test_a_name_must_be_unique_and_a_color_may_be_left_out_when_nothing_is_lost():
    one = [_thing("red car", 0, 0, 20, 20), _thing("dog", 0, 50, 20, 70)]
    two = [_thing("red car", 0, 0, 20, 20), _thing("green car", 0, 50, 20, 70)]
    assert {"the red car", "the car"} <= _sentences(one, 0)
    assert "the red car" in _sentences(two, 0)
    assert "the car" not in _sentences(two, 0)


def test_a_palm_tree_is_a_tree_too():
    objects = [_thing("tree", 0, 0, 20, 20), _thing("palm tree", 100, 0, 120, 20)]
    assert "the tree" not in _sentences(objects, 0)
    assert "the left tree" in _sentences(objects, 0)
    assert "the palm tree" in _sentences(objects, 1)


@pytest.mark.parametrize(("side", "fits"), [(23, False), (24, True)])
def test_the_largest_needs_an_area_ratio(side, fits):
    # 1.4 times 20 x 20 is 560: 23 x 24 is 552, 24 x 24 is 576.
    objects = [_thing("dog", 0, 0, side, 24), _thing("dog", 10, 4, 30, 24)]
    assert ("the largest dog" in _sentences(objects, 0)) == fits
    assert ("the smallest dog" in _sentences(objects, 1)) == fits


def test_a_relation_separates_two_namesakes():
    objects = [
        _thing("dog", 10, 90, 30, 110),
        _thing("tree", 90, 90, 110, 110),
        _thing("dog", 170, 90, 190, 110),
    ]
    assert {"the dog to the left of the tree", "the dog left of the tree"} <= _sentences(objects, 0)
    assert "the dog right of the tree" in _sentences(objects, 2)
    # Both dogs left of the tree: the relation says nothing any more.
    objects[2] = _thing("dog", 50, 90, 70, 110)
    assert not any("of the tree" in sentence for sentence in _sentences(objects, 0))


def test_a_diagonal_neighbour_is_on_the_side_that_dominates():
    objects = [_thing("dog", 40, 40, 60, 60), _thing("tree", 100, 90, 120, 110)]
    assert "the dog left of the tree" in _sentences(objects, 0)
    assert "the dog above the tree" not in _sentences(objects, 0)


def test_references_are_few_sorted_and_without_repetition():
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = compose_scene(rng)
        references = draw_references(rng, scene.objects, *scene.stuff.shape)
        indices = [index for index, _ in references]
        assert indices == sorted(set(indices))
        assert len(indices) <= 4
        for _, sentences in references:
            assert 1 <= len(sentences) == len(set(sentences)) <= 3


def test_about_45_percent_of_the_sentences_are_names():
    names = total = 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scene = compose_scene(rng)
        for index, sentences in draw_references(rng, scene.objects, *scene.stuff.shape):
            found = list_expressions(scene.objects, *scene.stuff.shape, index)
            names += sum(sentence in found.get("name", []) for sentence in sentences)
            total += len(sentences)
    assert 0.38 < names / total < 0.52
