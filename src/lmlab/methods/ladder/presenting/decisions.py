"""Choices between models and between recipes, as rows and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.analysis.compare import Difference
from lmlab.methods.ladder.analysis.decide import Decision, Ranking
from lmlab.methods.ladder.analysis.variance import (
    signal_between,
    signal_to_noise,
)
from lmlab.methods.ladder.config import DecideOptions, MeanOptions
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.presenting.digits import four_digits, level_text, percent, share

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
            share(each.a),
            share(each.b),
            share(each.difference),
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
    columns = ["N", "D", "FLOPs", "device hours", "mean, %", f"{level_text(level)} from, %", "to, %", *names, "P(best)"]
    columns.append("notes")
    if wanted.price is not None:
        columns.insert(4, "price")
    rows = []
    for number, each in enumerate(decision.scenarios):
        hours = each.flops / wanted.flops_per_second / 3600
        reached = [each.reaches[name] for name in thresholds] + ([each.reaches_all] if len(thresholds) > 1 else [])
        row = [
            four_digits(each.n),
            four_digits(each.d),
            four_digits(each.flops),
            four_digits(hours),
            *(round(100 * side["mean"], 1) for side in (each.accuracy, each.lo, each.hi)),
            *(None if value is None else round(value, 3) for value in reached),
            round(each.best, 3),
            f"D = {each.d:.4g}, {each.where}" + ("; the choice" if number == decision.choice else ""),
        ]
        if wanted.price is not None:
            row.insert(4, four_digits(hours * wanted.price))
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


def rank_table(ranking: Ranking, level: float) -> tuple[list[str], list[list[Any]]]:
    """Columns and rows of recipes, the likeliest first."""
    tasks = list(ranking.recipes[0].best_at)
    columns = [
        "recipe",
        "mean, %",
        f"{level_text(level)} interval, %",
        "P(best)",
        "expected rank",
        "rank by largest run",
    ]
    rows: list[list[Any]] = [
        [
            each.name,
            percent(each.accuracy),
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


def weights_of(forecasters: Sequence[Forecaster], averaged: MeanOptions) -> list[float]:
    """Weights of the tasks in their mean; none where all weigh alike. Recipes are told apart by what differs between
    them at one size and length, where they have such runs; scenarios of one ladder by how far its runs differ.
    """
    if averaged.weigh == "alike":
        return []
    tables, tasks = [each.table for each in forecasters], forecasters[0].tasks
    between = signal_between(tables, tasks) if len(tables) > 1 else None
    ratios = np.mean([signal_to_noise(table, tasks) for table in tables], axis=0)
    untold = [task.name for task, ratio in zip(tasks, ratios, strict=True) if not np.isfinite(ratio)]
    if untold:
        raise UserError(
            f"The noise of {', '.join(untold)} is not known: no run was measured twice in its last tenth, and the"
            " number of questions (n_instances of a task) is not told.",
            "Take --weigh alike, or tell it in the task file.",
        )
    return [float(each) for each in (between if between is not None and between.any() else ratios)]
