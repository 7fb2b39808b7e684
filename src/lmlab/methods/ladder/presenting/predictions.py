"""Predictions with their intervals, beside what was measured, as rows and sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.methods.ladder.analysis.diagnose import outcome_of
from lmlab.methods.ladder.fitting.chain import Chain
from lmlab.methods.ladder.fitting.forecast import Forecaster, Prediction
from lmlab.methods.ladder.presenting.digits import four_digits, level_text, percent, rounded
from lmlab.methods.ladder.tables.table import Run
from lmlab.methods.ladder.tables.target import figures_of
from lmlab.methods.ladder.tables.tasks import Task

_ANOTHER_UNIT = 1e4  # times the largest run's, or less than its inverse


def prediction_columns(forecaster: Forecaster) -> list[str]:
    """Headings of `prediction_rows`."""
    loss = ["loss", "loss from", "loss to", "unit"]
    outcome = outcome_of(forecaster.ensemble.settings.members[0])
    return ["task", *loss, f"{outcome}, %", "from, %", "to, %", "measured, %", "error, points", "notes"]


def prediction_rows(forecaster: Forecaster, predictions: Sequence[Prediction], measured: Run | None) -> list[list[Any]]:
    """Rows for `prediction_columns`; the last is the mean error where the target was measured."""
    rows: list[list[Any]] = []
    errors = []
    for task, each in zip(forecaster.tasks, predictions, strict=True):
        actual = measured_accuracy(forecaster, task, measured)
        error = error_of(each, actual)
        errors += [] if error is None else [error]
        notes = "; ".join(each.diagnostics["flags"])
        limits: list[float | None] = [round(100 * value, 1) for value in (each.accuracy, each.lo, each.hi)]
        if each.diagnostics["untold"]:
            limits[0] = None  # the law's own figure would be taken for a forecast
        rows.append(
            [
                task.title,
                *(four_digits(value) for value in (each.loss, each.loss_lo, each.loss_hi)),
                each.loss_unit or None,
                *limits,
                percent(actual),
                rounded(error),
                notes,
            ]
        )
    if errors:
        rows.append(["mean", *(None,) * 8, round(float(np.mean(errors)), 2), ""])
    return rows


def error_of(prediction: Prediction, actual: float | None) -> float | None:
    """How far the accuracy is off in points; None where nothing was measured, or no accuracy is told."""
    told = actual is not None and not prediction.diagnostics["untold"]
    return 100 * abs(prediction.accuracy - actual) if told and actual is not None else None


def measured_accuracy(forecaster: Forecaster, task: Task, run: Run | None) -> float | None:
    """What was measured at the target, if it was."""
    return None if run is None else figures_of(run, task, forecaster.ensemble.settings.members[0])[1]


def measured_loss(chain: Chain, place: int, run: Run | None) -> float | None:
    """What was measured at the target of the quantity between a chain's steps, if it was."""
    if run is None or not chain.settings.chained:
        return None
    return figures_of(run, chain.tasks[place], chain.settings)[0]


def prediction_details(
    forecaster: Forecaster, predictions: Sequence[Prediction], measured: Run | None
) -> list[dict[str, Any]]:
    """Predictions as JSON, beside what was measured."""
    found = []
    for task, each in zip(forecaster.tasks, predictions, strict=True):
        actual = measured_accuracy(forecaster, task, measured)
        error = error_of(each, actual)
        found.append(each.to_json() | {"measured": actual, "error_points": error})
    return found


def untold_sentences(forecaster: Forecaster, predictions: Sequence[Prediction]) -> list[str]:
    """The tasks whose accuracy no run tells anything of."""
    names = [task.title for task, each in zip(forecaster.tasks, predictions, strict=True) if each.diagnostics["untold"]]
    if not names:
        return []
    return [
        f"No accuracy can be forecast for {', '.join(names)}: all runs are at chance there. The interval goes from a"
        " guess to the most that the law allows; follow the loss, add larger runs, or ask more or easier questions."
    ]


