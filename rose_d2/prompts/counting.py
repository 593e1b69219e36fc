"""The counting sentence every response consists of (section 3.5)."""

from collections import Counter

NOTHING_FOUND = "There is nothing to segment in this image."


def counting_response(names: list[str], max_names: int | None = None) -> str:
    """Say how many objects of each name there are, as the paper does.

    Names stay singular and keep the order in which they first appear (the target builders pass
    them in the order of the dataset's classes). With more than `max_names` different names only
    the most frequent are said, ties going to the earlier name.

    Args:
        names: one name per target, repeated as often as it occurs.
        max_names: most different names to list; None lists all.

    Returns:
        For example "There are 5 person, 2 bicycle in this image."; `NOTHING_FOUND` for no names.

    Raises:
        ValueError: `max_names` below 1.
    """
    if max_names is not None and max_names < 1:
        raise ValueError(
            f"max_names must be at least 1, got {max_names}; "
            "set MODEL.ROSE.MAX_COUNTED_NAMES to a positive number."
        )
    if not names:
        return NOTHING_FOUND
    counts = Counter(names)
    said = {name for name, _ in counts.most_common(max_names)}
    listed = ", ".join(f"{count} {name}" for name, count in counts.items() if name in said)
    return f"There are {listed} in this image."
