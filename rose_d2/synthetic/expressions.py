"""Referring expressions that are true of exactly one thing of a scene, with a clear margin.

Four kinds: the name alone, the position, the size, and the relation to another thing. Positions
compare both box centres and centroids, so that no reading of "the middle of a thing" changes the
answer.
"""

import itertools
from collections.abc import Sequence

import numpy as np

from rose_d2.synthetic.scene import SceneObject

MAX_REFERENCES = 4


SENTENCE_COUNT_WEIGHTS = (0.4, 0.4, 0.2)


# Drawn per sentence among the kinds that fit and are not used up. There is one name but there are
# many phrasings of the rest, so these weights give about 45 % names.
KIND_WEIGHTS = {"name": 0.72, "position": 0.12, "size": 0.07, "relation": 0.09}


POSITION_MARGIN = 0.12


RIVAL_MARGIN = 0.04


AREA_RATIO = 1.4


BOX_AREA_RATIO = 1.1


# (axis, sign): the first side means smaller coordinates along the axis.
SIDES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}


PAIR_PHRASES = {
    "left": ("the left {}", "the {} on the left"),
    "right": ("the right {}", "the {} on the right"),
    "top": ("the top {}", "the upper {}"),
    "bottom": ("the bottom {}", "the lower {}"),
}


EXTREME_PHRASES = {
    "left": ("the leftmost {}", "the {} furthest to the left"),
    "right": ("the rightmost {}", "the {} furthest to the right"),
    "top": ("the topmost {}", "the highest {}"),
    "bottom": ("the bottommost {}", "the lowest {}"),
}


LARGEST_PHRASES = ("the largest {}", "the biggest {}")


SMALLEST_PHRASES = ("the smallest {}", "the tiniest {}")


RELATION_PHRASES = {
    "left": ("the {} to the left of the {}", "the {} left of the {}"),
    "right": ("the {} to the right of the {}", "the {} right of the {}"),
    "top": ("the {} above the {}", "the {} higher up than the {}"),
    "bottom": ("the {} below the {}", "the {} under the {}"),
}


class _SceneView:
    """The questions that the four kinds of expressions ask about a scene."""

    def __init__(self, objects: Sequence[SceneObject], height: int, width: int) -> None:
        self.objects = objects
        self.sides = (width, height)

    def rivals(self, thing: SceneObject, noun: str) -> list[SceneObject]:
        """The other things that a noun fits: a palm tree is a tree, a red car is a car."""
        return [
            other
            for other in self.objects
            if other is not thing and (other.name == noun or other.name.endswith(f" {noun}"))
        ]

    def is_unique(self, thing: SceneObject) -> bool:
        return not self.rivals(thing, thing.name)

    def lead(self, thing: SceneObject, other: SceneObject, side: str) -> float:
        """How far a thing lies beyond another towards a side, as a share of the image's side."""
        axis, sign = SIDES[side]
        by_box = sign * (thing.box_centre[axis] - other.box_centre[axis])
        by_mass = sign * (thing.centroid[axis] - other.centroid[axis])
        return min(by_box, by_mass) / self.sides[axis]

    def is_extreme(self, thing: SceneObject, rivals: Sequence[SceneObject], side: str) -> bool:
        return all(self.lead(thing, rival, side) > POSITION_MARGIN for rival in rivals)

    def stands(self, thing: SceneObject, anchor: SceneObject, side: str) -> bool:
        """Whether a thing lies clearly, and mainly, on one side of another."""
        axis, _ = SIDES[side]
        along = abs(thing.box_centre[axis] - anchor.box_centre[axis])
        across = abs(thing.box_centre[1 - axis] - anchor.box_centre[1 - axis])
        return self.lead(thing, anchor, side) > POSITION_MARGIN and along > across


def _larger(thing: SceneObject, rival: SceneObject) -> bool:
    return thing.area > AREA_RATIO * rival.area and thing.box_area > BOX_AREA_RATIO * rival.box_area


def _name_expressions(view: _SceneView, thing: SceneObject) -> list[str]:
    nouns = dict.fromkeys((thing.name, thing.object_name))
    return [f"the {noun}" for noun in nouns if not view.rivals(thing, noun)]


