"""The fitted parameters, as rows."""

from __future__ import annotations

from typing import Any

from lmlab.methods.ladder.analysis.diagnose import formula, name_of, units
from lmlab.methods.ladder.analysis.variance import (
    largest_run,
)
from lmlab.methods.ladder.fitting.forecast import Forecaster

_PARAMETER_LEVEL = 0.9  # as the forecasts' by default
PARAMETER_COLUMNS = [
    "task",
    "by way of",
    f"first step [{_PARAMETER_LEVEL:.0%} interval]",
    f"second step [{_PARAMETER_LEVEL:.0%} interval]",
    "fit error 1, %",
    "fit error 2, %",
]


def parameter_rows(forecaster: Forecaster) -> tuple[list[list[Any]], list[str]]:
    """Rows for `PARAMETER_COLUMNS` and notes, task by task for each chain; and each chain's formula with units and a
    worked number.
    """
    rows: list[list[Any]] = []
    largest = largest_run(forecaster.table)
    sentences = []
    members = forecaster.ensemble.settings.members
    for number, (member, reports) in enumerate(zip(members, forecaster.step_reports(), strict=True)):
        bounds = forecaster.parameter_limits(number, _PARAMETER_LEVEL)
        for task, report in zip(forecaster.tasks, reports, strict=True):
            limits = bounds[task.name]
            first, second = (
                ", ".join(f"{key} {value:.4g}{_limits(limits[step].get(key))}" for key, value in each.items())
                for step, each in (("first", report.first), ("second", report.second))
            )
            error_2 = None if report.error_2 is None else 100 * report.error_2
            rows.append(
                [
                    task.title,
                    name_of(member),
                    first,
                    second or None,
                    100 * report.error_1,
                    error_2,
                    "; ".join(report.flags),
                ]
            )
        unit = units(member.x) if member.chained else "(accuracy)"
        worked = formula(reports[0].first, member, largest.n, largest.final_tokens, unit)
        name = name_of(member)
        sentences.append(f"{name[0].upper()}{name[1:]}, {forecaster.tasks[0].title}: {worked}")
    return rows, sentences


def _limits(bounds: tuple[float, float] | None) -> str:
    return "" if bounds is None else f" [{bounds[0]:.3g}, {bounds[1]:.3g}]"
