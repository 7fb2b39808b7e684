"""Fitting both steps, many tasks and replicates at once.

Legend: B problems, R runs, K checkpoints, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeWarning, curve_fit, minimize

from lmlab.methods.ladder.config import CHAINED, AccuracyForm, LossForm
from lmlab.methods.ladder.fitting import accuracy as acc
from lmlab.methods.ladder.fitting.laws import FORMS, log_residuals, shift_units, start_of, value_and_gradient
from lmlab.methods.ladder.fitting.solve import huber, solve

Floats = NDArray[np.float64]
SHRUNK = ("nd", "coupled", "tied", "direct")  # laws whose exponents can be drawn to those of the other tasks
ANCHOR_SHARE = 1 / 600  # of the weight of all checkpoints; the published ladder has 1,400, its smallest backtest 636
_AGREEMENT = 0.01  # starts that end within this share of the best cost should predict alike


@dataclass(frozen=True)
class StepFit:
    """Fitted parameters [B, P], cost [B], and whether each problem converged [B].

    `others_BSP` holds what other starts came to whose cost is nearly the best; where starts disagree, so do their
    predictions.
    """

    parameters_BP: Floats
    cost_B: Floats
    converged_B: NDArray[np.bool_]
    others_BSP: Floats | None = None


def fit_first_step(
    form: LossForm,
    x_3R: Floats,
    y_BR: Floats,
    weights_BR: Floats | None = None,
    delta: float | None = 1e-3,  # as Hoffmann et al. 2022: what lies off by more than 0.1 % counts linearly
    starts: str | Floats = "grid",
    chance_B: Floats | None = None,
    shrink: float = 0.0,
    center_BE: Floats | None = None,
    max_iterations: int = 300,
) -> StepFit:
    """Fit a law of N and D to losses by the sum of Huber losses of log ratios.

    Arguments:
        starts: `paper` (single start, L-BFGS-B), `grid`, or parameters [B, S, P] to start from.
        chance_B: for the form `single`.
        shrink, center_BE: strength of a quadratic pull of the logarithms of the law's exponents (`exponents_of`) to
            those of these values, relative to the sum of losses.
    """
    chance = np.full(len(y_BR), 0.25) if chance_B is None else chance_B
    limit = np.inf if delta is None else delta
    if isinstance(starts, str) and starts == "paper":
        return _paper_first_step(form, x_3R, y_BR, limit, chance)
    log_y = np.log(np.maximum(y_BR, 1e-6))
    offset = x_3R.mean(1)
    x = x_3R - offset[:, None]
    if isinstance(starts, str):
        start_BSP = np.stack([_grid(form, y, c) for y, c in zip(y_BR, chance, strict=True)])
    else:
        start_BSP = shift_units(form, starts.reshape(-1, starts.shape[2]), offset, 1).reshape(starts.shape)
    count, tries, width = start_BSP.shape
    owner = np.repeat(np.arange(count), tries)
    weights = np.broadcast_to(np.ones(1) if weights_BR is None else weights_BR, y_BR.shape)[owner]
    lower, upper = _free_bounds(form)
    pull = shrink > 0 and form in SHRUNK and center_BE is not None
    if pull:
        weights = np.concatenate([weights, np.ones((len(weights), len(exponents_of(form))))], axis=1)

    def residuals(p_BP: Floats, numbers: NDArray[np.int64]) -> tuple[Floats, Floats]:
        r, j = log_residuals(form, p_BP, x, log_y[owner[numbers]])
        if not pull or center_BE is None:
            return r, j
        return _with_pull(r, j, p_BP, exponents_of(form), center_BE[owner[numbers]], shrink, limit)

    solution = solve(residuals, start_BSP.reshape(-1, width), lower, upper, weights, limit, max_iterations)
    return _best(
        solution.parameters, solution.cost, solution.converged, count, tries, lambda p: shift_units(form, p, offset, -1)
    )


def exponents_of(form: LossForm) -> list[int]:
    """The places of a law's exponents among its parameters."""
    return sorted({exponent for _, exponent, _ in FORMS[form].units})


