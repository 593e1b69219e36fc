"""The page is read as its reader would: which number stands in which column."""

import math
from pathlib import Path

import pytest
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog

from rose_d2.config.defaults import add_rose_config
from rose_d2.reports.record import measured_levels
from rose_d2.reports.report import (
    first_turn,
    folded,
    headline_numbers,
    number,
    plain,
    refinement_section,
    table,
    write_report,
)

LEVELS = {"exact": 30.0, "normalised": 31.0, "synonym": 32.5}
SEGM = {"AP": 32.5, "AP50": 50.0, "AP75": math.nan, "APs": 10.0, "APm": 20.0, "APl": 40.0}
NAMES = {
    "IoU_found": 78.0,
    "recall": 90.0,
    "recall-small": 80.0,
    "recall-medium": 91.0,
    "recall-large": 92.0,
    "recall-stuff": math.nan,
    "name_exact": 74.0,
    "rule-exact": 97.0,
    "rule-synonym": 1.0,
    "rule-unmapped": 2.0,
}
INSTANCE = {
    "segm": SEGM | {"AP-red|dog": 12.25, "AP-<b>cat": math.nan},
    "segm_levels": LEVELS,
    "names": NAMES,
}
TASKS = {
    "sem_seg": {"mIoU": 50.0, "IoU-dog": 40.0},
    "sem_seg_before": {"mIoU": 44.0, "IoU-dog": 30.0},
    "sem_seg_gain": {"mIoU": 6.0, "IoU-dog": 10.0},
    "sem_seg_levels_before": {"exact": 43.0, "normalised": 44.0},
    "refinement": {
        "number": 3.0,
        "number-mask": 2.0,
        "number-category": 1.0,
        "number-missed": 0.0,
        "mean_iou_before": 20.0,
        "mean_iou_after": 30.0,
        "share_worse": 33.0,
        "share_better": 67.0,
    },
}
PLAIN = {"sem_seg": {"mIoU": 44.0}, "names": {"recall": 90.0}}


@pytest.fixture
def cfg():
    cfg = get_cfg()
    add_rose_config(cfg)
    return cfg


@pytest.fixture
def register():
    """Register a dataset under a name, also one that exists, with so many items."""
    replaced = {}

    def make(name, size):
        if name in DatasetCatalog.list():
            replaced[name] = DatasetCatalog.pop(name)
        else:
            replaced[name] = None
        DatasetCatalog.register(name, lambda: [{} for _ in range(size)])

    yield make
    for name, load in replaced.items():
        DatasetCatalog.remove(name)
        if load is not None:
            DatasetCatalog.register(name, load)


def cells(text, first):
    """Cells of the table row that begins with `first`."""
    row = next(line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in row.strip("|").replace("\\|", "¦").split("|")]


def test_own_dataset_has_tables_of_its_own(cfg, register, tmp_path):
    register("toy", 7)
    text = Path(write_report(cfg, {"toy": INSTANCE}, str(tmp_path))).read_text("utf-8")
    assert "None of the datasets of the paper's Table 2 was evaluated." in text
    assert "ROSE-7B" not in text
    level = "names count up to the rule “synonym” (the dataset's own synonyms)"
    assert cells(text, "toy") == ["toy", "AP (masks)", level, "32.50", "7"]
    assert cells(text, "masks") == ["masks", "32.50", "50.00", "–", "10.00", "20.00", "40.00"]
    assert cells(text, "80.00") == ["80.00", "91.00", "92.00", "–", "90.00"]
    assert cells(text, "exact") != []
    assert cells(text, "97.00") == ["97.00", "1.00", "2.00"]
    assert "Names were free" in text


def test_curve_stands_as_table_and_picture(cfg, register, tmp_path):
    register("toy", 7)
    text = Path(write_report(cfg, {"toy": INSTANCE}, str(tmp_path))).read_text("utf-8")
    rows = [line for line in text.splitlines() if line.startswith(("| + ", "| **+ "))]
    assert [row.split("|")[3].strip() for row in rows] == ["31.00", "**32.50**"]
    assert "(alignment_curve_toy.png)" in text
    assert (tmp_path / "alignment_curve_toy.png").stat().st_size > 5000


def test_right_names_stand_in_the_table_of_the_curve(cfg, register, tmp_path):
    register("toy", 7)
    tasks = INSTANCE | {"names_levels": dict.fromkeys(LEVELS, 71.5)}
    text = Path(write_report(cfg, {"toy": tasks}, str(tmp_path))).read_text("utf-8")
    assert cells(text, "+ normalised")[2:4] == ["31.00", "71.50"]
    assert "Right class: share of the objects found" in text


def test_classes_are_folded_and_their_names_harmless(cfg, register, tmp_path):
    register("toy", 7)
    text = Path(write_report(cfg, {"toy": INSTANCE}, str(tmp_path))).read_text("utf-8")
    folded = text[text.index("<summary>Per class") :]
    assert cells(folded, "red\\|dog") == ["red¦dog", "12.25"]
    assert cells(folded, "&lt;b&gt;cat") == ["&lt;b&gt;cat", "–"]
    assert "12.25" not in text[: text.index("<summary>Per class")]


