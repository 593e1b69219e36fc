"""The order of rules and levels."""

import pytest

from rose_d2.vocabulary.vocabulary import LEVELS, MAPPING_RULES, counts_at


def test_a_level_counts_its_rule_and_those_before_it():
    assert [rule for rule in MAPPING_RULES if counts_at(rule, "synonym")] == [
        *("exact", "normalised", "synonym")
    ]
    assert [counts_at("part", level) for level in LEVELS] == [False] * 6 + [True] * 2
    assert all(counts_at(rule, "similarity") for rule in LEVELS)
    assert not any(counts_at("unmapped", level) for level in LEVELS)


@pytest.mark.parametrize(("rule", "level"), [("guess", "exact"), ("exact", "unmapped")])
def test_unknown_rules_and_levels_are_refused(rule, level):
    with pytest.raises(ValueError, match="rules are exact, normalised.*every rule but the last"):
        counts_at(rule, level)
