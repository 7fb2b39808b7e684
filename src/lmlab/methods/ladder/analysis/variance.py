"""Noise: how a benchmark's figures vary between checkpoints and between runs, and what that says about its
predictions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import pearsonr

from lmlab.methods.ladder.config import TwoStepSettings, Variant
from lmlab.methods.ladder.fitting.intervals import repeated_runs
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable
from lmlab.methods.ladder.tables.target import TargetError
from lmlab.methods.ladder.tables.tasks import Task

_LEAST_MEAN = 1e-9  # of an accuracy that is 0 throughout
_FEWEST_TASKS = 3  # for a correlation


@dataclass(frozen=True)
class Noise:
    """Population standard deviations and coefficients of variation over the last checkpoints of one run; None where its
    last tenth was measured once only: what lies before is not noise, but what it still learned.
    """

    task: str
    loss_sd: float | None
    loss_cv: float | None
    accuracy_sd: float | None
    accuracy_cv: float | None


def variance(run: Run, tasks: Sequence[Task], last: int = 10, x: str = "bpb", variant: Variant = "rc") -> list[Noise]:
    """The spread over the last checkpoints of a run (Bhagia et al. 2024, section 6)."""
    rows = []
    for task in tasks:
        loss, accuracy = (run.ends(each, last) for each in (run.intermediate(task, x), run.accuracy(task, variant)))
        rows.append(Noise(task.name, *_spread_of(loss), *_spread_of(accuracy)))
    return rows


def _spread_of(values: Floats) -> tuple[float | None, float | None]:
    """Standard deviation, and the same over the mean."""
    if len(values) < 2:
        return None, None
    return float(values.std()), float(values.std() / max(values.mean(), _LEAST_MEAN))


def signal_to_noise(table: RunTable, tasks: Sequence[Task], last: int = 10) -> Floats:
    """How far a task tells the runs of a ladder apart, over how far it varies by itself, [T] (Heineman et al. 2025,
    arXiv 2508.13144): the range of the runs' accuracies at their ends, over the standard deviation of the last
    checkpoints of a run, both relative to their means; the noise is the mean over the runs. Not a number where no run
    was measured twice in its last tenth, and the number of questions is not known either.
    """
    return np.array([_spread([_ends(run, task, last) for run in table.ladder]) for task in tasks]) / _noise(
        [table], tasks, last
    )


def signal_between(tables: Sequence[RunTable], tasks: Sequence[Task], last: int = 10) -> Floats | None:
    """The same for several recipes: how far a task tells models of one size and length apart, as the paper has it, over
    the noise of a run, [T]. The signal is the mean over the sizes and lengths that all recipes have; None without any.
    """
    runs = [{run.configuration: run for run in table.ladder} for table in tables]
    shared = [key for key in runs[0] if all(key in each for each in runs)]
    if not shared:
        return None
    signal_T = [np.mean([_spread([_ends(each[key], task, last) for each in runs]) for key in shared]) for task in tasks]
    return np.asarray(signal_T / _noise(tables, tasks, last))


def _ends(run: Run, task: Task, last: int) -> float:
    return run.final_value(run.accuracy(task), last)


def _spread(ends: Sequence[float]) -> float:
    """The range relative to the mean."""
    return float(np.ptp(ends) / np.mean(ends)) if np.mean(ends) > 0 else 0.0


def _noise(tables: Sequence[RunTable], tasks: Sequence[Task], last: int) -> Floats:
    """Standard deviation of a run's last checkpoints relative to their mean, mean over the runs, [T]."""
    found = []
    for task in tasks:
        tails = [run.ends(run.accuracy(task), last) for table in tables for run in table.ladder]
        several = [tail for tail in tails if len(tail) > 1]
        if several:
            noise = float(np.mean([tail.std() / tail.mean() for tail in several if tail.mean() > 0] or [1.0]))
        elif task.n_instances:  # measured once, they vary at least as their questions do
            # none or all right of few questions is no certainty
            share = float(np.clip(np.mean(np.concatenate(tails)), 0.01, 0.99))
            noise = float(np.sqrt((1 - share) / share / task.n_instances))
        else:
            noise = math.nan
        found.append(max(noise, 1e-6) if math.isfinite(noise) else noise)
    return np.array(found)


def largest_run(table: RunTable) -> Run:
    """The run with the most compute."""
    return max(table.ladder, key=lambda run: run.flops)


def correlations(noise: Sequence[Noise], errors: Sequence[TargetError]) -> list[tuple[str, str, float, float]]:
    """Pearson's correlations of noise with the three relative errors: noise, error, r, p.

    Empty for fewer than three tasks.
    """
    found = []
    for key in ("loss_sd", "loss_cv", "accuracy_sd", "accuracy_cv"):
        for error in ("step_1", "step_2", "relative"):
            known = [
                (getattr(each, key), abs(getattr(row, error)))
                for each, row in zip(noise, errors, strict=True)
                if getattr(row, error) is not None and getattr(each, key) is not None
            ]
            if len(known) < _FEWEST_TASKS or not np.ptp(known, axis=0).all():
                continue  # what does not vary correlates with nothing
            r, p = pearsonr(*zip(*known, strict=True))
            found.append((key, error, float(r), float(p)))
    return found


def seed_noise(
    table: RunTable, tasks: Sequence[Task], variant: Variant = "rc"
) -> dict[str, tuple[float, float]] | None:
    """Between repeated runs: standard deviation of the logarithm of the task loss, and of accuracy; None where no run
    is repeated.
    """
    pairs = repeated_runs(table)
    if not pairs:
        return None
    last = TwoStepSettings().last
    found = {}
    for task in tasks:
        losses, accuracies = [], []
        for names in pairs:
            one, two = (table[name] for name in names)
            losses.append(
                np.log(
                    one.final_value(one.intermediate(task, "bpb"), last)
                    / two.final_value(two.intermediate(task, "bpb"), last)
                )
            )
            ends = [run.final_value(run.accuracy(task, variant), last) for run in (one, two)]
            accuracies.append(ends[0] - ends[1])
        found[task.name] = (
            float(np.sqrt(np.mean(np.square(losses)) / 2)),
            float(np.sqrt(np.mean(np.square(accuracies)) / 2)),
        )
    return found
