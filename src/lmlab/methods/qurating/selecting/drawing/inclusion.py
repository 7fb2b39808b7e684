"""How likely each row is to be chosen, before anything is drawn.

Gumbel top-k is an exponential race: row i finishes at a time of rate exp(z_i / tau), and those that finish before a
common time t are chosen. For many rows t is sharp, and solves sum_i length_i (1 - exp(-t exp(z_i / tau))) = budget.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.methods.qurating.selecting.drawing.temperature import check_temperature, is_zero
from lmlab.methods.qurating.selecting.problems import BudgetExceedsCorpus, NonFiniteRating

Floats = NDArray[np.float64]
_LARGEST_EXACT = 9  # of 9 rows there are 362,880 orders, of 10 ten times as many
_SHARP = 1e12  # beyond it float64 cannot tell the times of rows apart, and chances are 0 and 1


def inclusion_probability(z: ArrayLike, lengths: ArrayLike, budget: float, tau: float = 1.0) -> Floats:
    """P(row i is chosen) by the law of large numbers, for each row.

    Arguments:
        z: normalized ratings, [N].
        lengths: tokens, [N].
        budget: tokens to choose.
        tau: 0 for top-k, infinity for uniform.

    Raises:
        BadTemperature: tau is negative or not a number.
        BudgetExceedsCorpus: there are fewer tokens.
        NonFiniteRating: a rating is not finite.
    """
    check_temperature(tau)
    z_N, length_N = _finite(z), np.asarray(lengths, np.float64)
    total = float(length_N.sum())
    if budget > total:
        raise BudgetExceedsCorpus(
            f"{budget:,.0f} tokens are asked for, and the corpus has {total:,.0f}.", "Ask for fewer."
        )
    if budget <= 0 or not len(z_N):
        return np.zeros(len(z_N))
    if budget == total:
        return np.ones(len(z_N))
    with np.errstate(over="ignore"):
        sharp = is_zero(tau) or float(np.ptp(z_N)) / tau > _SHARP
    if sharp:
        return _of_the_best(z_N, length_N, budget)
    logit_N = np.zeros(len(z_N)) if math.isinf(tau) else z_N / tau
    log_t = _log_time(logit_N, length_N, budget)
    return -np.expm1(-np.exp(np.minimum(log_t + logit_N, 700.0)))


def _finite(z: ArrayLike) -> Floats:
    z_N = np.asarray(z, np.float64)
    if not np.isfinite(z_N).all():
        raise NonFiniteRating("A rating is not a number, or infinite.", "Leave it out first.")
    return z_N


def _of_the_best(z_N: Floats, length_N: Floats, budget: float) -> Floats:
    order = np.argsort(-z_N, kind="stable")
    before = np.cumsum(length_N[order]) - length_N[order]
    chosen = np.zeros(len(z_N))
    chosen[order] = before < budget
    return chosen


def _log_time(logit_N: Floats, length_N: Floats, budget: float) -> float:
    """The logarithm of t, by bisection: the expected tokens rise with t."""
    low, high = -float(logit_N.max()) - 60.0, -float(logit_N.min()) + 60.0  # exp(-60) chooses nothing, and exp(60) all
    for _ in range(200):  # halvings: more than fp64 can tell apart from any interval
        middle = (low + high) / 2
        expected = float((length_N * -np.expm1(-np.exp(np.minimum(middle + logit_N, 700.0)))).sum())
        low, high = (middle, high) if expected < budget else (low, middle)
        if high - low < 1e-12 * max(1.0, abs(low)):
            break
    return (low + high) / 2


def exact_inclusion(z: ArrayLike, count: int, tau: float = 1.0) -> Floats:
    """P(row i is among the `count` chosen), by going through all ordered choices (Plackett-Luce), for each row; for at
    most 9 rows.

    Raises:
        ValueError: too many rows, or more are chosen than there are.
        NonFiniteRating: a rating is not finite.
    """
    check_temperature(tau)
    z_N = _finite(z)
    if len(z_N) > _LARGEST_EXACT or not 0 <= count <= len(z_N):
        raise ValueError(
            f"exact inclusion is for at most {_LARGEST_EXACT} rows and at most all of them, not for {count} of"
            f" {len(z_N)}"
        )
    if is_zero(tau):
        return _of_the_best(z_N, np.ones(len(z_N)), count)
    rows = range(len(z_N))
    shares = {left: _shares(z_N, left, tau) for size in rows for left in itertools.combinations(rows, size + 1)}
    chosen = np.zeros(len(z_N))
    for order in itertools.permutations(rows, count):
        left, probability = tuple(rows), 1.0
        for row in order:
            probability *= shares[left][row]
            left = tuple(other for other in left if other != row)
        chosen[list(order)] += probability
    return chosen


def _shares(z_N: Floats, left: tuple[int, ...], tau: float) -> dict[int, float]:
    """The chances of the rows that are left to be the next, relative to the best of them, so that none underflows that
    matters.
    """
    z = z_N[list(left)]
    if math.isinf(tau):
        return dict.fromkeys(left, 1 / len(left))
    with np.errstate(over="ignore"):
        weights = np.exp((z - z.max()) / tau)
    return dict(zip(left, (weights / weights.sum()).tolist(), strict=True))
