"""Mean and population standard deviation of a stream: merged by Chan's rule, or exact, so that they do not depend on
the order of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.methods.qurating.selecting.problems import NonFiniteRating

_LOW_BITS = 26  # the lower half of a mantissa; the upper one has 27
_MANTISSA_BITS = 53  # of float64
_PIECE = 2**20  # so many summands of 27 bits are added in float64 without rounding


@dataclass(frozen=True)
class Moments:
    """Of some numbers.

    Attributes:
        count, mean: of them.
        m2: the sum of their squared differences from the mean; infinite beyond what numbers hold.
    """

    count: int = 0
    mean: float = 0.0
    m2: float = 0.0

    @classmethod
    def of(cls, values: ArrayLike) -> Moments:
        """The moments of an array, in float64."""
        x = np.asarray(values, np.float64)
        if not len(x):
            return cls()
        mean = float(x.mean())
        return cls(len(x), mean, float(np.square(x - mean).sum()))

    def merge(self, other: Moments) -> Moments:
        """The moments of both sets of numbers together (Chan et al. 1979)."""
        count = self.count + other.count
        if count == 0:
            return self
        delta = other.mean - self.mean
        mean = self.mean + delta * other.count / count
        return Moments(count, mean, self.m2 + other.m2 + delta * delta * self.count * other.count / count)

    @property
    def variance(self) -> float:
        """Of the population."""
        return self.m2 / self.count if self.count else 0.0

    @property
    def std(self) -> float:
        """Of the population."""
        return math.sqrt(self.variance)


class ExactSum:
    """A sum of float64 numbers without rounding: equal for every order of them."""

    def __init__(self) -> None:
        self._by_exponent: dict[int, int] = {}
        self.count = 0

    def add(self, values: NDArray[np.float64]) -> None:
        """Add finite numbers."""
        for start in range(0, len(values), _PIECE):
            self._add(values[start : start + _PIECE])
        self.count += len(values)

    def _add(self, values: NDArray[np.float64]) -> None:
        fraction, exponent = np.frexp(values)
        mantissa = np.ldexp(fraction, _MANTISSA_BITS).astype(np.int64)
        lowest = int(exponent.min(initial=0))
        place = exponent - lowest
        high = np.bincount(place, (mantissa >> _LOW_BITS).astype(np.float64))
        low = np.bincount(place, (mantissa & (2**_LOW_BITS - 1)).astype(np.float64))
        for offset, (upper, lower) in enumerate(zip(high.tolist(), low.tolist(), strict=True)):
            if upper or lower:
                key = lowest + offset - _MANTISSA_BITS
                self._by_exponent[key] = self._by_exponent.get(key, 0) + (int(upper) << _LOW_BITS) + int(lower)

    @property
    def value(self) -> Fraction:
        """The sum."""
        return sum((total * Fraction(2) ** exponent for exponent, total in self._by_exponent.items()), Fraction(0))


def exact_moments(chunks: Callable[[], Iterable[NDArray[np.float64]]]) -> Moments:
    """The moments of a stream that can be read twice, equal for every order and every cut of it.

    Arguments:
        chunks: gives the stream from its beginning.
    """
    total = ExactSum()
    for chunk in chunks():
        total.add(chunk)
    if not total.count:
        return Moments()
    mean = float(total.value / total.count)
    squares = ExactSum()
    with np.errstate(over="ignore"):
        for chunk in chunks():
            squared = np.square(chunk - mean)
            if not np.isfinite(squared).all():  # there is no number for it
                return Moments(total.count, mean, math.inf)
            squares.add(squared)
    return Moments(total.count, mean, float(squares.value))


def check_spread(moments: Moments, name: str) -> None:
    """Refuse ratings that cannot be normalized because they are too far apart.

    Raises:
        NonFiniteRating: their variance is beyond what numbers hold.
    """
    if not math.isfinite(moments.m2):
        raise NonFiniteRating(
            f"Ratings in '{name}' are so far apart that float64 cannot hold their variance.",
            "Scale them down, or normalize: false.",
        )


def standardize(values: Any, moments: Moments) -> NDArray[np.float64]:
    """z = (r - mean) / std, in float64."""
    return (np.asarray(values, np.float64) - moments.mean) / moments.std
