import math

import pytest

from rose_d2.reports.report import folded, number, plain, table


@pytest.mark.parametrize(
    ("value", "text"),
    [(31.256, "31.26"), (0.0, "0.00"), (None, "–"), (math.nan, "–"), (math.inf, "–")],
)
def test_number(value, text):
    assert number(value) == text


def test_number_with_as_many_decimals_as_the_paper():
    assert number(87.0, 1) == "87.0"


def test_plain_keeps_markdown_and_html_from_acting():
    assert plain("a|b_c *d*") == "a\\|b\\_c \\*d\\*"
    assert plain("<img src=x>\n`y`") == "&lt;img src=x&gt; \\`y\\`"


def test_table_aligns_numbers_right_and_fills_short_rows():
    assert (
        table(["a", "b", "c"], [["x", "1"]]) == "| a | b | c |\n| :-- | --: | --: |\n| x | 1 |  |"
    )


def test_folded_escapes_its_title_and_leaves_a_line_for_markdown():
    text = folded("a < b", "| x |")
    assert text.startswith("<details>\n<summary>a &lt; b</summary>\n\n| x |")
    assert text.endswith("\n\n</details>")
