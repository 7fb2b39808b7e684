"""Compare two evaluations of the same questions: task by task, with tests."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable

from lmlab.errors import UserError
from lmlab.evals import Comparison, Row, Task, compare_values, find_kind, make_task, metric_of, pair_rows, read_rows
from lmlab.reports import Note, Page, Section, Table
from lmlab.runs import StageRecord


def compare_evaluations(first: Path, second: Path) -> dict[str, list[Comparison]]:
    """The comparisons of each task that both runs have, by its main figure and by bits per byte; the second minus the
    first.

    Raises:
        UserError: a directory is not that of an evaluation, or holds several; they have no task in common, or one that
            was measured in two ways.
    """
    a, b = _rows_of(first), _rows_of(second)
    common = [name for name in a if name in b]
    if not common:
        raise UserError(
            f"'{first}' and '{second}' have no task in common.",
            f"The first has {', '.join(a)}; the second has {', '.join(b)}.",
        )
    return {name: _compare(name, a[name], b[name]) for name in common}


@dataclass(frozen=True)
class _Answers:
    """The rows of a task, and how it was measured: what the run itself recorded, whatever the task's file says now."""

    task: Task
    rows: list[Row]


def _compare(name: str, first: _Answers, second: _Answers) -> list[Comparison]:
    if first.task != second.task:
        raise UserError(f"Task '{name}' was measured in two ways.", "The task has changed; evaluate both again.")
    task, (a, b) = first.task, pair_rows(first.rows, second.rows)
    left_out = len(first.rows) - len(a), len(second.rows) - len(b)
    clusters = [row["cluster"] for row in a] if all("cluster" in row for row in a) else None
    return [
        replace(
            compare_values(each, task.values(a, each), task.values(b, each), clusters=clusters),
            left_out=left_out,
            lower_is_better=metric_of(task.kind, each).lower_is_better,
        )
        for each in task.compared_metrics(a)
    ]


def _rows_of(run: Path) -> dict[str, _Answers]:
    """The tasks of an evaluation with their rows."""
    found: dict[str, _Answers] = {}
    for directory in [run, *sorted(run.iterdir())] if run.is_dir() else []:
        if not (directory / "tasks").is_dir():
            continue
        for name, said in StageRecord.finished_in(directory).results["tasks"].items():
            if name in found:
                raise UserError(
                    f"'{run}' holds several evaluations of task '{name}'.", f"Name the stage, such as {directory}."
                )
            fields = ("kind", "metric", *find_kind(said["kind"], f"'{directory}'").figure_fields)
            task = make_task({"name": name, "requests": "", **{key: said[key] for key in fields}}, f"'{directory}'")
            found[name] = _Answers(task, list(read_rows([directory / "tasks" / f"{name}.jsonl"])))
    if not found:
        raise UserError(
            f"'{run}' is not the directory of a finished evaluation of tasks.", "Run lmlab eval --tasks first."
        )
    return found


def comparison_table(found: dict[str, list[Comparison]]) -> TerminalTable:
    """For the terminal."""
    table = TerminalTable(*_COLUMNS, box=SIMPLE_HEAD)
    for row in _table_rows(found):
        table.add_row(*(str(cell) for cell in row))
    return table


def write_comparison(found: dict[str, list[Comparison]], first: Path, second: Path, path: Path) -> Path:
    """A page with the same table."""
    told = [
        f"{name}: {'better' if (each.difference.value < 0) == each.lower_is_better else 'worse'} by"
        f" {each.metric.replace('_', ' ')}"
        for name, comparisons in found.items()
        for each in comparisons
        if each.p_value < 0.05
    ]
    note = Note(
        (
            f"At the level of 5 % the second model differs: {'; '.join(told)}."
            if told
            else "No difference is significant at the level of 5 %."
        ),
        "info",
    )
    intro = (
        f"First: {first}. Second: {second}. Differences are the second minus the first on the same questions; the"
        " interval of 95 % is a paired bootstrap over questions, or over groups of those that depend on each other"
        " (such as a chapter's), where a task has some. p is McNemar's exact test where questions are right or wrong"
        " and in no groups, else the bootstrap's; it is not corrected for several tasks."
    )
    section = Section("Differences", [note, Table(_COLUMNS, _table_rows(found))], intro)
    return Page("Comparison of two evaluations", f"{first} and {second}", [section]).write(path)


_COLUMNS = [
    "task",
    "metric",
    "questions",
    "of one run only",
    "first",
    "second",
    "difference",
    "95 % interval",
    "p",
    "right in first only / second only",
]


def _table_rows(found: dict[str, list[Comparison]]) -> list[list[Any]]:
    rows = []
    for name, comparisons in found.items():
        for each in comparisons:
            alone = "" if each.only_first is None else f"{each.only_first} / {each.only_second}"
            gap = each.difference
            error = "" if gap.standard_error is None else f" ± {gap.standard_error:.3f}"
            rows.append(
                [
                    name,
                    each.metric.replace("_", " "),
                    str(each.count),
                    " / ".join(map(str, each.left_out)) if any(each.left_out) else "",
                    f"{each.first:.3f}",
                    f"{each.second:.3f}",
                    f"{gap.value:+.3f}{error}",
                    "" if math.isnan(gap.low) else f"{gap.low:+.3f} to {gap.high:+.3f}",
                    f"{each.p_value:.3f}" if each.p_value >= 0.001 else "< 0.001",
                    alone,
                ]
            )
    return rows
