"""What the length of answers, and the order in which they are shown, do to a judge; and verdicts without it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError
from lmlab.stats import Interval, bootstrap

Floats = NDArray[np.float64]
_PRIOR = 1e-2  # a weak pull to 0: without it, wins that length alone explains have no finite fit
_STEPS = 100  # Newton needs about ten; the rest is for nearly separable wins


@dataclass(frozen=True)
class LengthControlled:
    """Shares of wins, a tie being half a one.

    Attributes:
        raw: as the judge says.
        controlled: as it would say of answers of equal length; None where every answer is longer, or shorter, by the
            same, so that length and system cannot be told apart.
        slope: of the log-odds in tanh of the standardized difference of lengths; above 0 for a judge that likes length.
    """

    raw: Interval[float]
    controlled: Interval[float] | None
    slope: float


def length_controlled(
    wins: ArrayLike,
    lengths: ArrayLike,
    other_lengths: ArrayLike,
    difficulty: ArrayLike | None = None,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 500,  # each is a fit, which a mean is not
    seed: int = 0,
) -> LengthControlled:
    """The share of wins at equal length (Dubois et al. 2024): a logistic model with a constant, tanh of the
    standardized difference of lengths, and the difficulty of each question, read at a difference of 0.

    Arguments:
        wins: 1 for a win, 0 for a loss, between them for what is not sure.
        lengths, other_lengths: of both answers.
        difficulty: of each question; it is centered.
        clusters: what each question belongs to.

    Raises:
        UserError: there are no comparisons.
    """
    y, gap = _compared(wins, lengths, other_lengths)
    columns = [np.ones(len(y)), _bounded(gap)]
    if difficulty is not None:
        hard = np.asarray(difficulty, float)
        columns.append(hard - hard.mean())
    x = np.stack(columns, 1)

    def at_zero(chosen: NDArray[np.int64]) -> float:
        fit = _logistic(x[chosen], y[chosen])
        level = x[chosen].copy()
        level[:, 1] = 0.0
        return float(_sigmoid(level @ fit).mean())

    raw = bootstrap(lambda chosen: float(y[chosen].mean()), len(y), 0.95, resamples, seed, clusters)
    if not np.ptp(x[:, 1]) and x[0, 1]:
        return LengthControlled(raw, None, 0.0)
    controlled = bootstrap(at_zero, len(y), 0.95, resamples, seed, clusters)
    return LengthControlled(raw, controlled, float(_logistic(x, y)[1]))


@dataclass(frozen=True)
class AtEqualLength:
    """The mean difference of the grades of two systems.

    Attributes:
        raw: as it is.
        controlled: as it would be for answers of equal length; None where every answer is longer, or shorter, by the
            same, so that length and system cannot be told apart.
        slope: grade points for each unit of tanh of the standardized difference of lengths; above 0 where the longer
            answer of a question gets the better grade.
    """

    raw: Interval[float]
    controlled: Interval[float] | None
    slope: float


def at_equal_length(
    differences: ArrayLike,
    lengths: ArrayLike,
    other_lengths: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> AtEqualLength:
    """The mean difference of grades at equal length: what `length_controlled` is for wins, by least squares on a
    constant and the same function of the difference of lengths, read at a difference of 0.

    Where one system's answers are nearly all longer, that is outside of what was seen, and the interval says so by its
    width.

    Arguments:
        differences: the grade of a system less that of the other, a question.
        lengths, other_lengths: of their answers.
        clusters: what each question belongs to.

    Raises:
        UserError: there are no comparisons.
    """
    y, gap = _compared(differences, lengths, other_lengths)
    x = _bounded(gap)
    raw = bootstrap(lambda chosen: float(y[chosen].mean()), len(y), level, resamples, seed, clusters)
    if not np.ptp(x):
        return AtEqualLength(raw, None if x[0] else raw, 0.0)

    def fitted(chosen: NDArray[np.int64]) -> tuple[float, float]:
        a, b = x[chosen], y[chosen]
        centered = a - a.mean()
        power = float((centered**2).sum())
        slope = float(centered @ b) / power if power > 1e-12 else math.nan
        return float(b.mean() - slope * a.mean()), slope

    controlled = bootstrap(lambda chosen: fitted(chosen)[0], len(y), level, resamples, seed, clusters)
    return AtEqualLength(raw, controlled, fitted(np.arange(len(y)))[1])


def _compared(
    values: ArrayLike, lengths: ArrayLike, other_lengths: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values and differences of lengths of comparisons."""
    y = np.asarray(values, float)
    gap = np.asarray(lengths, float) - np.asarray(other_lengths, float)
    if not len(y) or len(gap) != len(y):
        raise UserError("There are no comparisons, or not as many lengths as comparisons.")
    return y, gap


def _bounded(gap: Floats) -> Floats:
    """Differences of lengths in their standard deviations, and no more than 1: an answer ten times as long is not ten
    times as favored.
    """
    return np.tanh(gap / (float(gap.std()) or 1.0))


@dataclass(frozen=True)
class BothOrders:
    """Comparisons of two systems, each shown in both orders.

    Attributes:
        wins: of the first system: 1, 0, or 1/2 where the orders disagree or both are undecided.
        disagreements: share of comparisons whose winner changes with the order.
        first_place: share of wins of whatever was shown first; 1/2 for a judge without a liking for places.
    """

    wins: tuple[float, ...]
    disagreements: float
    first_place: float


def both_orders(shown_first: ArrayLike, shown_second: ArrayLike) -> BothOrders:
    """Settle comparisons that were made in both orders.

    Arguments:
        shown_first: the share of votes for the first system when it is shown first.
        shown_second: likewise when it is shown second.

    Raises:
        UserError: there are none, or not as many of one order as of the other.
    """
    a, b = np.asarray(shown_first, float), np.asarray(shown_second, float)
    if not len(a) or len(a) != len(b):
        raise UserError(
            "Comparisons in both orders are pairs of verdicts.", "Give as many of one order as of the other."
        )
    there, back = np.sign(a - 0.5), np.sign(b - 0.5)
    differ = there * back < 0
    wins = np.where(there + back > 0, 1.0, np.where(there + back < 0, 0.0, 0.5))
    return BothOrders(tuple(wins.tolist()), float(differ.mean()), float((a + 1 - b).mean() / 2))


def length_effect(
    gaps: ArrayLike,
    lengths: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval[float] | None:
    """The slope of a judge's grades less people's on the logarithm of lengths; None where all are equal."""
    y, x = np.asarray(gaps, float), np.log(np.maximum(1.0, np.asarray(lengths, float)))
    if len(y) < 2 or not np.ptp(x):
        return None

    def slope(chosen: NDArray[np.int64]) -> float:
        centered = x[chosen] - x[chosen].mean()
        power = float((centered**2).sum())
        return float((centered * y[chosen]).sum()) / power if power > 1e-12 else math.nan

    return bootstrap(slope, len(y), 0.95, resamples, seed, clusters)


def _logistic(x: Floats, y: Floats) -> Floats:
    w = np.zeros(x.shape[1])
    prior = _PRIOR * np.eye(x.shape[1])
    for _ in range(_STEPS):
        p = _sigmoid(x @ w)
        gradient = x.T @ (y - p) - prior @ w
        hessian = (x * (p * (1 - p))[:, None]).T @ x + prior
        step = np.linalg.solve(hessian, gradient)
        # from far away a full Newton step can overshoot
        w = w + step * min(1.0, 4.0 / max(1e-300, float(np.abs(step).max())))
        if np.abs(step).max() < 1e-10:
            break
    return w


def _sigmoid(x: Floats) -> Floats:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))
