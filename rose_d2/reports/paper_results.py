"""The numbers the ROSE paper prints in its Table 2, to be shown beside ours."""

from __future__ import annotations

from dataclasses import dataclass

ROSE = "ROSE-7B"


ROSE_CSR = "ROSE-7B + CSR"


@dataclass(frozen=True)
class Benchmark:
    """A column of Table 2 and what corresponds to it here.

    Attributes:
        title: benchmark and split.
        metric: as we report it.
        dataset: registered name.
        task: key of our results.
        is_metric_named: whether the paper says which metric its column has.
    """

    title: str
    metric: str
    dataset: str
    task: str
    is_metric_named: bool = True


@dataclass(frozen=True)
class PaperRow:
    """A row of Table 2.

    Attributes:
        method: as printed, without the reference.
        values: one per benchmark of `BENCHMARKS`; None where the paper has a dash.
        note: what makes it another experiment than the others, "" if nothing is known.
    """

    method: str
    values: tuple[float | None, ...]
    note: str = ""

    def value(self, dataset: str) -> float | None:
        """What the paper prints for a registered dataset.

        Args:
            dataset: of a benchmark in `BENCHMARKS`.
        """
        return self.values[[benchmark.dataset for benchmark in BENCHMARKS].index(dataset)]


def _referring(title: str, dataset: str) -> Benchmark:
    return Benchmark(title, "cIoU", dataset, "referring", is_metric_named=False)


def _row(method: str, printed: str, note: str = "") -> PaperRow:
    values = tuple(None if cell == "-" else float(cell) for cell in printed.split())
    assert len(values) == len(BENCHMARKS), f"Table 2 has {len(BENCHMARKS)} columns: {method}"
    return PaperRow(method, values, note)


BENCHMARKS = (
    Benchmark("ADE20K val", "mIoU", "ade20k_sem_seg_val", "sem_seg"),
    Benchmark("COCO val2017", "AP (masks)", "coco_2017_val", "segm"),
    _referring("RefCOCO val", "refcoco_unc_val"),
    _referring("RefCOCO testA", "refcoco_unc_testA"),
    _referring("RefCOCO testB", "refcoco_unc_testB"),
    _referring("RefCOCO+ val", "refcoco+_unc_val"),
    _referring("RefCOCO+ testA", "refcoco+_unc_testA"),
    _referring("RefCOCO+ testB", "refcoco+_unc_testB"),
    _referring("RefCOCOg val(U)", "refcocog_umd_val"),
    _referring("RefCOCOg test(U)", "refcocog_umd_test"),
)


"""The columns of Table 2, in its order; our datasets are the splits the columns usually mean."""


_TRUE_MASKS = "names true masks instead of predicting them on ADE20K (paper, section 4.2)"


_TRUE_CLASSES = "is given the true classes in its prompt (paper, section 4.2)"


TABLE_2 = (
    _row("Mask2former", "57.7 50.1 - - - - - - - -", "specialist model"),
    _row("Painter", "43.4 - - - - - - - - -"),
    _row("SegGPT", "34.4 - - - - - - - - -"),
    _row("Pix2Seq v2", "- 38.2 - - - - - - - -", _TRUE_CLASSES),
    _row("PSALM", "- - 83.6 84.7 81.6 72.9 75.5 70.1 73.8 74.4"),
    _row("Osprey-7B", "29.6 - - - - - - - - -", _TRUE_MASKS),
    _row("LISA-7B", "- - 74.9 79.1 72.3 65.1 70.8 58.1 67.9 70.6"),
    _row("GLaMM-7B", "- - 79.5 83.2 76.9 72.6 78.7 64.6 74.2 74.9"),
    _row("GSVA-7B", "- - 77.2 78.9 73.5 65.9 69.6 59.8 72.7 73.3"),
    _row("GSVA-13B", "- - 79.2 81.7 77.1 70.3 73.8 63.6 75.7 77.0"),
    _row(
        "Ferret-7B",
        "31.8 - 87.5 91.4 82.5 80.8 87.4 73.1 83.9 84.8",
        f"{_TRUE_MASKS}; its referring numbers are Precision@0.5 of boxes "
        "(apple/ml-ferret:ferret/eval/eval_refexp.py)",
    ),
    _row(
        "Ferret-13B",
        "- - 89.5 92.4 84.4 82.8 88.1 75.2 85.8 86.3",
        "its referring numbers are Precision@0.5 of boxes, as Ferret-7B's",
    ),
    _row("VisionLLM-7B", "- 30.6 - - - - - - - -", _TRUE_CLASSES),
    _row(ROSE, "43.2 32.4 78.4 80.9 74.5 70.7 76.1 63.0 73.1 73.6"),
    _row(
        ROSE_CSR,
        "51.6 34.4 87.0 87.7 85.4 86.8 87.5 85.1 85.3 85.9",
        "what to refine is chosen with the ground truth (paper, section 6.1)",
    ),
)


"""All rows in the paper's order."""


def paper_row(method: str) -> PaperRow:
    """Find a row of Table 2.

    Args:
        method: as in `TABLE_2`.

    Raises:
        ValueError: the table has no such row.
    """
    for row in TABLE_2:
        if row.method == method:
            return row
    known = ", ".join(row.method for row in TABLE_2)
    raise ValueError(f"The paper's Table 2 has no row {method!r}; its rows are {known}.")


def find_benchmark(dataset: str) -> Benchmark | None:
    """The column of Table 2 that a registered dataset corresponds to, None if it has none.

    Args:
        dataset: a registered name.
    """
    return next((b for b in BENCHMARKS if b.dataset == dataset), None)
