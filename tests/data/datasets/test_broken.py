import logging

import pytest

from rose_d2.data.datasets.registration import BrokenAnnotations, strict_annotations


def test_counts_are_reported_once_with_the_first_example(caplog):
    broken = BrokenAnnotations("instances.json")
    broken.add("annotations without a polygon", "annotation 3")
    broken.add("annotations without a polygon", "annotation 9")
    broken.add("annotations of a missing image", "annotation 4")
    with caplog.at_level(logging.WARNING):
        broken.report()
    assert [record.getMessage() for record in caplog.records] == [
        "instances.json: left out 2 annotations without a polygon (first: annotation 3); "
        "1 annotations of a missing image (first: annotation 4)."
    ]


def test_nothing_broken_is_not_mentioned(caplog):
    BrokenAnnotations("instances.json").report()
    assert not caplog.records


def test_strict_stops_at_the_first_one_and_only_there():
    broken = BrokenAnnotations("instances.json")
    with strict_annotations():
        with pytest.raises(ValueError, match="instances.json: annotations without.*annotation 3"):
            broken.add("annotations without a polygon", "annotation 3")
        with strict_annotations(False):
            broken.add("annotations without a polygon", "annotation 5")
    broken.add("annotations without a polygon", "annotation 6")
    assert broken.counts == {"annotations without a polygon": 2}
