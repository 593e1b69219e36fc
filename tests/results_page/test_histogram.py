import re

from rose_d2.reports.page import score_histogram


def bars(scores):
    """(range of the bar, its count, its height) of bars that are not empty."""
    pattern = r'height="([\d.]+)"><title>(\d+ to \d+) %: (\d+)</title>'
    found = re.findall(pattern, score_histogram(scores))
    assert len(found) == 20
    return [(span, int(count), float(height)) for height, span, count in found if int(count)]


def test_counts_and_heights():
    low, high = bars([0.0, 0.04, 0.5])
    assert low[:2] == ("0 to 5", 2)
    assert high[:2] == ("50 to 55", 1)
    assert low[2] == 2 * high[2] > 0


def test_a_perfect_score_is_in_the_last_bar():
    assert bars([1.0])[0][:2] == ("95 to 100", 1)


def test_no_scores():
    assert bars([]) == []
