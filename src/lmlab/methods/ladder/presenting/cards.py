"""The card of a benchmark: what can be predicted of it, and what stands in the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.methods.ladder.analysis.variance import (
    largest_run,
    seed_noise,
    variance,
)
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.presenting.digits import share

_LITTLE_SIGNAL = 3.0  # times the noise


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
        # as many of the last checkpoints as the ladder averages by default
        finals = [run.final_value(run.accuracy(task, variant), 5) for run in table.ladder]
        signal = 100 * (max(finals) - min(finals))
        # A probability of the right answer has less than the binomial noise of right and wrong ones.
        counted = task.n_instances if variant != "soft" else None
        questions = 100 * math.sqrt(max(finals) * (1 - max(finals)) / counted) if counted else None
        parts = {
            "checkpoints": share(each.accuracy_sd),
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
    if above_chance < 0.03:  # of accuracy, which a few hundred questions give by luck
        return "at chance: follow the loss, not the accuracy"
    if parts and signal < _LITTLE_SIGNAL * noise:
        worst = max(parts, key=lambda name: parts[name])
        remedy = {"questions": "add questions", "runs": "repeat runs", "checkpoints": "average more checkpoints"}[worst]
        return f"noise hides the signal: {remedy}, or follow the loss"
    if any("not determined" in flag or "at its bound" in flag for flag in flags):
        return "predictable in part: the law has a parameter that these runs do not determine"
    return "predictable"