def _with_pull(
    r: Floats, j: Floats, p: Floats, places: list[int], center: Floats, shrink: float, limit: float
) -> tuple[Floats, Floats]:
    """More residuals that draw the logarithms of the exponents to a center; scaled to stay in the quadratic part of
    Huber's loss.
    """
    scale = np.sqrt(2 * shrink)
    exponents = np.maximum(p[:, places], 1e-3)
    extra = scale * np.log(exponents / center)
    more = np.zeros((len(p), len(places), p.shape[1]))
    for row, place in enumerate(places):
        more[:, row, place] = scale / exponents[:, row]
    if np.isfinite(
        limit
    ):  # Huber's loss is linear beyond delta; a residual u with u^2 / 2 = huber(v) keeps the pull quadratic
        size = np.abs(extra)
        target = 0.5 * size**2
        v = np.where(size < limit, extra, np.sign(extra) * (target / limit + 0.5 * limit))
        more *= np.where(size < limit, 1.0, size / limit)[:, :, None]
        extra = v
    return np.concatenate([r, extra], axis=1), np.concatenate([j, more], axis=1)


def _free_bounds(form: LossForm) -> tuple[Floats, Floats]:
    """Bounds in centered coordinates: coefficients are free, exponents and E as the form says."""
    lower, upper = np.array(FORMS[form].lower), np.minimum(np.array(FORMS[form].upper), 1e3)
    for coefficient, exponent, _ in FORMS[form].units:
        lower[coefficient], upper[coefficient] = -25.0, 10.0  # logarithms: from nothing to far above any loss
        least = 1e-3 if form in (*CHAINED, "direct") else max(lower[exponent], 0.0)
        lower[exponent], upper[exponent] = least, 3.0  # exponents of losses lie near 0.3; at 3 a law is a step
    return np.maximum(lower, -1e3), upper


