"""The paper's ablation tables, and what was measured of them here, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any

import yaml


@dataclass(frozen=True)
class Column:
    """One number of every row: dataset, task and metric in results.json."""

    title: str
    dataset: str
    task: str
    metric: str

    def read(self, results: Mapping[str, Any]) -> float | None:
        """The number; None where the run has none.

        Args:
            results: of results.json: dataset -> task -> metric -> number.
        """
        return results.get(self.dataset, {}).get(self.task, {}).get(self.metric)


@dataclass(frozen=True)
class Row:
    """One experiment.

    Attributes:
        name: as in the paper.
        config: name of a file in configs/ablations, without ".yaml".
        paper: what the paper prints, one number a column; empty for an experiment of ours.
    """

    name: str
    config: str
    paper: tuple[float, ...] = ()


@dataclass(frozen=True)
class Table:
    """An ablation.

    Attributes:
        title: says what differs between the rows.
        columns: at the paper's size.
        small_columns: of the small setting; empty where there is none.
        rows: in the paper's order.
        only_small: it has no configs of the paper's size.
    """

    title: str
    columns: tuple[Column, ...]
    small_columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    only_small: bool = False


@lru_cache(maxsize=1)
def paper_tables() -> dict[str, Table]:
    """The table `paper_tables.yaml` beside this file, by name."""
    file = resources.files("rose_d2.reports") / "paper_tables.yaml"
    return {name: _table(entry) for name, entry in yaml.safe_load(file.read_text("utf-8")).items()}


def _table(entry: Mapping[str, Any]) -> Table:
    columns = tuple(Column(**column) for column in entry["columns"])
    small = tuple(
        Column(column.title.replace("ADE20K", "clip-art").replace("COCO", "clip-art"),
               dataset, column.task, column.metric)
        for column, dataset in zip(columns, entry.get("small_datasets", ()))
    )  # fmt: skip
    rows = tuple(
        Row(row["name"], row["config"], tuple(row.get("paper", ()))) for row in entry["rows"]
    )
    return Table(entry["title"], columns, small, rows, entry.get("only_small", False))


def table_in_markdown(
    table: Table, columns: Sequence[Column], measured: Mapping[str, Sequence[Mapping[str, Any]]]
) -> str:
    """A table of means over seeds, with their standard deviations, beside the paper's numbers.

    Args:
        table: of `paper_tables`.
        columns: its columns, or its small ones.
        measured: config of a row -> the `results` of results.json, one a seed.
    """
    printed = any(row.paper for row in table.rows)
    head = ["", *(column.title for column in columns), "seeds"]
    head += [f"paper: {column.title}" for column in table.columns] if printed else []
    lines = [head, ["---"] * len(head)]
    for row in table.rows:
        runs = measured.get(row.config, ())
        values = [[column.read(results) for results in runs] for column in columns]
        ours = [mean_and_spread([v for v in numbers if v is not None]) for numbers in values]
        lines.append([row.name, *ours, str(len(runs)), *(f"{value:.1f}" for value in row.paper)])
    rendered = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"{table.title}\n\n{rendered}\n".replace("<", "`<").replace(">", ">`")


def mean_and_spread(values: Sequence[float]) -> str:
    """For example "37.2 ± 0.4"; the spread is the standard deviation, of two or more values."""
    if not values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
