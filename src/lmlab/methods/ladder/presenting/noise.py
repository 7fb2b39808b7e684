"""How much the tasks vary between seeds and checkpoints, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.methods.ladder.analysis.variance import (
    correlations,
    largest_run,
    seed_noise,
    signal_to_noise,
    variance,
)
from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.presenting.digits import share
from lmlab.methods.ladder.tables.table import RunTable
from lmlab.methods.ladder.tables.target import TargetError, only_target, score_target
from lmlab.methods.ladder.tables.tasks import Task


def variance_table(
    table: RunTable, tasks: Sequence[Task], target: str | None, last: int
) -> tuple[list[str], list[list[Any]], list[str]]:
    """Columns, rows and notes on noise."""
    run = largest_run(table)
    noise, seeds = variance(run, tasks, last), seed_noise(table, tasks)
    scored = _scored(table, tasks, target)
    by_name = {row.task: row for row in scored}
    columns = [
        "task",
        "loss SD, bits per byte",
        "loss CV, %",
        "accuracy SD, of 1",
        "accuracy CV, %",
        "between runs: loss, %",
        "accuracy, points",
        "step 1, %",
        "step 2, %",
        "chained, %",
        "signal to noise",
    ]
    ratios = signal_to_noise(table, tasks, last)
    rows: list[list[Any]] = []
    for place, (task, each) in enumerate(zip(tasks, noise, strict=True)):
        pair = seeds[task.name] if seeds else (None, None)
        row = by_name.get(task.name)
        shares = [None, None, None] if row is None else [share(row.step_1), share(row.step_2), share(row.relative)]
        rows.append(
            [
                task.title,
                each.loss_sd,
                share(each.loss_cv),
                each.accuracy_sd,
                share(each.accuracy_cv),
                share(pair[0]),
                share(pair[1]),
                *shares,
                float(ratios[place]) if np.isfinite(ratios[place]) else None,
            ]
        )
    count = len(run.ends(run.tokens, last))
    notes = [f"The last {count} checkpoints of {run.name}, of its last tenth."]
    if count == 1:
        notes = [f"The last tenth of {run.name} was measured once, which tells no noise between checkpoints."]
    if scored:
        notes[0] += " Errors are those of the paper's estimator at the target."
        noise = [each for each in noise if each.task in by_name]
        notes += [
            f"{key} and error of {error}: r = {r:.2f}, p = {p:.3f}" for key, error, r, p in correlations(noise, scored)
        ]
    return columns, rows, notes


def _scored(table: RunTable, tasks: Sequence[Task], target: str | None) -> list[TargetError]:
    """Errors at the target that is named, or at the only one; none where there is none, or several."""
    if target is None and len(table.targets) != 1:
        return []
    return score_target(table, tasks, TwoStepSettings(starts="paper"), only_target(table, target))
