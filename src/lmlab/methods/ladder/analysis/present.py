"""Results as rows for tables: predictions, noise, and the card of each benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lmlab.methods.ladder.analysis.compare import Difference
from lmlab.methods.ladder.analysis.decide import Decision, Ranking
from lmlab.methods.ladder.analysis.diagnose import formula, name_of, units
from lmlab.methods.ladder.analysis.follow import Followed
from lmlab.methods.ladder.analysis.variance import (
    correlations,
    largest_run,
    seed_noise,
    signal_between,
    signal_to_noise,
    variance,
)
from lmlab.methods.ladder.config import DecideOptions, MeanOptions, TwoStepSettings
from lmlab.methods.ladder.fitting.chain import Chain
from lmlab.methods.ladder.fitting.forecast import Forecaster, Prediction
from lmlab.methods.ladder.tables.table import Run, RunTable
from lmlab.methods.ladder.tables.target import TargetError, figures_of, only_target, score_target
from lmlab.methods.ladder.tables.tasks import Task

PREDICTION_COLUMNS = [
    "task",
    "loss",
    "loss from",
    "loss to",
    "unit",
    "accuracy, %",
    "from, %",
    "to, %",
    "measured, %",
    "error, points",
    "notes",
]
_PARAMETER_LEVEL = 0.9
PARAMETER_COLUMNS = [
    "task",
    "by way of",
    f"first step [{_PARAMETER_LEVEL:.0%} interval]",
    f"second step [{_PARAMETER_LEVEL:.0%} interval]",
    "fit error 1, %",
    "fit error 2, %",
]
_ANOTHER_UNIT = 1e4  # times the largest run's, or less than its inverse
_LITTLE_SIGNAL = 3.0  # times the noise


def prediction_rows(forecaster: Forecaster, predictions: Sequence[Prediction], measured: Run | None) -> list[list[Any]]:
    """Rows for `PREDICTION_COLUMNS`; the last is the mean error where the target was measured."""
    rows: list[list[Any]] = []
    errors = []
    for task, each in zip(forecaster.tasks, predictions, strict=True):
        actual = measured_accuracy(forecaster, task, measured)
        error = None if actual is None else 100 * abs(each.accuracy - actual)
        errors += [] if error is None else [error]
        notes = "; ".join(each.diagnostics["flags"])
        rows.append(
            [
                task.title,
                *(_four_digits(value) for value in (each.loss, each.loss_lo, each.loss_hi)),
                each.loss_unit or None,
                *(round(100 * value, 1) for value in (each.accuracy, each.lo, each.hi)),
                _percent(actual),
                _rounded(error),
                notes,
            ]
        )
    if errors:
        rows.append(["mean", *(None,) * 8, round(float(np.mean(errors)), 2), ""])
    return rows


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
        error = None if actual is None else 100 * abs(each.accuracy - actual)
        found.append(each.to_json() | {"measured": actual, "error_points": error})
    return found


DIFFERENCE_COLUMNS = [
    "task",
    "A, %",
    "B, %",
    "B - A, points",
    "{level} interval, points",
    "probability that B is better",
]


def difference_rows(differences: Sequence[Difference]) -> list[list[Any]]:
    """Rows for `DIFFERENCE_COLUMNS`."""
    return [
        [
            each.task,
            100 * each.a,
            100 * each.b,
            100 * each.difference,
            f"{100 * each.lo:.1f} to {100 * each.hi:.1f}",
            each.b_better,
        ]
        for each in differences
    ]


def decision_details(decision: Decision, wanted: DecideOptions) -> dict[str, Any]:
    """A decision as JSON, with what the scenarios cost."""
    found = asdict(decision)
    for each in found["scenarios"]:
        each["device_hours"] = each["flops"] / wanted.flops_per_second / 3600
        each["price"] = None if wanted.price is None else each["device_hours"] * wanted.price
    return found


def decision_rows(decision: Decision, wanted: DecideOptions, level: float) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of scenarios: cost, mean accuracy, the probability of each threshold, and what is said of it."""
    thresholds = list(decision.scenarios[0].reaches)
    names = [f"P({name} reached)" for name in thresholds] + (["P(all reached)"] if len(thresholds) > 1 else [])
    columns = ["N", "D", "FLOPs", "device hours", "mean, %", f"{level:.0%} from, %", "to, %", *names, "P(best)"]
    columns.append("notes")
    if wanted.price is not None:
        columns.insert(4, "price")
    rows = []
    for number, each in enumerate(decision.scenarios):
        hours = each.flops / wanted.flops_per_second / 3600
        reached = [each.reaches[name] for name in thresholds] + ([each.reaches_all] if len(thresholds) > 1 else [])
        row = [
            _four_digits(each.n),
            _four_digits(each.d),
            _four_digits(each.flops),
            _four_digits(hours),
            *(round(100 * side["mean"], 1) for side in (each.accuracy, each.lo, each.hi)),
            *(None if value is None else round(value, 3) for value in reached),
            round(each.best, 3),
            f"D = {each.d:.4g}, {each.where}" + ("; the choice" if number == decision.choice else ""),
        ]
        if wanted.price is not None:
            row.insert(4, _four_digits(hours * wanted.price))
        rows.append(row)
    return columns, rows