def distance_sentence(prediction: Prediction) -> str:
    """How far the target is, in words, and what its interval rests on."""
    away, reach = prediction.diagnostics["distance"], prediction.diagnostics["reach"]
    width = f"Intervals are to hold {level_text(prediction.level)} of outcomes"
    beyond = prediction.diagnostics["beyond"]
    if reach is None:
        width += "; the ladder is too small to calibrate them."
        if beyond > 1:
            width += f" What other forms of the law say counts {beyond:.3g} times that far beyond it."
    elif beyond > 1 and reach < 2:
        width += (
            f". Backtests, which calibrate them, hardly reach beyond the runs that they are fitted to"
            f" ({reach:.3g} x the compute); so far away what other forms of the law say counts {beyond:.3g} times."
        )
    elif beyond > 1:
        width += (
            f". Backtests, which calibrate them, reach to {reach:.3g} x the compute of what they are fitted to; at"
            f" {beyond:.2f} times that distance (in the logarithm) what other forms of the"
            " law say counts as many times."
        )
    else:
        width += f", and are calibrated on backtests, which reach to {reach:.3g} x the compute."
    ratio = (
        f"{away['tokens_per_parameter']:.3g} tokens a parameter ({away['least_tokens_per_parameter']:.3g} to"
        f" {away['most_tokens_per_parameter']:.3g} in the ladder)"
    )
    if max(abs(math.log(away["times_n"])), abs(math.log(away["times_d"]))) > math.log(_ANOTHER_UNIT):
        width += " Are N and D of the target counted in the unit of the runs?"
    return (
        f"{away['kind'].capitalize()}: {away['times_compute']:.3g} x the compute, {away['times_n']:.3g} x the size and"
        f" {away['times_d']:.3g} x the tokens of the largest run, {ratio}. {width}"
    )


def line_sentences(forecaster: Forecaster, predictions: Sequence[Prediction], measured: Run | None) -> list[str]:
    """What the simplest law says, and how far off it is where the target was measured; nothing where it says nothing of
    this figure.
    """
    said, errors = [], []
    for task, each in zip(forecaster.tasks, predictions, strict=True):
        value = each.diagnostics["line"]
        if value is None:
            return []
        said.append(f"{task.title} {100 * value:.1f}")
        actual = measured_accuracy(forecaster, task, measured)
        errors += [] if actual is None else [100 * abs(value - actual)]
    text = "A line in logit accuracy on log compute, for comparison, %: " + ", ".join(said)
    return [text + (f"; mean error {np.mean(errors):.2f} points." if errors else ".")]


def unfitted_runs(forecaster: Forecaster) -> dict[str, str]:
    """The runs of the ladder that no chain is fitted to, each with the reason."""
    table, fitted = forecaster.table, forecaster.fitted_runs
    by_backtests = forecaster.ensemble.settings.members[0].runs == "all"
    short = {run.name for run in table.short_runs}
    configurations = {run.configuration for run in table.ladder if run.name in fitted}
    found = dict(table.left_out)
    for run in table.ladder:
        if run.name in fitted:
            continue
        if run.name in short:
            found[run.name] = "shorter than 1xC, " + (
                "which backtests give no weight" if by_backtests else "which this estimator leaves out"
            )
        elif run.configuration in configurations:
            found[run.name] = "repeated, and this estimator takes one run of each size and length"
        else:
            found[run.name] = "this estimator leaves it out"
    return found


def runs_sentence(forecaster: Forecaster) -> str:
    """Which runs are fitted, which are taken together, and which are not, each with the reason."""
    fitted, left = forecaster.fitted_runs, unfitted_runs(forecaster)
    repeated = [" and ".join(group) for group in forecaster.ensemble.chains[0].points.members if len(group) > 1]
    text = f"{len(fitted)} of {len(fitted) + len(left)} runs are fitted"
    if repeated:
        text += f"; of repeated ones the mean ({', '.join(repeated)})"
    by_reason: dict[str, list[str]] = {}
    for name, reason in left.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        text += f"; not {', '.join(names)}: {reason}"
    if any(each.law == "line" for each in forecaster.ensemble.settings.members[1:]):
        text += (
            "; so few hardly determine a law, and the forecast is the mean, in logits, of what the law and a line in"
            " log compute say"
        )
    return text + "."
