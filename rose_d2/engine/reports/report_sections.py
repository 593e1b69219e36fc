"""The tables of one dataset in the report: headline numbers, sizes, roles, rules, classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rose_d2.engine.protocol import LEVEL_WORDS, is_referring
from rose_d2.engine.reports.alignment_curve import alignment_curves, curve_file_name
from rose_d2.engine.reports.report_refinement import first_turn, refinement_section
from rose_d2.engine.reports.report_tables import DASH, folded, number, plain, table

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
    refinement = refinement_section(tasks)
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


def _benchmark_tables(tasks: Tasks) -> list[str]:
    parts = []
    boxes_and_masks = {task: tasks[task] for task in ("segm", "bbox") if tasks.get(task)}
    if boxes_and_masks:
        parts.append(_ap_table(boxes_and_masks))
    if tasks.get("panoptic_seg"):
        parts.append(_panoptic_table(tasks["panoptic_seg"]))
    done = {"segm", "bbox", "panoptic_seg", "names"}
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
