import math
from collections import Counter

import numpy as np
import pytest
import torch

from rose_d2.evaluation.names import (
    ObjectMatch,
    mean_name_similarity,
    name_metrics,
    share_of_right_classes,
)
from rose_d2.vocabulary.vocabulary import MAPPING_RULES

EXACT, SYNONYM, UNMAPPED = (MAPPING_RULES.index(r) for r in ("exact", "synonym", "unmapped"))


def test_metrics_do_not_depend_on_the_order():
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 10**6, size=(500, 2)).tolist()
    matches = [ObjectMatch(a, a + b, i % 4, EXACT, 1) for i, (a, b) in enumerate(pixels)]
    assert name_metrics(matches) == name_metrics(matches[::-1])


def test_only_found_objects_have_names():
    found, missed = ObjectMatch(9, 10, 0, SYNONYM, 1), ObjectMatch(4, 10, 1, EXACT, 1)
    metrics = name_metrics([found, missed])
    assert metrics["recall-small"] == 100 and metrics["recall-medium"] == 0
    assert metrics["name_exact"] == 0 and metrics["name_class"] == 100
    assert share_of_right_classes([found, missed], "normalised") == 0
    assert share_of_right_classes([found, missed], "synonym") == 100
    assert math.isnan(share_of_right_classes([missed], "synonym"))


def test_what_no_rule_gave_is_right_at_no_level():
    match = ObjectMatch(9, 10, 0, UNMAPPED, 0)
    assert share_of_right_classes([match], "similarity") == 0


def test_mean_similarity_weighs_by_count_and_not_by_order():
    vectors = {"a": (1.0, 0.0), "b": (0.0, 3.0), "c": (3.0, 4.0)}
    pairs = Counter({("c", "a"): 3, ("b", "b"): 1})

    def embed(names):
        return torch.tensor([vectors[name] for name in names])

    expected = pytest.approx(100 * (3 * 0.6 + 1) / 4)
    assert mean_name_similarity(pairs, embed) == expected
    turned = Counter(dict(reversed(pairs.items())))
    assert mean_name_similarity(turned, embed) == mean_name_similarity(pairs, embed)
