"""Whether a judge says the same of the same answer again."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError
from lmlab.stats import Interval, bootstrap

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class SelfConsistency:
    """How several grades of one answer by one judge agree.

    Attributes:
        samples: grades of each answer.
        items: answers that have all of them; the others are left out.
        spread: standard deviation of a grade around the mean of its answer.
        equal: the share of pairs of grades of one answer that are the same.
        reliability: how much of the variance of single grades is between answers: the intraclass correlation ICC(1) of
            a one-way model (Shrout and Fleiss 1979); None where all grades are one.
        reliability_of_mean: that of the mean of all samples (Spearman and Brown).
    """

    samples: int
    items: int
    spread: Interval[float]
    equal: Interval[float]
    reliability: Interval[float] | None
    reliability_of_mean: float | None


def self_consistency(
    grades: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> SelfConsistency:
    """The figures of a table with an answer a row and a sample a column.

    Arguments:
        grades: [answers, samples]; not-a-number where there is none.
        clusters: what each answer belongs to: intervals draw whole ones.

    Raises:
        UserError: there are fewer than two samples, or no answer has all of them.
    """
    table_AS = np.asarray(grades, float)
    if table_AS.ndim != 2 or table_AS.shape[1] < 2:
        raise UserError("Consistency needs at least two grades of each answer.", "Grade with --samples 3.")
    whole = np.isfinite(table_AS).all(1)
    if not whole.any():
        raise UserError("No answer has all of its samples.", "See the statuses of the grades.")
    kept_AS = table_AS[whole]
    count, samples = kept_AS.shape
    kept = None if clusters is None else [each for each, keep in zip(clusters, whole, strict=True) if keep]
    within_A = kept_AS.var(1, ddof=1)
    pairs = [(first, second) for first in range(samples) for second in range(first + 1, samples)]
    equal_A = np.mean([kept_AS[:, first] == kept_AS[:, second] for first, second in pairs], 0)
    known = not math.isnan(_icc(kept_AS))
    reliability = None
    if known:
        reliability = bootstrap(lambda chosen: _or_nothing(kept_AS[chosen]), count, 0.95, resamples, seed, kept)
    of_mean = None
    if reliability is not None:
        r = max(0.0, reliability.value)
        of_mean = samples * r / (1 + (samples - 1) * r)
    return SelfConsistency(
        samples,
        count,
        bootstrap(lambda chosen: math.sqrt(within_A[chosen].mean()), count, 0.95, resamples, seed, kept),
        bootstrap(lambda chosen: float(equal_A[chosen].mean()), count, 0.95, resamples, seed, kept),
        reliability,
        of_mean,
    )


def _icc(table_AS: Floats) -> float:
    """(MSB - MSW) / (MSB + (k - 1) MSW); not-a-number where nothing varies or there is one answer."""
    count, samples = table_AS.shape
    if count < 2:
        return math.nan
    between = samples * float(table_AS.mean(1).var(ddof=1))
    within = float(table_AS.var(1, ddof=1).mean())
    whole = between + (samples - 1) * within
    return (between - within) / whole if whole > 0 else math.nan


def _or_nothing(table_AS: Floats) -> float:
    """That of a resample; one in which nothing varies distinguishes nothing."""
    found = _icc(table_AS)
    return 0.0 if math.isnan(found) else found
