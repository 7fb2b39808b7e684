"""Fewer runs: how the error at a target grows when parts of the ladder are left out (Bhagia et al. 2024, section 5)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.errors import UserError
from lmlab.methods.ladder.config import EstimatorSettings, TwoStepSettings
from lmlab.methods.ladder.fitting.forecast import available
from lmlab.methods.ladder.fitting.points import length_kind, length_name, length_of
from lmlab.methods.ladder.tables.table import Run, RunTable
from lmlab.methods.ladder.tables.target import TargetError, score_target
from lmlab.methods.ladder.tables.tasks import Task

_FEWEST_RUNS = 4  # the simplest law of N and D has four parameters


@dataclass(frozen=True)
class Ablation:
    """A part of the ladder, its cost in FLOPs, and the errors at the target."""

    name: str
    runs: tuple[str, ...]
    flops: float
    errors: tuple[TargetError, ...]


def ablate(table: RunTable, tasks: Sequence[Task], settings: EstimatorSettings, target: Run) -> list[Ablation]:
    """Sizes up to one, lengths up to one, and the cheapest runs, by the whole estimator.

    Lengths are multiples of 20 N, or tokens where all sizes were planned by these; where they are no grid, no part is
    named by them.

    Raises:
        UserError: the ladder has fewer than four runs.
    """
    short = {run.name for run in table.short_runs}
    match settings.members[0]:
        case TwoStepSettings(runs="paper"):
            ladder = table.paper.ladder
        case TwoStepSettings(short_weight=0.0):
            ladder = table.ladder.where(without=tuple(short))
        case _:
            ladder = table.ladder
    if len(ladder) < _FEWEST_RUNS:
        raise UserError(f"{len(ladder)} runs are too few to leave some out.", f"The ladder needs {_FEWEST_RUNS}.")
    parts: list[tuple[str, RunTable]] = []
    for n in sorted({run.n for run in ladder}):
        size = next(run.size or f"{run.n:.3g}" for run in ladder if run.n == n)
        parts.append((f"N <= {size}", ladder.where(max_n=n)))
    by = length_kind(ladder.runs)
    for length in sorted({length_of(run, by) for run in ladder}) if by != "nothing" else []:
        names = [run.name for run in ladder if length_of(run, by) <= length]
        called = f"D <= {length_name(length, by)}" if by == "tokens" else f"xC <= {length:g}"
        parts.append((called, ladder.where(names=names)))
    cheapest = sorted(ladder, key=lambda run: run.flops)
    for count in range(_FEWEST_RUNS, len(ladder) + 1):
        parts.append((f"{count} cheapest", ladder.where(names=[run.name for run in cheapest[:count]])))
    return [
        Ablation(
            name,
            tuple(run.name for run in part),
            sum(run.flops for run in part),
            # What would be said with these runs alone: of few another mean of chains.
            tuple(score_target(part, tasks, available(settings, part, tasks, tell=False), target)),
        )
        for name, part in parts
        if len(part) >= _FEWEST_RUNS
    ]
