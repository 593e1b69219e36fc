"""`report.md`: the numbers of an evaluation as a page to be read, or pasted into an issue."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.config import CfgNode

from rose_d2.data.build import LEFT_OUT
from rose_d2.data.datasets.registration import registered_entries
from rose_d2.files import write_text
from rose_d2.refinement.evaluation import RESULT, how_chosen
from rose_d2.refinement.evaluation import RESULT as REFINEMENT
from rose_d2.reports.curve import alignment_curves, curve_file_name, draw_alignment_curve
from rose_d2.reports.paper_results import (
    BENCHMARKS,
    ROSE,
    ROSE_CSR,
    TABLE_2,
    Benchmark,
    find_benchmark,
    paper_row,
)
from rose_d2.reports.record import LEVEL_WORDS, is_referring, level_in_words, run_record
from rose_d2.structures.segments import SITUATIONS

_UNNAMED_METRIC = "metric of the referring columns not named in the paper"
Metrics = Mapping[str, float]
Tasks = Mapping[str, Metrics]
# Task -> headline metric and its title.
_HEADLINES = {
    "bbox": ("AP", "AP (boxes)"),
    "segm": ("AP", "AP (masks)"),
    "sem_seg": ("mIoU", "mIoU"),
    "panoptic_seg": ("PQ", "PQ"),
}
_PER_CLASS = ("segm", "bbox", "sem_seg", "panoptic_seg")
_AP = ("AP", "AP50", "AP75")
_AP_SIZES = {"APs": "small", "APm": "medium", "APl": "large"}
_PANOPTIC_ROWS = {"all": "", "things": "_th", "stuff": "_st"}
_ROLES = ("recall-small", "recall-medium", "recall-large", "recall-stuff", "recall")
_RULE = "rule-"
_EXPLAINED = {
    "IoU_found": "mean IoU of the objects found",
    "IoU_all": "mean IoU of all objects, 0 without a prediction",
    "recall": "objects found",
    "name_exact": "objects found under exactly the right name",
    "name_normalised": "objects found under the right name up to spelling",
    "name_class": "objects found under the right class",
    "name_similarity": "mean text similarity (cosine times 100) of the generated and the true name",
    "no_object": "labelled pixels without a prediction",
    "unmapped": "predicted mask pixels whose name fits no class",
    "P@answer_patch": "answers from a patch at the centre of the target",
}
DASH = "–"
_SPECIAL = str.maketrans({character: f"\\{character}" for character in "\\|`*_[]#~"})
_BEFORE, _GAIN = "_before", "_gain"


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
    write_text(path, "\n\n".join(part for part in parts if part) + "\n")
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


def headline_numbers(tasks: Tasks) -> list[tuple[str, str, float | None]]:
    """The numbers a dataset is known by.

    Args:
        tasks: task -> metric -> number.

    Returns:
        (task, title, score), one per scored task; without refinement.
    """
    found = []
    for task, metrics in first_turn(tasks).items():
        if task in _HEADLINES:
            metric, title = _HEADLINES[task]
            found.append((task, title, metrics.get(metric)))
        elif is_referring([task]) and not task.endswith("_levels"):
            metric = "cIoU" if "cIoU" in metrics else next(iter(metrics), "")
            title = metric + (", per reference" if task.endswith("_per_ref") else "")
            found.append((task, title, metrics.get(metric)))
    return found


def dataset_sections(
    dataset: str, tasks: Tasks, protocol: Mapping[str, Any], picture: bool
) -> list[str]:
    """Everything the report says about one dataset, as Markdown parts.

    Args:
        dataset: registered name.
        tasks: task -> metric -> number.
        protocol: of `dataset_protocol`.
        picture: whether the picture of the alignment curve lies beside the report.
    """
    parts = [f"## {plain(dataset)}", protocol["in_words"]]
    if not any(tasks.values()):
        return [*parts, "There are no results."]
    parts += _left_out_line(tasks.get(LEFT_OUT))
    refinement = refinement_section(tasks, protocol["refinement_box"])
    tasks = first_turn(tasks)
    parts += _benchmark_tables(tasks) + refinement
    names = tasks.get("names", {})
    if names:
        parts += _name_tables(names)
    curves = alignment_curves(tasks)
    if curves:
        parts += _curve(dataset, curves, protocol.get("headline_level", ""), names, picture)
    parts += _class_tables(tasks)
    return [part for part in parts if part]


def _left_out_line(counts: Metrics | None) -> list[str]:
    if not counts:
        return []
    return [
        f"**{counts['samples']:.0f} of {counts['of']:.0f} samples could not be used** and are in "
        "none of these numbers; the log of the evaluation names the first."
    ]


def _benchmark_tables(tasks: Tasks) -> list[str]:
    parts = []
    boxes_and_masks = {task: tasks[task] for task in ("segm", "bbox") if tasks.get(task)}
    if boxes_and_masks:
        parts.append(_ap_table(boxes_and_masks))
    if tasks.get("panoptic_seg"):
        parts.append(_panoptic_table(tasks["panoptic_seg"]))
    done = {"segm", "bbox", "panoptic_seg", "names", LEFT_OUT}
    for task, metrics in tasks.items():
        if task not in done and not task.endswith("_levels") and metrics:
            title = f"**{plain(task)}**\n\n" if task not in _HEADLINES else ""
            parts.append(title + _row_table(_overall(task, metrics)))
    return parts


def _ap_table(tasks: Tasks) -> str:
    sizes = list(_AP_SIZES.values())
    rows = [
        [title, *(number(tasks[task].get(key)) for key in (*_AP, *_AP_SIZES))]
        for task, title in (("segm", "masks"), ("bbox", "boxes"))
        if task in tasks
    ]
    return table(["COCO", *_AP, *(f"AP {size}" for size in sizes)], rows)


def _panoptic_table(metrics: Metrics) -> str:
    rows = [
        [title, *(number(metrics.get(f"{key}{suffix}")) for key in ("PQ", "SQ", "RQ"))]
        for title, suffix in _PANOPTIC_ROWS.items()
    ]
    return table(["panoptic", "PQ", "SQ", "RQ"], rows)


def _row_table(metrics: Metrics) -> str:
    """One row of numbers, with those that need words explained below."""
    header = [plain(key) for key in metrics]
    text = table(header, [[number(value) for value in metrics.values()]], texts=0)
    words = [f"{plain(key)}: {_EXPLAINED[key]}" for key in metrics if key in _EXPLAINED]
    return f"{text}\n\n{'; '.join(words)}." if words else text


def _overall(task: str, metrics: Metrics) -> dict[str, float]:
    """The metrics that are not of one class."""
    if task not in _PER_CLASS:
        return dict(metrics)
    return {key: value for key, value in metrics.items() if "-" not in key}


def _name_tables(names: Metrics) -> list[str]:
    roles = [[number(names.get(key)) for key in _ROLES]] if "recall" in names else []
    quality = {key: value for key, value in names.items() if key not in _ROLES and _RULE not in key}
    rules = {key: value for key, value in names.items() if key.startswith(_RULE)}
    parts = []
    if roles:
        titles = [role.removeprefix("recall-") for role in _ROLES[:-1]]
        parts.append(
            "Recall per super-patch role: share of annotated objects covered by a mask with an "
            "IoU of at least 0.5, whatever its name.\n\n" + table([*titles, "all"], roles, texts=0)
        )
    if quality:
        parts.append("Masks and names of the objects found.\n\n" + _row_table(quality))
    if rules:
        titles = [plain(key.removeprefix(_RULE)) for key in rules]
        shares = [[number(value) for value in rules.values()]]
        parts.append(
            "Share of predictions (%) each mapping rule gave a class; a name goes to the first "
            "rule that knows it.\n\n" + table(titles, shares, texts=0)
        )
    return parts


def _curve(
    dataset: str, curves: Mapping[str, Metrics], headline: str, names: Metrics, picture: bool
) -> list[str]:
    levels = list(dict.fromkeys(level for curve in curves.values() for level in curve))
    rows = []
    for index, level in enumerate(levels):
        title = plain(level) if index == 0 else f"+ {plain(level)}"
        scores = [number(curve.get(level)) for curve in curves.values()]
        is_headline = level == headline
        cells = [title, LEVEL_WORDS.get(level, ""), *scores, number(names.get(f"{_RULE}{level}"))]
        rows.append([f"**{cell}**" if is_headline and cell else cell for cell in cells])
    header = ["level", "adds", *curves, "predictions mapped by it (%)"]
    parts = [
        "Lexical alignment curve: the score when the names of a rule and of all rules before it "
        f"count. {_curve_note(curves, headline in levels)}".strip(),
        table(header, rows, texts=2),
    ]
    if picture:
        parts.append(f"![Lexical alignment curve of {plain(dataset)}]({curve_file_name(dataset)})")
    return parts


def _curve_note(curves: Mapping[str, Metrics], has_headline: bool) -> str:
    notes = ["The headline level is bold."] if has_headline else []
    if "right class" in curves:
        notes.append("Right class: share of the objects found whose name is of their class.")
    return " ".join(notes)


def _class_tables(tasks: Tasks) -> list[str]:
    """One folded table per task with a column per metric."""
    parts = []
    for task in _PER_CLASS:
        by_class: dict[str, dict[str, float]] = {}
        for key, value in tasks.get(task, {}).items():
            metric, dash, name = key.partition("-")
            if dash:
                by_class.setdefault(name, {})[metric] = value
        if by_class:
            metrics = list(dict.fromkeys(m for values in by_class.values() for m in values))
            rows = [
                [plain(name) or DASH, *(number(values.get(metric)) for metric in metrics)]
                for name, values in by_class.items()
            ]
            title = f"Per class, {_HEADLINES[task][1]}: {len(rows)} classes"
            parts.append(folded(title, table(["class", *metrics], rows)))
    return parts


def plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line.

    Args:
        text: any text, for example a class name.
    """
    return html.escape(" ".join(text.split()), quote=False).translate(_SPECIAL)


