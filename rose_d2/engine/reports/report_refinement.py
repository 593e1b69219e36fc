"""The report's part on refinement: what a second turn changed."""

from __future__ import annotations

from collections.abc import Mapping

from rose_d2.engine.reports.report_tables import number, plain, table
from rose_d2.refinement.refinement_evaluation import (
    CHOSEN_WITH_GROUND_TRUTH,
    CHOSEN_WITHOUT,
    RESULT,
)
from rose_d2.structures.refinement_request import SITUATIONS

Tasks = Mapping[str, Mapping[str, float]]

_BEFORE, _GAIN = "_before", "_gain"


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


def refinement_section(tasks: Tasks) -> list[str]:
    """Before, after and gain, and what became of the refined regions, as Markdown parts.

    Args:
        tasks: task -> metric -> number of one dataset; without refinement there are no parts.
    """
    if RESULT not in tasks:
        return []
    uses_truth = not any("referring" in task for task in tasks)
    chosen = CHOSEN_WITH_GROUND_TRUTH if uses_truth else CHOSEN_WITHOUT
    rows = [
        [plain(task.removesuffix(_GAIN)), plain(metric)]
        + [number(tasks[name].get(metric)) for name in _turns(task.removesuffix(_GAIN))]
        for task, gains in tasks.items()
        if task.endswith(_GAIN)
        for metric in gains
        if "-" not in metric
    ]
    return [
        f"### Refinement ({chosen})",
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
