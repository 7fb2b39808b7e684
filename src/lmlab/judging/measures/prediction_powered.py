"""The mean grade that people would give to all items, from the grades of a few and a judge's grades of all: prediction-
powered inference with a tuned weight (PPI++, Angelopoulos et al. 2023), clustered.

Shapes: N items, n of them with people's grades, C clusters.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError
from lmlab.stats import Interval, normal_quantile, t_quantile

Floats = NDArray[np.float64]
_FEWEST = 3  # clusters with people's grades: with two, nothing is known of how far their spread is off
_FLAT = 0.1  # of true and false positives of a judge beyond chance: below it nothing can be concluded


@dataclass(frozen=True)
class Estimated:
    """An estimate of a mean.

    Attributes:
        mean: the best one, with its interval: of both sources, or of people alone where that is narrower.
        people: the mean of people's grades alone, with its interval.
        judge: the mean of the judge's grades alone, which is off by its bias.
        weight: of the judge in the best one; 0 where people alone are used.
        labeled, items: how many items people, and the judge, have graded.
        clusters: with people's grades.
    """

    mean: Interval[float]
    people: Interval[float]
    judge: float
    weight: float
    labeled: int
    items: int
    clusters: int


def estimate_mean(
    people: ArrayLike, judge: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimated:
    """The mean that people would give.

    The items that people have graded must have been drawn at random (`draw_labels`). The weight of the judge is the one
    that makes the variance least. Influences are summed by cluster before they are squared, so that items of one
    chapter may depend on each other; quantiles are Student's with one degree of freedom less than there are clusters
    with people's grades, and the variance is enlarged for the weight that was learned.

    Arguments:
        people: a grade for each item; not-a-number where there is none.
        judge: a grade for each item.
        clusters: what each item belongs to.

    Raises:
        UserError: the judge misses items, or people have graded items of fewer than three clusters.
    """
    y, f = np.asarray(people, float), np.asarray(judge, float)
    if y.shape != f.shape or (clusters is not None and len(clusters) != len(y)):
        raise UserError(f"People's grades are of {len(y)} items and the judge's of {len(f)}.", "Give the same items.")
    if not np.isfinite(f).all():
        raise UserError(
            f"The judge has no grade for {int((~np.isfinite(f)).sum())} of {len(f)} items.",
            "Leave those items out, and say so: they are not a random part.",
        )
    known = np.isfinite(y)
    codes = _codes(clusters, len(y))
    of_people = len(np.unique(codes[known]))
    if of_people < _FEWEST:
        raise UserError(
            f"People have graded items of {of_people} independent clusters; an interval needs {_FEWEST}.",
            "Let people grade more.",
        )
    own = np.zeros(len(y))
    own[known] = _unbiased(of_people) * (y[known] - y[known].mean()) / known.sum()
    own_C = np.asarray(np.bincount(codes, own), float)
    alone = _interval(float(y[known].mean()), own_C, 1.0, of_people - 1, level)
    rest = ~known
    weight, both = 0.0, alone
    if rest.any() and np.ptp(f):
        shift = np.zeros(len(y))
        shift[known] = -_unbiased(of_people) * (f[known] - f[known].mean()) / known.sum()
        shift[rest] = _unbiased(len(np.unique(codes[rest]))) * (f[rest] - f[rest].mean()) / rest.sum()
        shift_C = np.asarray(np.bincount(codes, shift), float)
        power = float((shift_C**2).sum())
        best = -float((own_C * shift_C).sum()) / power if power else 0.0
        value = float(y[known].mean()) + best * float(f[rest].mean() - f[known].mean())
        found = _interval(value, own_C + best * shift_C, (of_people - 1) / (of_people - 2), of_people - 1, level)
        if found.half_width < alone.half_width:
            weight, both = best, found
    return Estimated(both, alone, float(f.mean()), weight, int(known.sum()), len(y), of_people)


def draw_labels(count: int, labels: int, seed: int = 0, strata: Sequence[Hashable] | None = None) -> list[int]:
    """Which items people should grade: drawn at random, so that nobody chooses.

    Arguments:
        strata: of the items; each gets its share of the labels, by the largest remainders.

    Raises:
        UserError: more labels than items.
    """
    if not 0 < labels <= count:
        raise UserError(f"{labels} of {count} items cannot be drawn.", f"Draw from 1 to {count}.")
    generator = np.random.default_rng(seed)
    if strata is None:
        return sorted(int(each) for each in generator.choice(count, labels, replace=False))
    codes = _codes(strata, count)
    sizes = np.bincount(codes)
    shares = sizes * labels / count
    counts = np.floor(shares).astype(int)
    for each in np.argsort(counts - shares, kind="stable")[: labels - counts.sum()]:
        counts[each] += 1
    drawn = [generator.choice(np.flatnonzero(codes == each), n, replace=False) for each, n in enumerate(counts) if n]
    return sorted(int(each) for each in np.concatenate(drawn))


def rogan_gladen(
    judged_positive: int, judged: int, specificity: tuple[int, int], sensitivity: tuple[int, int], level: float = 0.95
) -> Interval[float]:
    """The true share of positives from a judge's share and its errors (Rogan and Gladen 1978), with the interval of the
    delta method; cut to [0, 1].

    Arguments:
        judged_positive, judged: verdicts of the judge on all items.
        specificity: of items that people call negative, how many the judge does too, and how many there are.
        sensitivity: likewise of the positive ones.

    Raises:
        UserError: the judge tells positives from negatives hardly better than chance.
    """
    right0, negatives = specificity
    right1, positives = sensitivity
    if not (judged and negatives and positives):
        raise UserError("The judge's errors need people's verdicts of both kinds.", "Let people grade more.")
    p, q0, q1 = judged_positive / judged, right0 / negatives, right1 / positives
    skill = q0 + q1 - 1
    if skill < _FLAT:
        raise UserError(
            f"The judge's verdicts say nearly nothing: specificity {q0:.2f} and sensitivity {q1:.2f} are only"
            f" {skill:.2f} above chance.",
            "Use another judge, or people alone.",
        )
    value = (p + q0 - 1) / skill
    variance = p * (1 - p) / judged
    variance += (1 - value) ** 2 * q0 * (1 - q0) / negatives + value**2 * q1 * (1 - q1) / positives
    error = math.sqrt(variance) / skill
    half = normal_quantile(level) * error
    low, high = (min(1.0, max(0.0, each)) for each in (value - half, value + half))
    return Interval(min(1.0, max(0.0, value)), low, high, level, error)


def _interval(value: float, influence_C: Floats, factor: float, freedom: int, level: float) -> Interval[float]:
    error = math.sqrt(factor * float((influence_C**2).sum()))
    half = t_quantile(level, freedom) * error
    return Interval(value, value - half, value + half, level, error)


def _unbiased(clusters: int) -> float:
    """What makes the square of a sum of influences that of a sample variance, and not of a population's."""
    return math.sqrt(clusters / (clusters - 1)) if clusters > 1 else 1.0


def _codes(clusters: Sequence[Hashable] | None, count: int) -> NDArray[np.int64]:
    if clusters is None:
        return np.arange(count)
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(each, len(numbers)) for each in clusters], np.int64)
