"""What may be wrong with a fit: parameters that the runs do not determine, flat curves, starts that disagree, and how
far the target is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.fitting import accuracy as acc
from lmlab.methods.ladder.fitting.chain import Chain
from lmlab.methods.ladder.fitting.fit import SHRUNK, exponents_of, first_step_values
from lmlab.methods.ladder.fitting.laws import FLOOR, FORMS, log_residuals
from lmlab.methods.ladder.fitting.points import LEAST_ACCURACY, Points, levels
from lmlab.methods.ladder.presenting.digits import share_text
from lmlab.methods.ladder.tables.table import Floats
from lmlab.words import counted

_FEW_LEVELS = 3  # a curve with a constant has three parameters in each of N and D
_ENOUGH = 8  # runs, to tell which one strays
_STRAY, _LEAST_STRAY = 8.0, 0.03  # standard deviations, and as a logarithm
_DISAGREEMENT = 0.01  # of the prediction; what differs less is the same fit, up to where the optimizer stopped
_FLAT = 0.02  # of accuracy above chance, which a few hundred questions give by luck
_FAR_EXPONENT = 3.0  # times the median over the tasks, or less than a third of it
_ILL_CONDITIONED = 1e8  # one direction of parameters is known 10,000 times worse than another
_NOT_DETERMINED = 1e300  # a condition number that JSON can hold
_PLAIN = 10.0  # ratios up to this are told in percent


def check_identifiable(points: Points, settings: TwoStepSettings) -> None:
    """Refuse a law that the runs cannot determine.

    Raises:
        UserError: fewer runs than parameters, or one size or one length only for a law of both.
    """
    needed = len(FORMS[settings.law].names)
    count = points.x_3R.shape[1]
    if count < needed:
        remedy = "Add runs, or take the law of compute alone: --law flops." if settings.law != "flops" else "Add runs."
        raise UserError(
            f"{counted(count, 'runs do')} not determine the {needed} parameters of {FORMS[settings.law].formula}.",
            remedy,
        )
    if settings.law in ("flops", "line"):
        return  # one size will do, though it tells nothing of others: intervals are wide then
    for row, name, what in ((0, "size N", "alpha"), (1, "length D", "beta")):
        if levels(points.x_3R[row]) < 2:
            raise UserError(
                f"All runs have the same {name}, so that {what} cannot be determined.",
                "Take --law flops, or add runs.",
            )


@dataclass(frozen=True)
class StepReport:
    """One task's fit for people and JSON.

    Attributes:
        first, second: parameters by name; `second` is empty where there is no second step.
        error_1, error_2: mean absolute relative error on the fitted points.
        flags: sentences about what may be wrong.
        converged: whether both optimizations moved and ended.
        condition: condition number of the first step's normal matrix with scaled columns.
    """

    first: dict[str, float]
    second: dict[str, float]
    error_1: float
    error_2: float | None
    flags: tuple[str, ...]
    converged: bool
    condition: float


def report_step(chain: Chain, x_3Q: Floats | None = None) -> list[StepReport]:
    """Each task's parameters, fit errors and flags.

    Arguments:
        x_3Q: ln N, ln D, ln C where starts that came to other parameters are compared.
    """
    settings, points = chain.settings, chain.points
    y_TR = points.target(settings.chained)
    fitted = chain.loss(points.x_3R)[0]
    medians = (
        np.median(np.log(np.maximum(chain.first.parameters_BP[:, exponents_of(settings.law)], 1e-6)), axis=0)
        if settings.law in SHRUNK
        else None
    )
    found = []
    for place, task in enumerate(chain.tasks):
        flags = _first_flags(chain, place, medians) + (_disagreement(chain, place, x_3Q) if x_3Q is not None else [])
        flags += _strays(chain, place, y_TR[place], fitted[place])
        second: dict[str, float] = {}
        error_2, converged = None, bool(chain.first.converged_B[place])
        if chain.second is not None:
            p = chain.second.parameters_BP[place]
            second = dict(zip(acc.NAMES[settings.accuracy_law], map(float, p), strict=True))
            value = acc.value_and_gradient(settings.accuracy_law, p[None], points.loss_TK[place][None])[0][0]
            measured = np.maximum(points.accuracy_TK[place], LEAST_ACCURACY)
            # The appended point (0, 1) counts as the reference counts it.
            errors = np.abs(value / measured - 1)
            if settings.anchor:
                at_zero = acc.value_and_gradient(settings.accuracy_law, p[None], np.zeros((1, 1)))[0][0, 0]
                errors = np.append(errors, abs(at_zero - 1))
            error_2 = float(errors.mean())
            flags += _second_flags(second, measured, task.chance)
            converged &= bool(chain.second.converged_B[place])
        if not converged:
            flags.append("an optimization did not converge, or did not move")
        low = int(
            (first_step_values(settings.law, chain.first.parameters_BP[place][None], points.x_3R)[0] < FLOOR).sum()
        )
        if low:
            flags.append(f"the law is not positive at {low} runs, where it was set to {FLOOR:g}")
        found.append(
            StepReport(
                dict(zip(FORMS[settings.law].names, map(float, chain.first.parameters_BP[place]), strict=True)),
                second,
                float(np.abs(fitted[place] / y_TR[place] - 1).mean()),
                error_2,
                tuple(flags),
                converged,
                _condition(chain, place),
            )
        )
    return found


def _first_flags(chain: Chain, place: int, medians: Floats | None) -> list[str]:
    settings, points, p = chain.settings, chain.points, chain.first.parameters_BP[place]
    flags = []
    if settings.law == "line":
        return []
    if points.x_3R.shape[1] > 1 and levels(points.x_3R[1] - points.x_3R[0]) < 2:
        ratio = float(np.exp((points.x_3R[1] - points.x_3R[0]).mean()))
        flags.append(f"one length, {ratio:.3g} tokens a parameter: these runs do not tell what a longer training gains")
    if settings.law == "flops":
        if levels(points.x_3R[0]) < 2:
            flags.append("one size N: these runs do not tell what a larger model gains")
        return flags + (["E is at its bound 0: the law has no floor"] if p[2] <= 1e-9 else [])
    for row, name in ((0, "sizes N"), (1, "lengths D")):
        count = levels(points.x_3R[row])
        if count < _FEW_LEVELS:
            flags.append(f"only {count} {name}: not identifiable with certainty")
    if settings.law not in SHRUNK:
        return flags
    floor = FORMS[settings.law].names.index("E") if settings.chained else None
    if floor is not None and p[floor] <= 1e-9:
        flags.append("E is at its bound 0: the loss has no floor")
    for row, number in enumerate(exponents_of(settings.law)):
        name = FORMS[settings.law].names[number]
        if p[number] <= 1e-3 or p[number] >= 2.99:  # the search's own bounds are 1e-3 and 3
            flags.append(f"{name} is at a bound")
        elif (
            medians is not None
            and len(chain.tasks) > 2
            and abs(np.log(p[number]) - medians[row]) > np.log(_FAR_EXPONENT)
        ):
            flags.append(f"{name} = {p[number]:.2f} is far from the other tasks' median {np.exp(medians[row]):.2f}")
    if _condition(chain, place) > _ILL_CONDITIONED:
        flags.append("the parameters of the first step are not determined by these runs (ill-conditioned)")
    return flags


def _strays(chain: Chain, place: int, measured: Floats, fitted: Floats) -> list[str]:
    """Runs that lie far off the law which the others follow: an unfinished or diverged one, or a slip of its N or D."""
    away = np.log(measured / np.maximum(fitted, FLOOR))
    if len(away) < _ENOUGH:
        return []
    usual = 1.4826 * float(np.median(np.abs(away)))  # the standard deviation, were the residuals normal
    worst = int(np.abs(away).argmax())
    if abs(away[worst]) < max(_STRAY * usual, _LEAST_STRAY):
        return []
    name = " and ".join(chain.points.members[worst])
    ratio = math.exp(min(abs(away[worst]), 700.0))
    side = f"{ratio:.3g} times" if ratio > _PLAIN else f"{np.expm1(away[worst]):+.0%}"
    return [f"'{name}' lies {side} off the law that the other runs follow"]


def _second_flags(second: dict[str, float], measured: Floats, chance: float) -> list[str]:
    flags: list[str] = []
    if "k" not in second:
        return flags  # the probability of the right answer has its anchors by itself
    if abs(second["a"]) < _FLAT or float(np.quantile(measured, 0.95)) < chance + _FLAT:
        flags.append("no signal: accuracy stays at chance")
    if second.get("b", 1.0) < 0.97:  # a small model's curve may well end a little below 1
        flags.append(f"the curve ends at {second['b']:.2f} < 1")
    if second["a"] <= -0.9999:  # here and below: at a bound, as far as an optimizer comes
        flags.append("a is at its bound -1")
    if second["k"] <= 1e-6 or second["x0"] <= 1e-9:
        flags.append("k or x0 is at its bound 0")
    return flags


def _disagreement(chain: Chain, place: int, x_3Q: Floats) -> list[str]:
    """Whether starts with costs that are nearly the best predict something else."""
    if chain.first.others_BSP is None:
        return []
    values = first_step_values(chain.settings.law, chain.first.others_BSP[place], x_3Q)
    worst = float(np.abs(values / values[:1] - 1).max())
    return (
        [f"equally good starts differ by {share_text(worst, 1)} in the first step's prediction"]
        if worst > _DISAGREEMENT
        else []
    )


def _condition(chain: Chain, place: int) -> float:
    log_y = np.zeros((1, chain.points.x_3R.shape[1]))
    x = chain.points.x_3R - chain.points.x_3R.mean(1, keepdims=True)
    p = chain.first.parameters_BP[place][None].copy()
    for coefficient, exponent, variable in FORMS[chain.settings.law].units:
        p[:, coefficient] -= p[:, exponent] * chain.points.x_3R.mean(1)[variable]
    jacobian = log_residuals(chain.settings.law, p, x, log_y)[1][0]
    scale = np.sqrt((jacobian**2).sum(0))
    used = jacobian[:, scale > 1e-12] / scale[scale > 1e-12]
    if not used.size:
        return _NOT_DETERMINED
    singular = np.linalg.svd(used, compute_uv=False)
    return float((singular[0] / max(singular[-1], 1e-150 * singular[0], 1e-300)) ** 2)


def distance(points: Points, x_3: Floats) -> dict[str, Any]:
    """How far a target is from the ladder.

    Returns:
        times_compute, times_n, times_d: over the largest of the ladder; tokens_per_parameter, and the least and most of
            the ladder; kind: `extrapolation`, `interpolation` or `back-extrapolation`.
    """
    largest, smallest = points.x_3R.max(1), points.x_3R.min(1)
    ratio = points.x_3R[1] - points.x_3R[0]
    wanted = x_3[1] - x_3[0]
    if wanted < ratio.min() - 0.02:  # here and below: N and D that differ by less than 2 % are the same
        kind = "outside the ladder's tokens a parameter"
    elif (x_3[:2] <= largest[:2] + 0.02).all() and (x_3[:2] >= smallest[:2] - 0.02).all():
        kind = "interpolation"
    elif (x_3[:2] < smallest[:2] - 0.02).any() and (x_3[:2] <= largest[:2] + 0.02).all():
        kind = "back-extrapolation"
    else:
        kind = "extrapolation"
    return {
        "kind": kind,
        "times_compute": float(np.exp(x_3[2] - largest[2])),
        "times_n": float(np.exp(x_3[0] - largest[0])),
        "times_d": float(np.exp(x_3[1] - largest[1])),
        "tokens_per_parameter": float(np.exp(x_3[1] - x_3[0])),
        "least_tokens_per_parameter": float(np.exp(ratio.min())),
        "most_tokens_per_parameter": float(np.exp(ratio.max())),
    }


def formula(first: dict[str, float], settings: TwoStepSettings, n: float, d: float, unit: str) -> str:
    """The fitted law in words with units, and a worked number."""
    form = FORMS[settings.law]
    values = ", ".join(f"{name} = {value:.4g}" for name, value in first.items())
    x = np.log([[n], [d], [6 * n * d]])
    result = float(first_step_values(settings.law, np.array([list(first.values())]), x)[0, 0])
    variables, place = "N in parameters without the input embedding, D in tokens", f"N = {n:.4g}, D = {d:.4g}"
    if settings.law in ("flops", "line"):
        variables, place = "C in FLOPs", f"C = {6 * n * d:.3g}"
    return f"{form.formula}; {values}; {variables}; at {place} it gives {result:.4f} {unit}."


def units(x: str) -> str:
    """The unit of a quantity between the steps."""
    return {"bpb": "bits per byte", "taskce": "nats a question"}.get(x, "nats a token")


def outcome_of(settings: TwoStepSettings) -> str:
    """What a chain predicts, as headings call it."""
    return {"rc": "accuracy", "mc": "accuracy by letters", "soft": "p(right answer)"}[settings.variant]


def name_of(settings: TwoStepSettings) -> str:
    """A chain's name for tables."""
    quantity = {"bpb": "task loss", "c4": "C4 loss", "taskce": "TaskCE", "validation": "validation losses"}.get(
        settings.x, settings.x
    )
    match settings.law:
        case "nd":
            return quantity
        case "coupled":
            return f"{quantity}, coupled law"
        case "tied":
            return f"{quantity}, one exponent"
        case "flops":
            return f"{quantity}, FLOPs"
        case "single":
            return "single step"
        case "direct":
            return "direct law of accuracy"
        case "line":
            return "line in logit accuracy"
        case _:
            return "power law of accuracy"


def union(reports: Sequence[Sequence[StepReport]], settings: Sequence[TwoStepSettings]) -> list[tuple[str, ...]]:
    """The flags of all chains, task by task."""
    several = len(settings) > 1
    return [
        tuple(
            f"{name_of(each)}: {flag}" if several else flag
            for each, report in zip(settings, of_task, strict=True)
            for flag in report.flags
        )
        for of_task in zip(*reports, strict=True)
    ]
