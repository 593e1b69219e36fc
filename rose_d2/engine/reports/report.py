"""`report.md`: the numbers of an evaluation as a page to be read, or pasted into an issue."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode

from rose_d2.data.datasets.registration import registered_entries
from rose_d2.engine.protocol import is_referring, level_in_words
from rose_d2.engine.provenance import run_record
from rose_d2.engine.reports.alignment_curve import (
    alignment_curves,
    curve_file_name,
    draw_alignment_curve,
)
from rose_d2.engine.reports.report_refinement import first_turn
from rose_d2.engine.reports.report_sections import dataset_sections, headline_numbers
from rose_d2.engine.reports.report_tables import DASH, folded, number, plain, table
from rose_d2.evaluation.paper_results import (
    BENCHMARKS,
    ROSE,
    ROSE_CSR,
    TABLE_2,
    Benchmark,
    find_benchmark,
    paper_row,
)
from rose_d2.refinement.refinement_evaluation import RESULT as REFINEMENT

_UNNAMED_METRIC = "metric of the referring columns not named in the paper"


def write_report(
    cfg: CfgNode,
    results: Mapping[str, Mapping[str, Mapping[str, float]]],
    folder: str,
    record: Mapping[str, Any] | None = None,
) -> str:
    """Write `report.md` and one `alignment_curve_<dataset>.png` per dataset that has a curve.

    Args:
        cfg: the config of the run.
        results: dataset name -> task -> metric -> number in percent; NaN and None become dashes.
        folder: where to; made if it is not there.
        record: the `run_record` of the run; None makes one without a checkpoint.

    Returns:
        The path of the report.
    """
    record = run_record(cfg, results) if record is None else record
    os.makedirs(folder, exist_ok=True)
    parts = ["# Evaluation of ROSE", _run_line(record)]
    parts += _beside_the_paper(results, record)
    parts += _headlines(results, record)
    for dataset, tasks in results.items():
        protocol = record["protocol"][dataset]
        curves = alignment_curves(first_turn(tasks), with_names=False)
        if curves:
            path = os.path.join(folder, curve_file_name(dataset))
            draw_alignment_curve(path, dataset, curves, protocol["headline_level"])
        parts += dataset_sections(dataset, tasks, protocol, picture=bool(curves))
    parts += _provenance(record)
    path = os.path.join(folder, "report.md")
    with open(path + ".partial", "w", encoding="utf-8") as file:
        file.write("\n\n".join(part for part in parts if part) + "\n")
    os.replace(path + ".partial", path)
    return path


def _run_line(record: Mapping[str, Any]) -> str:
    sha = record["checkpoint"]["sha256"]
    weights = f"checkpoint `{sha[:16]}`" if sha else "checkpoint not recorded"
    version = record["versions"].get("rose_d2", "not installed")
    return (
        f"rose\\_d2 {version}, {weights}, config `{record['config_hash']}`. All scores are "
        "percentages. `results.json` beside this page has every number unrounded."
    )


def _beside_the_paper(results: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    title = "## Beside the paper's Table 2"
    ours = {name: find_benchmark(name) for name in results}
    if not any(ours.values()):
        return [title, "None of the datasets of the paper's Table 2 was evaluated."]
    rose, refined = paper_row(ROSE), paper_row(ROSE_CSR)
    is_refined = any(REFINEMENT in tasks for tasks in results.values())
    rows, notes = [], []
    for benchmark in BENCHMARKS:
        name = benchmark.dataset
        size = _size_cell(name, record["dataset_sizes"]) if name in results else DASH
        tasks = results.get(name, {})
        scores = [_score_cell(turn, benchmark) for turn in (first_turn(tasks), tasks)]
        cells = [benchmark.title, _metric_title(benchmark), *scores[: 1 + is_refined], size]
        rows.append([*cells, number(rose.value(name), 1), number(refined.value(name), 1)])
    header = ["benchmark", "metric of ours", "**ours**"]
    header += [*["ours, refined"][:is_refined], "images or sentences"]
    header += [f"paper's {ROSE}", f"paper's {ROSE_CSR}"]
    partial = [name for name in results if ours[name] and not _is_whole(name, record)]
    if partial:
        notes.append(
            "**Not comparable:** these datasets do not have the size of the published split: "
            + ", ".join(map(plain, partial))
            + "."
        )
    notes += [
        f"The paper's columns are as printed in its Table 2; {_UNNAMED_METRIC} (\\*), cIoU is the "
        "usual reading. Ours are under the protocol given with each dataset; the paper does not "
        f"say how it maps generated names to classes. {ROSE_CSR} chooses what to refine with the "
        "ground truth (paper, section 6.1), and so does ours, refined; ours uses none."
    ]
    return [title, table(header, rows, texts=2), *notes, _other_methods()]


def _score_cell(tasks: Mapping[str, Mapping[str, float]], benchmark: Benchmark) -> str:
    key = benchmark.metric.split()[0]
    per_ref = tasks.get(f"{benchmark.task}_per_ref")
    if per_ref and benchmark.task not in tasks:
        return f"{number(per_ref.get(key))} (per reference)"
    return number(tasks.get(benchmark.task, {}).get(key))


def _metric_title(benchmark: Benchmark) -> str:
    return benchmark.metric + ("" if benchmark.is_metric_named else " \\*")


def _size_cell(name: str, sizes: Mapping[str, int]) -> str:
    published = _published_size(name)
    size = sizes.get(name)
    if published is None or size == published:
        return str(size)
    return f"{size} of {published}"


def _is_whole(name: str, record: Mapping[str, Any]) -> bool:
    return _published_size(name) in (None, record["dataset_sizes"].get(name))


def _published_size(name: str) -> int | None:
    """Published number of items of a split: sentences for referring data, else images."""
    entry = registered_entries().get(name)
    if entry is None or entry.num_items is not None:
        return None if entry is None else entry.num_items
    return None if entry.metadata.get("task") == "referring" else entry.num_images


def _other_methods() -> str:
    header = ["method", *(f"{b.title}{'' if b.is_metric_named else ' *'}" for b in BENCHMARKS)]
    rows = [[row.method, *(number(value, 1) for value in row.values)] for row in TABLE_2]
    notes = [f"- {row.method}: {row.note}" for row in TABLE_2 if row.note]
    body = "\n\n".join(
        [
            table([title.replace("*", "\\*") for title in header], rows),
            f"\\* {_UNNAMED_METRIC}.",
            "\n".join(notes),
        ]
    )
    return folded("The paper's Table 2 as printed, all methods", body)


def _headlines(results: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    rows = []
    for dataset, tasks in results.items():
        protocol = record["protocol"][dataset]
        level = "no class is named" if is_referring(tasks) else _level_cell(protocol)
        size = str(record["dataset_sizes"].get(dataset, DASH))
        for _, title, score in headline_numbers(tasks):
            rows.append([plain(dataset), title, level, number(score), size])
    if not rows:
        return []
    header = ["dataset", "metric", "level", "score", "images or sentences"]
    return ["## Headline numbers", table(header, rows, texts=3)]


def _level_cell(protocol: Mapping[str, Any]) -> str:
    given = "; class candidates given" if protocol["candidates"] else ""
    return level_in_words(protocol["headline_level"]) + given


def _provenance(record: Mapping[str, Any]) -> list[str]:
    rows = [[plain(name), plain(version)] for name, version in record["versions"].items()]
    checkpoint = record["checkpoint"]
    lines = [
        f"- config hash: `{record['config_hash']}`",
        f"- checkpoint SHA-256: `{checkpoint['sha256'] or 'not recorded'}`",
    ]
    body = "\n".join(lines) + "\n\n" + table(["package", "version"], rows, texts=2)
    return [folded("What the numbers were made with", body)]
