from pathlib import Path

import pytest

from rose_d2.config.read import read_config
from rose_d2.reports.paper_tables import mean_and_spread, paper_tables, table_in_markdown

ABLATIONS = Path("configs/ablations")


@pytest.mark.parametrize("name", paper_tables())
def test_every_row_has_its_configs_and_every_column_its_number(name):
    table = paper_tables()[name]
    for row in table.rows:
        assert len(row.paper) == len(table.columns) or table.only_small
        folders = [] if table.only_small else [ABLATIONS]
        folders += [ABLATIONS / "small"] if table.small_columns else []
        for folder in folders:
            cfg = read_config(str(folder / f"{row.config}.yaml"), [])
            columns = table.columns if folder == ABLATIONS else table.small_columns
            assert {column.dataset for column in columns} <= set(cfg.DATASETS.TEST)
            gains = any(column.task.endswith("_gain") for column in columns)
            assert gains == cfg.TEST.REFINEMENT.ENABLED


def test_rows_of_a_table_differ_in_what_it_is_about_alone():
    """And no file says more than ten lines over its base."""
    for path in ABLATIONS.rglob("table*.yaml"):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert len(lines) <= 11, path
    small = {
        path.stem: read_config(str(path), ["OUTPUT_DIR", "x"])
        for path in (ABLATIONS / "small").glob("table[34]*.yaml")
    }
    assert small["table3_patch"] == small["table4_without"]
    assert len({cfg.SOLVER.MAX_ITER for cfg in small.values()}) == 1
    assert {tuple(cfg.DATASETS.TRAIN) for cfg in small.values()} == {
        ("clipart_instance_train", "clipart_sem_seg_train")
    }
    units = {(c.MODEL.ROSE.SEGMENT_UNIT, c.MODEL.ROSE.CLASSIFY_UNIT) for c in small.values()}
    assert len(units) == 4


def test_a_table_shows_means_spreads_and_the_paper():
    table = paper_tables()["table3"]

    def results(miou, ap):
        return {
            "clipart_sem_seg_val": {"sem_seg": {"mIoU": miou}},
            "clipart_instance_val": {"segm": {"AP": ap}},
        }

    measured = {
        "table3_patch": [results(50.0, 30.0), results(52.0, None)],
        "table3_region": [results(20.04, 1.0)],
    }
    text = table_in_markdown(table, table.small_columns, measured)
    assert "| clip-art mIoU | clip-art AP | seeds | paper: ADE20K mIoU | paper: COCO AP |" in text
    assert "| patch-wise, decoded | 51.0 ± 1.4 | 30.0 | 2 | 47.5 | 29.2 |" in text
    assert "| patch-wise, along `<REGION>` | 20.0 | 1.0 | 1 | 21.5 | 4.4 |" in text
    assert "| vanilla stack, along `<SEG>` | - | - | 0 | 37.2 | 23.2 |" in text


def test_one_value_has_no_spread():
    assert [mean_and_spread(v) for v in ([], [1.0], [1.0, 3.0])] == ["-", "1.0", "2.0 ± 1.4"]