def number(value: float | None, digits: int = 2) -> str:
    """A number with fixed decimals; a dash where there is none or it is not finite.

    Args:
        value: in percent, as the evaluators report.
        digits: decimals.
    """
    if value is None or not math.isfinite(value):
        return DASH
    return f"{value:.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """A Markdown table.

    Args:
        header: one title per column.
        rows: cells, Markdown already; a missing last cell is empty.
        texts: the first so many columns are texts, the others numbers and aligned right.
    """
    rules = [":--" if column < texts else "--:" for column in range(len(header))]
    lines = [header, rules, *([*row, *[""] * (len(header) - len(row))] for row in rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def folded(summary: str, body: str) -> str:
    """A part that is closed until the reader opens it.

    Args:
        summary: plain text of its title.
        body: Markdown.
    """
    title = html.escape(" ".join(summary.split()), quote=False)
    return f"<details>\n<summary>{title}</summary>\n\n{body}\n\n</details>"


def first_turn(tasks: Tasks) -> dict[str, Mapping[str, float]]:
    """The results without refinement, under the names they have when it is off.

    Args:
        tasks: task -> metric -> number of one dataset, see `RefinementEvaluator`.
    """
    refined = {task.removesuffix(_BEFORE) for task in tasks if task.endswith(_BEFORE)}
    plain_tasks = {
        task: metrics
        for task, metrics in tasks.items()
        if task != RESULT and not task.endswith((_BEFORE, _GAIN)) and task not in refined
    }
    return {task: tasks[task + _BEFORE] for task in sorted(refined)} | plain_tasks


def refinement_section(tasks: Tasks, box: str) -> list[str]:
    """Before, after and gain, and what became of the refined regions, as Markdown parts.

    Args:
        tasks: task -> metric -> number of one dataset; without refinement there are no parts.
        box: TEST.REFINEMENT.BOX.
    """
    if RESULT not in tasks:
        return []
    uses_truth = not any("referring" in task for task in tasks)
    rows = [
        [plain(task.removesuffix(_GAIN)), plain(metric)]
        + [number(tasks[name].get(metric)) for name in _turns(task.removesuffix(_GAIN))]
        for task, gains in tasks.items()
        if task.endswith(_GAIN)
        for metric in gains
        if "-" not in metric
    ]
    return [
        f"### Refinement ({how_chosen(uses_truth, box)})",
        table(["task", "metric", "before", "after", "gain"], rows, texts=2),
        _regions_table(tasks[RESULT]),
    ]


def _turns(task: str) -> tuple[str, str, str]:
    return task + _BEFORE, task, task + _GAIN


def _regions_table(metrics: Mapping[str, float]) -> str:
    """One row per situation and one for all regions."""
    rows = [
        [title or "all", number(metrics.get(f"number{suffix}"), 0)]
        + [number(metrics.get(f"mean_iou_{when}{suffix}")) for when in ("before", "after")]
        for title, suffix in (*((name, f"-{name}") for name in SITUATIONS), ("", ""))
    ]
    shares = (
        f"Of all refined regions {number(metrics.get('share_better'))} % lie better on their "
        f"target than before and {number(metrics.get('share_worse'))} % worse; "
        f"{number(metrics.get('name_corrected'))} % of the misnamed ones got the right class."
    )
    header = ["situation", "regions", "mean IoU before", "mean IoU after"]
    return table(header, rows) + "\n\n" + shares
