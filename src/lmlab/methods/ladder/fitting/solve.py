"""Many small non-linear least-squares problems at once, with bounds, weights and Huber's loss: Levenberg and
Marquardt's method.

Legend: B problems, K points, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Residuals = Callable[[Floats, NDArray[np.int64]], tuple[Floats, Floats]]
"""(parameters [b, P], numbers of the problems [b]) -> (residuals [b, K], Jacobian [b, K, P])."""

_NO_GAIN = 1e-6  # of the cost: what a step from a minimum may promise by rounding
_PROBLEMS_AT_ONCE = 4_000_000  # numbers in a Jacobian


@dataclass(frozen=True)
class Solution:
    """Parameters [B, P], cost [B] (half the weighted sum, as Huber's loss defines it), and whether each problem
    converged [B].
    """

    parameters: Floats
    cost: Floats
    converged: NDArray[np.bool_]


def huber(u: Floats, delta: float) -> Floats:
    """u^2 / 2 within delta, delta (|u| - delta / 2) beyond (Huber 1964)."""
    size = np.abs(u)
    return np.where(size < delta, 0.5 * u * u, delta * (size - 0.5 * delta)) if np.isfinite(delta) else 0.5 * u * u


def solve(
    residuals: Residuals,
    start_BP: Floats,
    lower_P: Floats,
    upper_P: Floats,
    weights_BK: Floats | None = None,
    delta: float = np.inf,
    max_iterations: int = 300,
    tolerance: float = 1e-12,
) -> Solution:
    """Minimize sum_k w_k Huber_delta(r_k) for each problem, starting from `start_BP`.

    Huber's loss is handled by reweighting. A parameter at a bound that the gradient pushes outwards is held there.

    Arguments:
        weights_BK: broadcast to [B, K]; ones by default.
        tolerance: relative decrease of the cost in five steps below which a problem counts as converged.
    """
    count = len(start_BP)
    probe, jacobian = residuals(np.clip(start_BP[:1], lower_P, upper_P), np.zeros(1, dtype=np.int64))
    chunk = max(1, _PROBLEMS_AT_ONCE // max(1, jacobian[0].size))
    weights = np.broadcast_to(np.ones(probe.shape[1]) if weights_BK is None else weights_BK, (count, probe.shape[1]))
    parts = []
    for first in range(0, count, chunk):
        numbers = np.arange(first, min(first + chunk, count))
        parts.append(
            _solve(
                residuals,
                start_BP[numbers],
                lower_P,
                upper_P,
                weights[numbers],
                delta,
                max_iterations,
                tolerance,
                numbers,
            )
        )
    return Solution(
        *(np.concatenate(each) for each in zip(*((p.parameters, p.cost, p.converged) for p in parts), strict=True))
    )


def _solve(
    residuals: Residuals,
    start_BP: Floats,
    lower_P: Floats,
    upper_P: Floats,
    weights_BK: Floats,
    delta: float,
    max_iterations: int,
    tolerance: float,
    numbers: NDArray[np.int64],
) -> Solution:
    parameters = np.clip(start_BP, lower_P, upper_P)
    r, j = residuals(parameters, numbers)
    cost = (weights_BK * huber(r, delta)).sum(1)
    damping = np.full(len(parameters), 1e-3)  # as Marquardt begins: nearly a Gauss-Newton step
    stalled = np.zeros(len(parameters), dtype=int)
    active = np.arange(len(parameters))
    for _ in range(max_iterations):
        step = _step(
            r[active], j[active], weights_BK[active], delta, damping[active], parameters[active], lower_P, upper_P
        )
        trial = np.clip(parameters[active] + step, lower_P, upper_P)
        trial_r, trial_j = residuals(trial, numbers[active])
        trial_cost = (weights_BK[active] * huber(trial_r, delta)).sum(1)
        better = trial_cost < cost[active]
        gain = cost[active] - trial_cost
        small = better & (gain <= tolerance * cost[active])
        # lowered slowly and raised fast, so that few steps are in vain
        damping[active] = np.where(better, damping[active] / 4, damping[active] * 8).clip(1e-12, 1e12)
        stalled[active] = np.where(better & ~small, 0, stalled[active] + 1)
        chosen = active[better]
        parameters[chosen], r[chosen], j[chosen], cost[chosen] = (
            trial[better],
            trial_r[better],
            trial_j[better],
            trial_cost[better],
        )
        active = active[(stalled[active] < 5) & (damping[active] < 1e11)]  # steps so short that no digit moves
        if not len(active):
            break
    converged = np.isfinite(cost)
    converged[active] = False
    # A search that never moved has converged only if its start is the minimum: if a full step would gain nothing.
    stuck = np.flatnonzero(converged & (parameters == np.clip(start_BP, lower_P, upper_P)).all(1))
    if len(stuck):
        with np.errstate(all="ignore"):
            step = _step(
                r[stuck],
                j[stuck],
                weights_BK[stuck],
                delta,
                np.full(len(stuck), 1e-6),
                parameters[stuck],
                lower_P,
                upper_P,
            )
        weighted = j[stuck] * (weights_BK[stuck] * _reweight(r[stuck], delta))[:, :, None]
        promised = -np.einsum("bkp,bk,bp->b", weighted, r[stuck], step) / 2
        converged[stuck] = promised <= _NO_GAIN * cost[stuck] + 1e-20
    return Solution(parameters, cost, converged)


def _reweight(r: Floats, delta: float) -> Floats:
    """The weights with which squares of residuals stand for Huber's loss."""
    return np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300)) if np.isfinite(delta) else np.ones_like(r)


def _step(
    r: Floats,
    j: Floats,
    weights: Floats,
    delta: float,
    damping: Floats,
    parameters: Floats,
    lower: Floats,
    upper: Floats,
) -> Floats:
    weighted = j * (weights * _reweight(r, delta))[:, :, None]
    gradient = np.einsum("bkp,bk->bp", weighted, r)
    normal = np.matmul(weighted.transpose(0, 2, 1), j)
    held = ((parameters <= lower) & (gradient > 0)) | ((parameters >= upper) & (gradient < 0))
    gradient[held] = 0.0
    free = (~held).astype(float)
    normal *= free[:, :, None] * free[:, None, :]
    diagonal = np.einsum("bpp->bp", normal)
    diagonal += damping[:, None] * diagonal + 1e-14 * np.maximum(diagonal.max(1, keepdims=True), 1e-30) + held
    return -np.linalg.solve(normal, gradient[:, :, None])[:, :, 0]
