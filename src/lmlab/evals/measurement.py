"""A figure with its standard error, and the ways to get one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_RESAMPLES = 1000


@dataclass(frozen=True)
class Measurement:
    """A figure with its standard error, None where it has none, and the number of units it rests on."""

    value: float
    standard_error: float | None
    count: int


def mean(values: Sequence[float] | NDArray[np.float64]) -> Measurement:
    """The mean of independent units: the sample's standard deviation over the root of their number is its standard
    error.
    """
    found = np.asarray(values, float)
    error = float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    return Measurement(float(found.mean()), error, len(found))


def ratio(
    numerators: Sequence[float] | NDArray[np.float64], denominators: Sequence[float] | Sequence[int]
) -> Measurement:
    """A total over a total, with the standard error of a ratio estimator over units (Cochran 1977, section 6.4)."""
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    value = a.sum() / b.sum()
    error = math.sqrt(len(a) / (len(a) - 1) * ((a - value * b) ** 2).sum()) / b.sum() if len(a) > 1 else None
    return Measurement(float(value), error, len(a))


def bootstrapped(statistic: Callable[[NDArray[np.int64]], float], count: int, seed: int = 0) -> Measurement:
    """Any statistic of units, given by their numbers; its standard error is that over resamples with replacement (Efron
    1979).
    """
    generator = np.random.default_rng(seed)
    drawn = [statistic(generator.integers(0, count, count)) for _ in range(_RESAMPLES)] if count > 1 else []
    return Measurement(float(statistic(np.arange(count))), float(np.std(drawn, ddof=1)) if drawn else None, count)