def decision_sentence(decision: Decision, sure: float) -> str:
    """What to do."""
    if not decision.scenarios[0].reaches:
        return "Without --at-least there is nothing to reach: P(best) is the probability of the highest mean."
    if decision.choice is None:
        best = max(decision.scenarios, key=lambda each: (each.reaches_all or 0.0, each.accuracy["mean"]))
        return (
            f"No scenario reaches what is wanted with a probability of {sure:.0%}. Nearest: N = {best.n:.4g}, D ="
            f" {best.d:.4g} with {best.reaches_all:.0%}."
        )
    chosen = decision.scenarios[decision.choice]
    return (
        f"The cheapest that reaches what is wanted with a probability of at least {sure:.0%}: N = {chosen.n:.4g}, D ="
        f" {chosen.d:.4g} ({chosen.flops:.4g} FLOPs), with {chosen.reaches_all:.0%}."
    )


FOLLOWED_COLUMNS = [
    "task",
    "accuracy at its end, %",
    "from, %",
    "to, %",
    "by the ladder alone, %",
    "ladder from, %",
    "ladder to, %",
    "loss",
    "loss from",
    "loss to",
    "by its own curve",
    "unit",
    "weight of the run",
]


def followed_rows(forecaster: Forecaster, found: Sequence[Followed]) -> list[list[Any]]:
    """Rows for `FOLLOWED_COLUMNS`, and the means."""
    rows: list[list[Any]] = [
        [
            task.title,
            *(round(100 * value, 1) for value in (each.accuracy, each.lo, each.hi)),
            *(round(100 * value, 1) for value in (each.ladder_accuracy, each.ladder_lo, each.ladder_hi)),
            *(_four_digits(value) for value in (each.loss, each.loss_lo, each.loss_hi, each.own_curve)),
            each.unit or None,
            round(each.weight, 2),
        ]
        for task, each in zip(forecaster.tasks, found, strict=True)
    ]
    if len(found) > 1:
        own, alone = (
            float(np.mean([getattr(each, name) for each in found])) for name in ("accuracy", "ladder_accuracy")
        )
        rows.append(["mean", round(100 * own, 1), None, None, round(100 * alone, 1), *(None,) * 8])
    return rows


