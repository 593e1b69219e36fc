"""The rules that map free-form names to classes, in their order, and the levels they make."""

UNMAPPED = "unmapped"
# In the order in which they are tried; a name is mapped by the first rule that knows it.
MAPPING_RULES = (
    "exact",
    "normalised",
    "synonym",
    "wordnet synonym",
    "hyponym",
    "hypernym",
    "part",
    "similarity",
    UNMAPPED,
)
# A level counts what its rule and all rules before it mapped.
LEVELS = MAPPING_RULES[:-1]
SPELLING_RULES = LEVELS[:3]
LEXICAL_RULES = LEVELS[3:7]


def counts_at(rule: str, level: str) -> bool:
    """Whether what a rule mapped counts at a level: the rule is the level's or comes before it.

    Args:
        rule: one of `MAPPING_RULES`; "unmapped" counts nowhere.
        level: one of `LEVELS`.

    Raises:
        ValueError: if either is unknown.
    """
    if rule not in MAPPING_RULES or level not in LEVELS:
        raise ValueError(
            f"Got the rule {rule!r} and the level {level!r}; rules are {', '.join(MAPPING_RULES)}, "
            "and every rule but the last is a level."
        )
    return MAPPING_RULES.index(rule) <= LEVELS.index(level)
