import pytest

from rose_d2.prompts.instructions import NOTHING_FOUND, counting_response


def test_the_papers_sentence():
    names = ["person"] * 5 + ["bicycle"] * 2 + ["car"] * 4 + ["truck"] * 2 + ["umbrella"]
    assert counting_response(names) == (
        "There are 5 person, 2 bicycle, 4 car, 2 truck, 1 umbrella in this image."
    )


def test_names_keep_the_order_of_first_appearance():
    assert counting_response(["dog", "cat", "dog"]) == "There are 2 dog, 1 cat in this image."
    assert counting_response(["cat", "dog", "dog"]) == "There are 1 cat, 2 dog in this image."


def test_cap_keeps_the_most_frequent_names_in_their_order():
    names = ["sky", "dog", "dog", "cat", "car", "car"]
    assert counting_response(names, max_names=2) == "There are 2 dog, 2 car in this image."
    # sky, cat tie with one each: the earlier one stays.
    assert counting_response(names, max_names=3) == "There are 1 sky, 2 dog, 2 car in this image."
    assert counting_response(names, max_names=4) == counting_response(names)


def test_no_target_gives_the_fixed_sentence():
    assert counting_response([], max_names=3) == NOTHING_FOUND


def test_a_cap_below_one_is_refused():
    with pytest.raises(ValueError, match="MAX_COUNTED_NAMES"):
        counting_response(["dog"], max_names=0)