def rank_table(ranking: Ranking, level: float) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of recipes, the likeliest first."""
    tasks = list(ranking.recipes[0].best_at)
    columns = ["recipe", "mean, %", f"{level:.0%} interval, %", "P(best)", "expected rank", "rank by largest run"]
    rows: list[list[Any]] = [
        [
            each.name,
            round(100 * each.accuracy, 1),
            f"{100 * each.lo:.1f} to {100 * each.hi:.1f}",
            round(each.best, 3),
            round(each.rank, 2),
            each.by_largest_run,
            *(round(each.best_at[task], 2) for task in tasks),
        ]
        for each in ranking.recipes
    ]
    return [*columns, *(f"P(best at {task})" for task in tasks)], rows


def orders_sentence(ranking: Ranking, most: int = 3) -> str:
    """The likeliest orders of the mean, with their probabilities."""
    text = "; ".join(f"{' > '.join(order)}: {share:.0%}" for order, share in ranking.orders[:most])
    return f"Probability of each order of the mean: {text}" + ("; ..." if len(ranking.orders) > most else ".")


def distance_sentence(prediction: Prediction) -> str:
    """How far the target is, in words, and what its interval rests on."""
    away, reach = prediction.diagnostics["distance"], prediction.diagnostics["reach"]
    width = f"Intervals are to hold {prediction.level:.0%} of outcomes"
    if reach is None:
        width += "; the ladder is too small to calibrate them."
    elif prediction.diagnostics["beyond"] > 1:
        width += (
            f". Backtests, which calibrate them, reach to {reach:.3g} x the compute of what they are fitted to; at"
            f" {prediction.diagnostics['beyond']:.2f} times that distance (in the logarithm) what other forms of the"
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


def line_sentence(forecaster: Forecaster, predictions: Sequence[Prediction], measured: Run | None) -> str:
    """What the simplest law says, and how far off it is where the target was measured."""
    said, errors = [], []
    for task, each in zip(forecaster.tasks, predictions, strict=True):
        value = each.diagnostics["line"]
        said.append(f"{task.title} {100 * value:.1f}")
        actual = measured_accuracy(forecaster, task, measured)
        errors += [] if actual is None else [100 * abs(value - actual)]
    text = "A line in logit accuracy on log compute, for comparison, %: " + ", ".join(said)
    return text + (f"; mean error {np.mean(errors):.2f} points." if errors else ".")


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
    return text + "."


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
        shares = [None, None, None] if row is None else [_share(row.step_1), _share(row.step_2), _share(row.relative)]
        rows.append(
            [
                task.title,
                each.loss_sd,
                100 * each.loss_cv,
                each.accuracy_sd,
                100 * each.accuracy_cv,
                _share(pair[0]),
                _share(pair[1]),
                *shares,
                float(ratios[place]),
            ]
        )
    notes = [f"The last {min(last, len(run))} checkpoints of {run.name}."]
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


def weights_of(forecasters: Sequence[Forecaster], averaged: MeanOptions) -> list[float]:
    """Weights of the tasks in their mean; none where all weigh alike. Recipes are told apart by what differs between
    them at one size and length, where they have such runs; scenarios of one ladder by how far its runs differ.
    """
    if averaged.weigh == "alike":
        return []
    tables, tasks = [each.table for each in forecasters], forecasters[0].tasks
    between = signal_between(tables, tasks) if len(tables) > 1 else None
    if between is not None and between.any():
        return [float(each) for each in between]
    ratios = [signal_to_noise(table, tasks) for table in tables]
    return [float(each) for each in np.mean(ratios, axis=0)]


@dataclass(frozen=True)
class Card:
    """How well a benchmark can be predicted.

    Attributes:
        checkpoint_noise, run_noise, question_noise: standard deviations of accuracy in points; None where nothing
            tells, such as a single checkpoint of its noise.
        signal: how far accuracy rises over the ladder, in points.
        error_1, error_2: fit errors of the steps, %.
        advice: what to do about it.
    """

    task: str
    checkpoint_noise: float | None
    run_noise: float | None
    question_noise: float | None
    signal: float
    error_1: float
    error_2: float | None
    advice: str


def cards(forecaster: Forecaster) -> list[Card]:
    """A card for each task."""
    table, variant = forecaster.table, forecaster.ensemble.settings.members[0].variant
    largest = largest_run(table)
    noise = variance(largest, forecaster.tasks, variant=variant)
    seeds = seed_noise(table, forecaster.tasks, variant)
    reports = forecaster.step_reports()[0]
    found = []
    for task, each, report in zip(forecaster.tasks, noise, reports, strict=True):
        finals = [run.final_value(run.accuracy(task, variant), 5) for run in table.ladder]
        signal = 100 * (max(finals) - min(finals))
        # A probability of the right answer has less than the binomial noise of right and wrong ones.
        counted = task.n_instances if variant != "soft" else None
        questions = 100 * math.sqrt(max(finals) * (1 - max(finals)) / counted) if counted else None
        parts = {
            "checkpoints": 100 * each.accuracy_sd if len(largest) > 1 else None,
            "runs": 100 * seeds[task.name][1] if seeds else None,
            "questions": questions,
        }
        known = {name: value for name, value in parts.items() if value is not None}
        total = math.sqrt(sum(value**2 for value in known.values()))
        found.append(
            Card(
                task.title,
                parts["checkpoints"],
                parts["runs"],
                parts["questions"],
                signal,
                100 * report.error_1,
                None if report.error_2 is None else 100 * report.error_2,
                _advice(signal, total, known, report.flags, max(finals) - task.chance),
            )
        )
    return found


def _advice(signal: float, noise: float, parts: dict[str, float], flags: Sequence[str], above_chance: float) -> str:
    if above_chance < 0.03:
        return "at chance: follow the loss, not the accuracy"
    if parts and signal < _LITTLE_SIGNAL * noise:
        worst = max(parts, key=lambda name: parts[name])
        remedy = {"questions": "add questions", "runs": "repeat runs", "checkpoints": "average more checkpoints"}[worst]
        return f"noise hides the signal: {remedy}, or follow the loss"
    if any("not determined" in flag or "at its bound" in flag for flag in flags):
        return "predictable in part: the law has a parameter that these runs do not determine"
    return "predictable"


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def _four_digits(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _share(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
