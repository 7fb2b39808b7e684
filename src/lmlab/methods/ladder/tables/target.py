"""Predictions beside what was measured on a target (Bhagia et al. 2024, section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.config import EstimatorSettings, TwoStepSettings
from lmlab.methods.ladder.fitting.chain import fit_chain
from lmlab.methods.ladder.fitting.logits import mean_logit
from lmlab.methods.ladder.fitting.points import place_of
from lmlab.methods.ladder.rungs.plan import parse_length
from lmlab.methods.ladder.tables.table import C4, Run, RunTable, is_validation
from lmlab.methods.ladder.tables.tasks import Task

_SAME = 0.02  # N and D that differ by less than this share are those of a target


@dataclass(frozen=True)
class TargetError:
    """One task's errors; relative ones are signed shares, `absolute` is in points.

    The first step's are None for a law without it, and of a target whose loss was not measured.
    """

    task: str
    loss_predicted: float | None
    loss_actual: float | None
    step_1: float | None
    accuracy_from_actual_loss: float | None
    step_2: float | None
    accuracy_predicted: float
    accuracy_actual: float
    absolute: float
    relative: float | None


def score_target(
    table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings | EstimatorSettings, target: Run
) -> list[TargetError]:
    """Fit an estimator and compare it with a target, step by step; the steps are those of its first chain, the accuracy
    that of all. Tasks that the target was not measured on are left out.

    Raises:
        UserError: it was measured on none.
    """
    estimator = (
        settings if isinstance(settings, EstimatorSettings) else EstimatorSettings(name="chain", members=(settings,))
    )
    chains = [fit_chain(table, tasks, member) for member in estimator.members]
    chain, first = chains[0], estimator.members[0]
    x_3Q = place_of(target)[:, None]
    losses = chain.loss(x_3Q)[0, :, 0] * np.exp(chain.points.loss_offset_T)
    predicted = mean_logit([each.accuracy(x_3Q)[0, :, 0] for each in chains], estimator.weights)
    actual = [figures_of(target, task, first) for task in tasks]
    between_T = np.array([losses[place] if loss is None else loss for place, (loss, _) in enumerate(actual)])
    from_actual = chain.accuracy_of((between_T * np.exp(-chain.points.loss_offset_T))[None, :, None])[0, :, 0]
    rows = []
    for place, (task, (loss, accuracy)) in enumerate(zip(tasks, actual, strict=True)):
        if accuracy is None:
            continue
        known = first.chained and loss is not None
        rows.append(
            TargetError(
                task.name,
                float(losses[place]) if first.chained else None,
                loss,
                float(losses[place] / loss - 1) if known and loss else None,
                float(from_actual[place]) if known else None,
                _relative(float(from_actual[place]), accuracy) if known else None,
                float(predicted[place]),
                accuracy,
                float(abs(predicted[place] - accuracy) * 100),
                _relative(float(predicted[place]), accuracy),
            )
        )
    if not rows:
        raise UserError(f"The target '{target.name}' was measured on none of the tasks.", "Name others with -k.")
    return rows


def _relative(value: float, actual: float) -> float | None:
    """The signed relative error; None of a figure that is 0."""
    return value / actual - 1 if actual > 0 else None


def figures_of(run: Run, task: Task, settings: TwoStepSettings) -> tuple[float | None, float | None]:
    """What was measured on a target of the quantity between a chain's steps, and of the accuracy; None of what was not,
    and of a quantity where the law has none.
    """
    whole = set(run.metrics)
    keys: set[str] = set()
    match settings.x:
        case "bpb":
            keys = {*task.loss_keys}
        case "taskce":
            keys = {*task.soft_log_keys}
        case "c4":
            keys = {C4}
        case "validation":
            keys = set() if any(map(is_validation, whole)) else {settings.x}
        case column:
            keys = {column}
    loss = settings.chained and keys <= whole
    accuracy = {*task.accuracy_columns(settings.variant)} <= whole
    return (
        run.final_value(run.intermediate(task, settings.x), settings.last) if loss else None,
        run.final_value(run.accuracy(task, settings.variant), settings.last) if accuracy else None,
    )


def mean_errors(rows: Sequence[TargetError]) -> dict[str, float | None]:
    """Means over the tasks: absolute in points, the others of absolute relative errors."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [abs(value) for value in values if value is not None]
        return float(np.mean(known)) if known else None

    return {
        "absolute": mean([row.absolute for row in rows]),
        "relative": mean([row.relative for row in rows]),
        "step_1": mean([row.step_1 for row in rows]),
        "step_2": mean([row.step_2 for row in rows]),
    }


