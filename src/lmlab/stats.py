"""Intervals and tests, once for everything that is measured: bootstrap (plain, paired, clustered), jackknife, Wilson,
t, McNemar, and the one type of an interval.

NumPy and SciPy are imported when a function is called, so that this module costs nothing where it is only named.

Shapes: n units, R resamples, G groups.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

    Floats = NDArray[np.float64]
    Seed = int | np.random.Generator
else:
    import lazy_loader

    np = lazy_loader.load("numpy")

Number = TypeVar("Number", "float", "NDArray[Any]")

_DRAWN_AT_ONCE = 2_000_000  # indices of resamples in memory: 16 MB


@dataclass(frozen=True)
class Interval(Generic[Number]):
    """A figure, or an array of figures, with its interval.

    Attributes:
        value: the figure itself.
        low, high: bounds; not-a-number where there are too few units to tell.
        level: what share of such intervals is to hold the truth.
        standard_error: None where it has none, not-a-number in arrays.
    """

    value: Number
    low: Number
    high: Number
    level: float
    standard_error: Number | None = None

    @property
    def half_width(self) -> Number:
        """Half the distance of the bounds: what follows a ±."""
        return (self.high - self.low) / 2

    @property
    def bounds(self) -> tuple[Number, Number]:
        """Both bounds."""
        return self.low, self.high


def normal_quantile(level: float) -> float:
    """What a standard error is multiplied by for a two-sided interval of a normal figure: 1.96 for 0.95."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2))


def t_quantile(level: float, freedom: float) -> float:
    """What an estimated standard error is multiplied by for a two-sided interval, by Student's t: 2.57 for 0.95 and 5
    degrees of freedom.
    """
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 0.5 + level / 2))


def normal_cdf(x: float) -> float:
    """The probability that a standard normal figure is below x."""
    from scipy.special import ndtr

    return float(ndtr(x))


def standard_error(values: ArrayLike) -> float | None:
    """Of the mean of independent units: the sample's standard deviation over the root of their number; None for fewer
    than two.
    """
    found = np.asarray(values, float)
    return float(found.std(ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None


def ratio_error(numerators: ArrayLike, denominators: ArrayLike) -> float | None:
    """The standard error of a total over a total, by the ratio estimator over units (Cochran 1977, section 6.4); None
    for fewer than two.
    """
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    if len(a) < 2:
        return None
    value = a.sum() / b.sum()
    return float(math.sqrt(len(a) / (len(a) - 1) * ((a - value * b) ** 2).sum()) / b.sum())


def without_noise(value: float | None, scale: float = 1.0) -> float | None:
    """A mean of numbers of this size, as 0 where it is below what single precision holds of them: such a mean is the
    rounding of numbers that cancel, and no figure.
    """
    return 0.0 if value is not None and abs(value) < 1e-6 * scale else value


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval[float]:
    """The mean of independent units with Student's interval; its bounds are not-a-number for fewer than two units."""
    found = np.asarray(values, float)
    mean, error = float(found.mean()), standard_error(found)
    if error is None:
        return Interval(mean, math.nan, math.nan, level)
    half = t_quantile(level, len(found) - 1) * error
    return Interval(mean, mean - half, mean + half, level, error)


def t_test(differences: ArrayLike) -> float | None:
    """The two-sided p of a mean of 0 (of pairs: the paired t-test); None for fewer than two differences.

    Differences that are all equal leave no doubt: p is 0, or 1 where they are all 0.
    """
    from scipy.special import stdtr

    found = np.asarray(differences, float)
    error = standard_error(found)
    if error is None:
        return None
    mean = float(found.mean())
    if error == 0:
        return 0.0 if mean else 1.0
    return float(2 * stdtr(len(found) - 1, -abs(mean) / error))


def wilson(successes: float, trials: int, level: float = 0.95) -> Interval[float]:
    """A share with Wilson's score interval (Wilson 1927), which holds for few trials and shares near 0 and 1 too. Of
    figures between 0 and 1 their sum may stand for the successes: they vary less than shares of the same mean.

    Raises:
        ValueError: there are no trials, or more successes than trials.
    """
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"{successes} of {trials} is no share")
    z, p = normal_quantile(level), successes / trials
    middle = (p + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(p * (1 - p) / trials + z * z / (4 * trials * trials))
    # At the ends the bound is exactly 0 or 1; rounding would leave it a hair inside.
    low, high = (0.0 if successes == 0 else middle - half), (1.0 if successes == trials else middle + half)
    return Interval(p, low, high, level, math.sqrt(p * (1 - p) / trials))


def pass_at_k(tries: int, successes: int, k: int) -> float:
    """The chance that at least one of k tries succeeds, without bias from `tries` that were made (Chen et al. 2021,
    equation 1).

    Raises:
        ValueError: fewer tries than k, or more successes than tries.
    """
    if not (0 <= successes <= tries and 1 <= k <= tries):
        raise ValueError(f"no pass@{k} of {successes} successes in {tries} tries")
    if tries - successes < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / n for n in range(tries - successes + 1, tries + 1))


def mcnemar(only_first: int, only_second: int) -> float:
    """The two-sided p of no difference between two that answered the same questions, from the questions that only one
    got right (McNemar 1947): the exact binomial test of a fair coin. Without such questions it is 1.
    """
    from scipy.stats import binomtest

    total = only_first + only_second
    return float(binomtest(only_second, total).pvalue) if total else 1.0


def paired_shares(both: int, only_first: int, only_second: int, neither: int, level: float = 0.95) -> Interval[float]:
    """The second's share less the first's on the same questions, with an interval that holds for few of them: the wider
    on each side of Newcombe's (1998, method 10) and of the exact one of `mcnemar`, so that 0 lies outside only where
    that test says so.

    Raises:
        ValueError: there are no questions.
    """
    from scipy.stats import binomtest

    total, apart = both + only_first + only_second + neither, only_first + only_second
    one, two = wilson(both + only_first, total, level), wilson(both + only_second, total, level)
    difference = two.value - one.value
    cross = float(both * neither - only_first * only_second)
    if cross > 0:
        cross = max(0.0, cross - total / 2)
    margins = (both + only_first) * (only_second + neither) * (both + only_second) * (only_first + neither)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def reach(x: float, y: float) -> float:
        return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))

    low = difference - reach(two.value - two.low, one.high - one.value)
    high = difference + reach(two.high - two.value, one.value - one.low)
    if apart:
        exact = binomtest(only_second, apart).proportion_ci(level, "exact")
        low = min(low, (2 * exact.low - 1) * apart / total)
        high = max(high, (2 * exact.high - 1) * apart / total)
    return Interval(difference, max(-1.0, low), min(1.0, high), level)


