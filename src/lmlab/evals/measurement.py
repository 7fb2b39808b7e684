"""A figure with its standard error, as the evaluator writes it into results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmlab import stats


@dataclass(frozen=True)
class Measurement:
    """A figure with its standard error, None where it has none, and the number of units it rests on."""

    value: float
    standard_error: float | None
    count: int


def mean(values: Sequence[float] | NDArray[np.float64]) -> Measurement:
    """The mean of independent units."""
    found = np.asarray(values, float)
    return Measurement(float(found.mean()), stats.standard_error(found), len(found))


def ratio(
    numerators: Sequence[float] | NDArray[np.float64], denominators: Sequence[float] | Sequence[int]
) -> Measurement:
    """A total over a total."""
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    return Measurement(float(a.sum() / b.sum()), stats.ratio_error(a, b), len(a))


def bootstrapped(statistic: Callable[[NDArray[np.int64]], float], count: int, seed: int = 0) -> Measurement:
    """Any statistic of units, given by their numbers; its standard error is that over resamples."""
    found = stats.bootstrap(statistic, count, seed=seed)
    return Measurement(found.value, found.standard_error, count)