def test_paper_stands_beside_ours(cfg, register, tmp_path):
    register("ade20k_sem_seg_val", 2000)
    register("refcoco_unc_testA", 5657)
    results = {
        "ade20k_sem_seg_val": {"sem_seg": {"mIoU": 41.06}},
        "refcoco_unc_testA": {"referring": {"cIoU": 70.123}},
    }
    text = Path(write_report(cfg, results, str(tmp_path))).read_text("utf-8")
    assert cells(text, "ADE20K val")[1:] == ["mIoU", "41.06", "2000", "43.2", "51.6"]
    assert cells(text, "RefCOCO testA")[1:] == ["cIoU \\*", "70.12", "5657", "80.9", "87.7"]
    assert cells(text, "COCO val2017")[1:] == ["AP (masks)", "–", "–", "32.4", "34.4"]
    assert "metric of the referring columns not named in the paper" in text
    assert "paper's ROSE-7B + CSR" in text
    assert "Not comparable" not in text
    assert cells(text, "PSALM")[3] == "83.6"


def test_part_of_a_benchmark_is_not_passed_off_as_the_whole(cfg, register, tmp_path):
    register("coco_2017_val", 100)
    register("refcoco_unc_testB", 10)
    results = {
        "coco_2017_val": {"segm": {"AP": 90.0}},
        "refcoco_unc_testB": {"referring": {"cIoU": 90.0}},
    }
    text = Path(write_report(cfg, results, str(tmp_path))).read_text("utf-8")
    assert cells(text, "COCO val2017")[3] == "100 of 5000"
    assert cells(text, "RefCOCO testB")[3] == "10 of 5095"
    assert "published split: coco\\_2017\\_val, refcoco\\_unc\\_testB." in text


def test_numbers_per_reference_are_labelled(cfg, register, tmp_path):
    register("refcoco_unc_val", 10834)
    cfg.TEST.REFERRING.PROTOCOL = "per_ref"
    results = {"refcoco_unc_val": {"referring_per_ref": {"cIoU": 80.0, "P@0.5": 90.0}}}
    text = Path(write_report(cfg, results, str(tmp_path))).read_text("utf-8")
    assert cells(text, "RefCOCO val")[2] == "80.00 (per reference)"
    assert "| cIoU, per reference |" in text
    assert "no class is named" in text


def test_every_metric_is_somewhere(cfg, register, tmp_path):
    register("toy", 7)
    tasks = {
        "panoptic_seg": {"PQ": 50.1, "SQ": 80.2, "RQ": 60.3, "PQ_th": 45.4, "PQ_st": 71.5},
        "open_panoptic_seg": {"Open PQ": 55.6},
        "names": NAMES | {"name_similarity": 66.7},
        "surprise": {"new metric": 12.8},
    }
    text = Path(write_report(cfg, {"toy": tasks}, str(tmp_path))).read_text("utf-8")
    for value in ("50.10", "80.20", "60.30", "45.40", "71.50", "55.60", "66.70", "12.80"):
        assert f"| {value} |" in text
    assert cells(text, "stuff") == ["stuff", "71.50", "–", "–"]


def test_dataset_without_results(cfg, register, tmp_path):
    register("toy", 7)
    text = Path(write_report(cfg, {"toy": {}}, str(tmp_path))).read_text("utf-8")
    assert "There are no results." in text


def test_same_run_gives_the_same_page(cfg, register, tmp_path):
    register("toy", 7)
    texts = [
        Path(write_report(cfg, {"toy": INSTANCE}, str(tmp_path / name))).read_bytes()
        for name in ("a", "b")
    ]
    assert texts[0] == texts[1]
    assert b".partial" not in texts[0]
    assert not list(tmp_path.glob("*/*.partial"))


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


def test_first_turn_takes_the_results_before_refinement():
    assert first_turn(TASKS) == {
        "sem_seg": TASKS["sem_seg_before"],
        "sem_seg_levels": TASKS["sem_seg_levels_before"],
    }


def test_results_without_refinement_stay_as_they_are():
    assert first_turn(PLAIN) == PLAIN
    assert refinement_section(PLAIN, "target") == []


def test_the_headline_is_the_first_turn():
    assert headline_numbers(TASKS) == [("sem_seg", "mIoU", 44.0)]


def test_levels_are_found_where_refinement_is_on():
    assert measured_levels(TASKS) == ["exact", "normalised"]


def test_the_section_shows_before_after_gain_and_says_what_chose_the_regions():
    title, scores, regions = refinement_section(TASKS, "target")
    assert title == (
        "### Refinement (situations chosen with ground truth; boxes of the targets, as a person "
        "draws them)"
    )
    assert "| sem\\_seg | mIoU | 44.00 | 50.00 | 6.00 |" in scores
    assert "IoU-dog" not in scores
    assert "| mask | 2 |" in regions and "| all | 3 | 20.00 | 30.00 |" in regions
    assert "67.00 % lie better" in regions and "33.00 % worse" in regions


def test_answers_to_expressions_are_all_refined():
    tasks = {"referring_gain": {"cIoU": 1.0}, "referring": {}, "referring_before": {}}
    title = refinement_section(tasks | {"refinement": {}}, "prior")[0]
    assert title == "### Refinement (every answer refined; boxes of the answers)"