def overlap_test(both: int, first: int, second: int, total: int) -> float:
    """The probability that random sets of two sizes out of `total` share at least `both` members (hypergeometric)."""
    from scipy.stats import hypergeom

    return float(hypergeom.sf(both - 1, total, first, second))


def percentiles(draws: ArrayLike, level: float = 0.95, axis: int = 0) -> tuple[Floats, Floats]:
    """The bounds of the middle share `level` of draws along an axis."""
    low, high = np.quantile(np.asarray(draws, float), (0.5 - level / 2, 0.5 + level / 2), axis=axis)
    return low, high


def percentile_interval(value: float, draws: ArrayLike, level: float = 0.95) -> Interval[float]:
    """A figure with the percentile interval of its resamples, [R], and their standard deviation as its error (Efron
    1979). Draws that are not finite (a ratio over nothing) are left out.
    """
    found = np.asarray(draws, float)
    found = found[np.isfinite(found)]
    if not len(found):
        return Interval(value, math.nan, math.nan, level)
    low, high = percentiles(found, level)
    error = float(np.std(found, ddof=1)) if len(found) > 1 else None
    return Interval(value, float(low), float(high), level, error)


def resample(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    resamples: int = 1000,
    seed: Seed = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Floats:
    """A statistic of units, given by their numbers, over resamples with replacement, [R].

    Arguments:
        count: of units.
        clusters: the cluster of each unit; whole clusters are drawn, as many as there are, so that units of one may
            depend on each other.
    """
    generator = np.random.default_rng(seed)
    if clusters is None:
        return np.array([statistic(generator.integers(0, count, count)) for _ in range(resamples)], float)
    members = _members(clusters)
    drawn = (generator.integers(0, len(members), len(members)) for _ in range(resamples))
    return np.array([statistic(np.concatenate([members[each] for each in picked])) for picked in drawn], float)


def bootstrap(
    statistic: Callable[[NDArray[np.int64]], float],
    count: int,
    level: float = 0.95,
    resamples: int = 1000,
    seed: Seed = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Interval[float]:
    """Any statistic of units, given by their numbers, with its percentile interval (Efron 1979); arguments as in
    `resample`. Of one unit, or of one cluster, nothing is known of the spread.
    """
    value = float(statistic(np.arange(count)))
    if count < 2 or (clusters is not None and len(set(clusters)) < 2):
        return Interval(value, math.nan, math.nan, level)
    return percentile_interval(value, resample(statistic, count, resamples, seed, clusters), level)


def resampled_means(
    values: ArrayLike, resamples: int = 10_000, seed: Seed = 0, clusters: Sequence[Hashable] | None = None
) -> Floats:
    """Means over resamples with replacement, [R]: the draws of `resample`, faster."""
    found = np.asarray(values, float)
    sizes = None
    if clusters is not None:
        place = np.array(_codes(clusters))
        found, sizes = np.bincount(place, found), np.bincount(place)
    generator, count = np.random.default_rng(seed), len(found)
    chunk = max(1, _DRAWN_AT_ONCE // count)
    parts = []
    for done in range(0, resamples, chunk):
        picked = generator.integers(0, count, (min(chunk, resamples - done), count))
        means = found[picked].mean(1) if sizes is None else found[picked].sum(1) / sizes[picked].sum(1)
        parts.append(means)
    return np.concatenate(parts)


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: Seed = 0,
    clusters: Sequence[Hashable] | None = None,
) -> tuple[Interval[float], float]:
    """The second less the first on the same units: the mean difference with its interval, and the two-sided p of no
    difference, which is twice the share of resampled differences on the other side of zero (Koehn 2004).

    Without clusters the standard error is that of the mean of the differences, else that over resamples. Of one unit,
    or of one cluster, nothing is known of the spread: its bounds are not-a-number, and p is 1.
    """
    gaps = np.asarray(second, float) - np.asarray(first, float)
    if len(gaps) < 2 or (clusters is not None and len(set(clusters)) < 2):
        return Interval(float(gaps.mean()), math.nan, math.nan, level), 1.0
    draws = resampled_means(gaps, resamples, seed, clusters)
    low, high = percentiles(draws, level)
    p = float(min(1.0, 2 * min((draws <= 0).mean(), (draws >= 0).mean())))
    error = standard_error(gaps) if clusters is None else float(draws.std(ddof=1))
    return Interval(float(gaps.mean()), float(low), float(high), level, error), p


def jackknife(function: Callable[[Any], Any], parts_G: ArrayLike, level: float = 0.95) -> Interval[NDArray[Any]]:
    """A function of a sum over groups, with the interval of leaving out each group in turn.

    Arguments:
        function: of the summed parts; it may return an array.
        parts_G: what each group adds, [G, ...]; groups that add nothing are left out. Of one nothing is known of the
            spread, and its bounds are not-a-number; of few the variance is a guess, which Student's quantile for one
            degree of freedom less than groups allows for.
    """
    parts = np.asarray(parts_G)
    parts = parts[parts.reshape(len(parts), -1).any(1)]
    total, groups = parts.sum(0), len(parts)
    value = np.asarray(function(total), float)
    if groups < 2:
        unknown = np.full_like(value, np.nan)
        return Interval(value, unknown, unknown, level, unknown)
    without = np.stack([function(total - part) for part in parts])
    error = np.sqrt((groups - 1) / groups * ((without - without.mean(0)) ** 2).sum(0))
    half = t_quantile(level, groups - 1) * error
    return Interval(value, value - half, value + half, level, error)


def calibration_error(predicted: ArrayLike, outcome: ArrayLike, bins: int = 10) -> float:
    """The expected calibration error: over equal bins of the predicted probability the mean of |mean prediction - mean
    outcome|, weighted by units (Guo et al. 2017, equation 3). Outcomes may be shares.
    """
    p, y = np.asarray(predicted, float), np.asarray(outcome, float)
    place = np.minimum((p * bins).astype(int), bins - 1)
    gaps = np.bincount(place, weights=p - y, minlength=bins)
    return float(np.abs(gaps).sum() / len(p))


def roc_auc(negative: ArrayLike, positive: ArrayLike) -> float:
    """The area under the ROC curve: the chance that a positive scores above a negative, ties half."""
    from scipy.stats import rankdata

    low, high = np.asarray(negative, float), np.asarray(positive, float)
    wins = rankdata(np.concatenate([low, high]))[len(low) :].sum() - len(high) * (len(high) + 1) / 2
    return float(wins / (len(low) * len(high)))


def _codes(clusters: Sequence[Hashable]) -> list[int]:
    """Numbers for labels of any kind, in the order in which they are first met."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(each, len(numbers)) for each in clusters]


def _members(clusters: Sequence[Hashable]) -> list[NDArray[np.int64]]:
    codes = np.array(_codes(clusters), np.int64)
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
