"""Segments keep their masks small; a refinement request holds together or says why not."""

import dataclasses
import pickle

import numpy as np
import pytest

from rose_d2.structures.segments import RefinementRequest, Segment

BOX = (0, 30, 500, 999)


@pytest.mark.parametrize(
    "arguments", [("mask", BOX), ("missed", (5, 7, 5, 7)), ("category", BOX, "dog")]
)
def test_a_request_keeps_what_it_was_given(arguments):
    request = RefinementRequest(*arguments)
    assert (request.situation, request.box) == arguments[:2]
    assert request.wrong_category == ("dog" if len(arguments) == 3 else None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("repair", BOX), "choose one of"),
        (("mask", (1, 2, 3)), "integers from 0 to 999"),
        (("mask", (0.1, 0.2, 0.3, 0.4)), "integers from 0 to 999"),
        (("mask", (0, 0, 1000, 5)), "integers from 0 to 999"),
        (("missed", (7, 0, 5, 5)), "x1 <= x2"),
        (("missed", None), "got None"),
        (("category", BOX), "needs the name to be corrected"),
        (("category", BOX, " "), "needs the name to be corrected"),
        (("mask", BOX, "dog"), "takes no name"),
        (("missed", BOX, ""), "takes no name"),
        (("missed", BOX, None, "the dog"), "expression 'the dog'"),
        (("category", BOX, "cat", "the dog"), "expression 'the dog'"),
        (("mask", BOX, None, " "), "expression ' '"),
    ],
)
def test_requests_that_make_no_sense_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RefinementRequest(*arguments)


def test_a_segment_keeps_a_bit_a_pixel_of_its_box():
    mask = np.zeros((3000, 4000), dtype=bool)
    mask[100:200, 300:443] = np.arange(143) % 3 > 0
    segment = Segment(mask, "dog", 0.9)
    assert np.array_equal(segment.mask, mask)
    assert len(pickle.dumps(segment)) < 100 * 143 / 8 + 1000
    copied = dataclasses.replace(pickle.loads(pickle.dumps(segment)), category_name="cat")
    assert np.array_equal(copied.mask, mask) and copied.category_name == "cat"
    with pytest.raises(ValueError, match="read-only"):
        segment.mask[:] = False
    empty = Segment(np.zeros((2, 3), dtype=bool), "dog", 0.9)
    assert empty.mask.shape == (2, 3) and not empty.mask.any()
    with pytest.raises(TypeError, match="mask"):
        Segment(category_name="dog", score=0.9)
