import pytest

from rose_d2.reports.paper_results import (
    BENCHMARKS,
    ROSE,
    ROSE_CSR,
    TABLE_2,
    find_benchmark,
    paper_row,
)


@pytest.mark.parametrize(
    ("method", "dataset", "value"),
    [
        (ROSE, "ade20k_sem_seg_val", 43.2),
        (ROSE, "coco_2017_val", 32.4),
        (ROSE, "refcoco_unc_val", 78.4),
        (ROSE, "refcocog_umd_test", 73.6),
        (ROSE_CSR, "ade20k_sem_seg_val", 51.6),
        (ROSE_CSR, "refcoco+_unc_testB", 85.1),
        ("PSALM", "refcoco+_unc_testA", 75.5),
        ("Mask2former", "coco_2017_val", 50.1),
        ("Mask2former", "refcoco_unc_val", None),
        ("GSVA-13B", "refcocog_umd_val", 75.7),
    ],
)
def test_values_are_those_of_the_paper(method, dataset, value):
    assert paper_row(method).value(dataset) == value


def test_table_is_complete():
    assert len(TABLE_2) == 15
    assert all(len(row.values) == len(BENCHMARKS) == 10 for row in TABLE_2)
    # A misplaced cell changes a column's sum. These were added up from the printed table.
    sums = [sum(row.values[column] or 0 for row in TABLE_2) for column in range(10)]
    expected = [291.7, 185.7, 736.8, 760.0, 708.2, 667.9, 707.5, 612.6, 692.4, 700.8]
    assert [round(value, 1) for value in sums] == expected


def test_only_the_referring_metric_is_not_named():
    unnamed = {b.task for b in BENCHMARKS if not b.is_metric_named}
    assert unnamed == {"referring"}
    assert find_benchmark("refcoco_unc_val").metric == "cIoU"
    assert find_benchmark("clipart_instance_val") is None


def test_unknown_row():
    with pytest.raises(ValueError, match="no row 'ROSE-13B'; its rows are Mask2former"):
        paper_row("ROSE-13B")