def only_target(table: RunTable, name: str | None) -> Run:
    """The target of that name, or the only one.

    Raises:
        UserError: there is none, it is a run that is fitted, or there are several and no name.
    """
    if name is not None:
        if table[name].mode == "train":
            raise UserError(
                f"The run '{name}' is fitted, so that its forecast would be none.",
                "Mark it as a target when runs are collected: lmlab ladder collect --target.",
            )
        return table[name]
    if len(table.targets) != 1:
        names = ", ".join(run.name for run in table.targets) or "none"
        raise UserError(
            f"One target is needed; the table has: {names}.",
            "Name it with --target, or mark it when runs are collected.",
        )
    return table.targets[0]


def require_size(n: float) -> None:
    """Refuse a number of parameters that no model has.

    Raises:
        UserError: it is not positive, or not finite.
    """
    if not 0 < n < math.inf:
        raise UserError(f"A model has a positive number of parameters, not {n:g}.", "Give it with -n, such as 7e9.")


def target_point(
    table: RunTable, name: str | None, n: float | None, d: str | None
) -> tuple[float, float, float | None, Run | None]:
    """N, D and FLOPs a token of what is predicted, and the measured run where it is one of the table.

    Raises:
        UserError: neither a target nor both N and D are given, or they are not those of the target that is named.
    """
    if n is not None:
        require_size(n)
    if n is not None and d is not None and name is None:
        return n, parse_length(d, n), None, None
    if name is not None or (n is None and d is None and table.targets):
        run = only_target(table, name)
        if n is None and not math.isfinite(run.n):
            raise UserError(
                f"The number of parameters of '{run.name}' is not known.", "Give -n, or n in the configuration."
            )
        size = run.n if n is None else n
        tokens = run.final_tokens if d is None else parse_length(d, size)
        for option, given, own in (("-n", size, run.n), ("-d", tokens, run.final_tokens)):
            if math.isfinite(own) and not abs(given / own - 1) <= _SAME:
                raise UserError(
                    f"{option} is {given:.4g}, but the target '{run.name}' was measured at {own:.4g}.",
                    "Leave out one of the two.",
                )
        return size, tokens, run.flops_per_token, run
    raise UserError("What is to be predicted? Give both -n and -d, or --target.", "For instance: -n 7e9 -d 4T")


def parse_scenario(text: str) -> tuple[float, float]:
    """N and D of `N:D`, as in `7e9:4T` or `1e9:20xC`.

    Raises:
        UserError: it has another form, or N is not positive.
    """
    size, sign, length = text.partition(":")
    try:
        n = float(size)
    except ValueError:
        sign = ""
    if not sign or not (n > 0 and math.isfinite(n)):
        raise UserError(f"'{text}' is not a scenario.", "Write N:D, such as 7e9:4T or 1e9:20xC.")
    return n, parse_length(length, n)


def named_numbers(given: Sequence[str], option: str, form: str, hint: str) -> dict[str, float]:
    """`NAME=NUMBER` as a mapping.

    Raises:
        UserError: one has another form, or a name is given twice.
    """
    found: dict[str, float] = {}
    for each in given:
        name, _, value = each.partition("=")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not name or not math.isfinite(number):
            raise UserError(f"{option} {each}: write {form}.", f"As in {hint}.")
        if name in found:
            raise UserError(f"{option} names '{name}' twice.")
        found[name] = number
    return found