def _position_expressions(view: _SceneView, thing: SceneObject) -> list[str]:
    found = []
    others = [other for other in view.objects if other is not thing]
    rivals = view.rivals(thing, thing.name)
    for side in SIDES:
        if rivals and view.is_extreme(thing, rivals, side):
            pair = PAIR_PHRASES[side] if len(rivals) == 1 else ()
            found += [phrase.format(thing.name) for phrase in (*pair, *EXTREME_PHRASES[side])]
        if len(others) >= 2 and view.is_extreme(thing, others, side):
            found += [phrase.format("object") for phrase in EXTREME_PHRASES[side]]
    return found


def _size_expressions(view: _SceneView, thing: SceneObject) -> list[str]:
    found = []
    others = [other for other in view.objects if other is not thing]
    for rivals, noun in ((view.rivals(thing, thing.name), thing.name), (others, "object")):
        if not rivals or (noun == "object" and len(rivals) < 2):
            continue
        if all(_larger(thing, rival) for rival in rivals):
            found += [phrase.format(noun) for phrase in LARGEST_PHRASES]
        if all(_larger(rival, thing) for rival in rivals):
            found += [phrase.format(noun) for phrase in SMALLEST_PHRASES]
    return found


def _relation_expressions(view: _SceneView, thing: SceneObject) -> list[str]:
    found = []
    rivals = view.rivals(thing, thing.name)
    anchors = [o for o in view.objects if o is not thing and view.is_unique(o)]
    for anchor, (side, (axis, _)) in itertools.product(anchors, SIDES.items()):
        if not view.stands(thing, anchor, side):
            continue
        opposite = next(s for s, (a, _) in SIDES.items() if a == axis and s != side)
        if all(view.lead(rival, anchor, opposite) > RIVAL_MARGIN for rival in rivals):
            found += [phrase.format(thing.name, anchor.name) for phrase in RELATION_PHRASES[side]]
    return found


EXPRESSION_KINDS = {
    "name": _name_expressions,
    "position": _position_expressions,
    "size": _size_expressions,
    "relation": _relation_expressions,
}


def list_expressions(
    objects: Sequence[SceneObject], height: int, width: int, index: int
) -> dict[str, list[str]]:
    """Every expression that is true of one thing and of no other.

    Args:
        objects: all things of the scene.
        height: rows of the image.
        width: columns of the image.
        index: which thing.

    Returns:
        Kind ("name", "position", "size", "relation") -> expressions; kinds without any are absent.
    """
    view = _SceneView(objects, height, width)
    found = {kind: list_kind(view, objects[index]) for kind, list_kind in EXPRESSION_KINDS.items()}
    return {kind: expressions for kind, expressions in found.items() if expressions}


def _draw_sentences(rng: np.random.Generator, expressions: dict[str, list[str]]) -> list[str]:
    wanted = 1 + int(rng.choice(len(SENTENCE_COUNT_WEIGHTS), p=SENTENCE_COUNT_WEIGHTS))
    remaining = {kind: list(sentences) for kind, sentences in expressions.items()}
    drawn: list[str] = []
    while remaining and len(drawn) < wanted:
        weights = np.asarray([KIND_WEIGHTS[kind] for kind in remaining])
        kind = list(remaining)[int(rng.choice(len(remaining), p=weights / weights.sum()))]
        drawn.append(remaining[kind].pop(int(rng.integers(len(remaining[kind])))))
        if not remaining[kind]:
            del remaining[kind]
    return drawn


def draw_references(
    rng: np.random.Generator, objects: Sequence[SceneObject], height: int, width: int
) -> list[tuple[int, list[str]]]:
    """Chooses which things of a scene are referred to, and how.

    Args:
        rng: the scene's generator.
        objects: all things of the scene.
        height: rows of the image.
        width: columns of the image.

    Returns:
        Up to `MAX_REFERENCES` pairs (index of the thing, one to three different sentences), in
        the order of the index. Things that no expression singles out are left out.
    """
    names = [thing.name for thing in objects]
    # Things with namesakes first: only they need more than their name.
    order = sorted(
        (int(i) for i in rng.permutation(len(objects))), key=lambda i: names.count(names[i]) == 1
    )
    references = []
    for index in order:
        expressions = list_expressions(objects, height, width, index)
        if expressions and len(references) < MAX_REFERENCES:
            references.append((index, _draw_sentences(rng, expressions)))
    return sorted(references)