def _grid(form: LossForm, y_R: Floats, chance: float) -> Floats:
    """Starts in centered coordinates, [S, P]."""
    low = float(y_R.min())
    # here and below: flat, usual and steep; and shares of the lowest loss that may be its floor
    exponents = (0.1, 0.3, 0.8)
    match form:
        case "flops":
            return np.array(
                [
                    (np.log(max(y_R.mean() - e * low, 1e-3)), a, e * low)
                    for a in (0.03, 0.1, 0.2, 0.4)
                    for e in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95)
                ]
            )
        case "nd":
            shares = (0.0, 0.5, 0.9)
            return np.array(
                [
                    (*(np.log(max(y_R.mean() - e * low, 1e-3) / 2),) * 2, a, b, e * low)
                    for a in exponents
                    for b in exponents
                    for e in shares
                ]
            )
        case "coupled":
            # A bent sum and a lower floor stand for one another: both kinds of starts.
            return np.array(
                [
                    (*(np.log(max(y_R.mean() - e * low, 1e-3)) / k - np.log(2.0),) * 2, a / k, b / k, e * low, k)
                    for a in (0.1, 0.3)
                    for b in (0.1, 0.3)
                    for e in (0.0, 0.5, 0.9)
                    for k in (0.4, 1.0)
                ]
            )
        case "tied":
            return np.array(
                [
                    (*(np.log(max(y_R.mean() - e * low, 1e-3) / 2),) * 2, a, e * low)
                    for a in (0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
                    for e in (0.0, 0.3, 0.6, 0.9)
                ]
            )
        case "line":
            share = np.clip(y_R.mean(), 0.02, 0.98)
            return np.array([(np.log(1 / share - 1), slope) for slope in (0.01, 0.1, 0.3)])
        case "direct":
            share = np.clip((y_R.mean() - chance) / (1 - chance), 0.05, 0.95)
            level = np.log(-np.log(share) / 2)
            return np.array([(level, level, a, b, chance) for a in exponents for b in exponents])
        case "single":
            return np.array(
                [
                    (*(np.log(scale),) * 2, a, b, e, chance - 1, 1.0)
                    for a in (0.1, 0.4)
                    for b in (0.1, 0.4)
                    for e in (-4.0, -2.0, 0.0)
                    for scale in (0.5, 2.0)
                ]
            )
        case _:
            high = float(y_R.max())
            return np.array(
                [
                    (*(np.log(max(high + e - y_R.mean(), 1e-3) / 2),) * 2, a, b, high + e)
                    for a in exponents
                    for b in exponents
                    for e in (0.02, 0.2, 0.6)
                ]
            )


def _paper_first_step(form: LossForm, x_3R: Floats, y_BR: Floats, delta: float, chance_B: Floats) -> StepFit:
    """One start, bounds in raw units, L-BFGS-B with the analytic gradient, as the reference does it."""
    low, high = FORMS[form].lower, FORMS[form].upper
    limits = [(None if np.isinf(a) else a, None if np.isinf(b) else b) for a, b in zip(low, high, strict=True)]
    parameters, costs, converged = [], [], []
    for y, chance in zip(y_BR, chance_B, strict=True):
        log_y = np.log(np.maximum(y, 1e-6))[None]
        start = start_of(form, chance)

        def objective(p: Floats, log_y: Floats = log_y) -> tuple[float, Floats]:
            r, j = log_residuals(form, p[None], x_3R, log_y)
            return float(huber(r, delta).sum()), np.einsum("k,kp->p", np.clip(r[0], -delta, delta), j[0])

        result = minimize(
            objective,
            start,
            jac=True,
            method="L-BFGS-B",
            bounds=limits,
            # as the reference has them
            options={"ftol": 0.0, "gtol": 1e-10, "maxiter": 1_000_000, "maxfun": 1_000_000},
        )
        parameters.append(result.x)
        costs.append(result.fun)
        converged.append(result.fun < objective(start)[0])
    return StepFit(np.array(parameters), np.array(costs), np.array(converged))


def fit_second_step(
    form: AccuracyForm,
    loss_BK: Floats,
    accuracy_BK: Floats,
    chance_B: Floats,
    weights_BK: Floats | None = None,
    anchor: bool = True,
    starts: str | Floats = "grid",
    anchor_share: float = np.inf,
) -> StepFit:
    """Fit accuracy as a function of loss by (weighted) least squares.

    Arguments:
        anchor: append the point (loss 0, accuracy 1), with the weight of one checkpoint.
        starts: as for the first step.
        anchor_share: of the weight of all checkpoints, that point has no more: of runs that were measured a few times
            it would rule where the curve goes.
    """
    if form == "logistic":
        return _between_chance_and_one(loss_BK, accuracy_BK, chance_B, weights_BK, anchor, starts, anchor_share)
    weights = np.broadcast_to(np.ones(1) if weights_BK is None else weights_BK, loss_BK.shape)
    if anchor:
        loss_BK = np.concatenate([loss_BK, np.zeros((len(loss_BK), 1))], axis=1)
        accuracy_BK = np.concatenate([accuracy_BK, np.ones((len(loss_BK), 1))], axis=1)
        weights = np.concatenate([weights, np.minimum(1.0, anchor_share * weights.sum(1, keepdims=True))], axis=1)
    if isinstance(starts, str) and starts == "paper":
        return _paper_second_step(form, loss_BK, accuracy_BK, chance_B)
    if isinstance(starts, str):
        start_BSP = np.stack(
            [_curve_starts(form, x, y, c) for x, y, c in zip(loss_BK, accuracy_BK, chance_B, strict=True)]
        )
    else:
        start_BSP = starts
    count, tries, width = start_BSP.shape
    owner = np.repeat(np.arange(count), tries)
    limits = acc.bounds(form, float(chance_B.mean()))

    def residuals(p_BP: Floats, numbers: NDArray[np.int64]) -> tuple[Floats, Floats]:
        value, gradient = acc.value_and_gradient(form, p_BP, loss_BK[owner[numbers]])
        return value - accuracy_BK[owner[numbers]], gradient

    solution = solve(
        residuals,
        start_BSP.reshape(-1, width),
        np.maximum(limits.lower, -1e3),
        np.minimum(limits.upper, 1e3),
        weights[owner],
        np.inf,
        200,
        1e-10,
    )
    return _best(solution.parameters, solution.cost, solution.converged, count, tries, lambda p: p)


def _between_chance_and_one(
    loss_BK: Floats,
    accuracy_BK: Floats,
    chance_B: Floats,
    weights_BK: Floats | None,
    anchor: bool,
    starts: str | Floats,
    anchor_share: float,
) -> StepFit:
    """A curve with fixed ends, the lower one at each problem's own chance: as shares of the way from there to 1."""
    way = 1 - chance_B
    scale = np.stack([way, np.ones_like(way), np.ones_like(way), way], axis=1)
    shift = np.stack([0 * way, 0 * way, 0 * way, chance_B], axis=1)
    starts = "grid" if isinstance(starts, str) else (starts - shift[:, None]) / scale[:, None]
    share_BK = (accuracy_BK - chance_B[:, None]) / way[:, None]
    found = fit_second_step("mc", loss_BK, share_BK, np.zeros_like(way), weights_BK, anchor, starts, anchor_share)
    others = None if found.others_BSP is None else found.others_BSP * scale[:, None] + shift[:, None]
    return StepFit(found.parameters_BP * scale + shift, found.cost_B, found.converged_B, others)


def _curve_starts(form: AccuracyForm, x_K: Floats, y_K: Floats, chance: float) -> Floats:
    """Starts, [S, P]: the middle of the curve among the losses, its steepness from their spread."""
    inner = x_K[x_K > 0]
    spread = max(float(np.ptp(inner)), 1e-3)
    middles = np.quantile(inner, (0.0, 0.5))
    slopes = (2.0 / spread, 6.0 / spread)  # a curve over the whole spread, and one over a third of it
    if form == "soft":
        return np.array([(1.0, 0.0)])
    if form == "log_sigmoid":
        return np.array([(-0.1, middle, slope) for middle in middles for slope in slopes])
    limits = acc.bounds(form, chance)
    rest = (
        [(limits.start[0], limits.start[3])]
        if form == "mc"
        else [(chance - 1, 1.0), (min(-0.05, float(y_K[inner.argmin()] - 1)), 0.95)]
    )
    return np.array([(a, middle, slope, b) for a, b in rest for middle in middles for slope in slopes])


def _paper_second_step(form: AccuracyForm, loss_BK: Floats, accuracy_BK: Floats, chance_B: Floats) -> StepFit:
    """One start with `scipy.optimize.curve_fit` and differences for the Jacobian, as in the reference: in flat valleys
    the end depends on them.
    """
    import warnings

    parameters, costs, converged = [], [], []
    for loss, accuracy, chance in zip(loss_BK, accuracy_BK, chance_B, strict=True):
        limits = acc.bounds(form, chance)

        def value(x: Floats, *p: float) -> Floats:
            if form == "log_sigmoid":  # rounded as in the reference
                return np.asarray(1 - p[0] * np.log(1 - 1 / (1 + np.exp(-p[2] * (x - p[1])))))
            return acc.value_and_gradient(form, np.array([p]), x[None])[0][0]

        before = float(((value(loss, *limits.start) - accuracy) ** 2).sum() / 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            found, _ = curve_fit(
                value, loss, accuracy, p0=limits.start, bounds=(limits.lower, limits.upper), maxfev=10_000
            )
        cost = float(((value(loss, *found) - accuracy) ** 2).sum() / 2)
        parameters.append(found)
        costs.append(cost)
        converged.append(cost < before)
    return StepFit(np.array(parameters), np.array(costs), np.array(converged))


def _best(parameters: Floats, cost: Floats, converged: NDArray[np.bool_], count: int, tries: int, back: Any) -> StepFit:
    """The best of all starts of each problem, and the others that are nearly as good."""
    width = parameters.shape[1]
    shaped, costs = back(parameters).reshape(count, tries, width), cost.reshape(count, tries)
    order = np.argsort(costs, axis=1, kind="stable")
    rows = np.arange(count)
    best = order[:, 0]
    others = shaped[rows[:, None], order[:, : min(tries, 8)]].copy()
    # a cost of 0 has no share
    near = costs[rows[:, None], order[:, : min(tries, 8)]] <= costs[rows, best][:, None] * (1 + _AGREEMENT) + 1e-15
    others = np.where(near[:, :, None], others, others[:, :1])
    return StepFit(shaped[rows, best], costs[rows, best], converged.reshape(count, tries)[rows, best], others)


def first_step_values(form: LossForm, p_BP: Floats, x_3K: Floats) -> Floats:
    """The law's values, [B, K]."""
    return value_and_gradient(form, p_BP, x_3K)[0]
