import numpy as np
import pytest

from rose_d2.data.datasets.refer_files import EXPRESSION_KINDS, expression_kind
from rose_d2.synthetic.expressions import list_expressions
from rose_d2.synthetic.scene import compose_scene


@pytest.mark.parametrize(
    ("sentence", "kind"),
    [
        ("the dog", "name"),
        ("woman in a bright red coat", "name"),
        ("the topping of the pizza", "name"),
        ("the left dog", "position"),
        ("the dog furthest to the left", "position"),
        ("Guy on the RIGHT", "position"),
        ("the upper tree", "position"),
        ("the biggest object", "size"),
        ("tall man in the middle", "size"),
        ("the dog to the left of the cat", "relation"),
        ("the largest cup next to the plate", "relation"),
        ("the dog higher up than the cat", "relation"),
        ("man behind the bench", "relation"),
    ],
)
def test_the_words_tell_the_kind(sentence, kind):
    assert expression_kind(sentence) == kind


def test_clip_art_expressions_have_the_kind_they_were_made_as():
    seen = set()
    for seed in range(20):
        scene = compose_scene(np.random.default_rng(seed))
        for index in range(len(scene.objects)):
            made = list_expressions(scene.objects, *scene.stuff.shape, index)
            seen |= made.keys()
            for kind, sentences in made.items():
                assert {expression_kind(sentence) for sentence in sentences} == {kind}
    assert seen == set(EXPRESSION_KINDS)
