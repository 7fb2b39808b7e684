"""How far a judge agrees with people, or people with each other: the figures that studies of judges publish, each with
an interval: Wilson's for shares, else by bootstrap.

A figure that is not defined (a rank correlation with a constant column, say) is None, and never a number. The bootstrap
draws whole clusters where items of one (a chapter, a dialogue) depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError
from lmlab.stats import Interval, percentile_interval, resample, wilson

Floats = NDArray[np.float64]
Weights = Literal["none", "linear", "quadratic"]
Level = Literal["nominal", "ordinal", "interval", "ratio"]
_SHARES = ("accuracy", "exact")
_FEWEST = 2  # items that can be compared, clusters that can be drawn


@dataclass(frozen=True)
class Agreement:
    """Agreement of a judge with people.

    Attributes:
        items: that both have judged.
        missing: items that one of them has not.
        figures: by name; None where a figure is not defined.
    """

    items: int
    missing: int
    figures: dict[str, Interval[float] | None]


def label_agreement(
    judge: Sequence[Any],
    people: Sequence[Any],
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement on labels (which of two texts is better, whether an answer is right).

    Arguments:
        judge, people: a label for each item; None for none.
        clusters: what each item belongs to.

    Returns:
        figures `accuracy` (the share of equal labels), `kappa` (Cohen's) and `alpha` (Krippendorff's, nominal).

    Raises:
        UserError: no item has both labels.
    """
    names = {label: float(number) for number, label in enumerate(dict.fromkeys([*people, *judge])) if label is not None}
    codes = [np.array([names.get(label, math.nan) for label in labels]) for labels in (judge, people)]
    figures: dict[str, Callable[[Floats, Floats], float]] = {
        "accuracy": lambda a, b: float((a == b).mean()),
        "kappa": lambda a, b: cohen_kappa(a, b),
        "alpha": lambda a, b: krippendorff_alpha([a, b], "nominal"),
    }
    return _agreement(codes[0], codes[1], figures, clusters, resamples, seed)


def grade_agreement(
    judge: ArrayLike,
    people: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Agreement:
    """Agreement on grades.

    Arguments:
        judge, people: a grade for each item; not-a-number for none.
        clusters: what each item belongs to.

    Returns:
        figures `bias` (the judge's mean less people's), `exact` (share of equal grades), `pearson`, `spearman`,
        `kendall` (tau-b), `kappa` (quadratic weights) and `alpha` (Krippendorff's, interval).

    Raises:
        UserError: no item has both grades.
    """
    from scipy.stats import kendalltau, pearsonr, spearmanr

    def correlation(function: Callable[[Floats, Floats], Any]) -> Callable[[Floats, Floats], float]:
        return lambda a, b: float(function(a, b).statistic) if np.ptp(a) and np.ptp(b) else math.nan

    figures: dict[str, Callable[[Floats, Floats], float]] = {
        "bias": lambda a, b: float((a - b).mean()),
        "exact": lambda a, b: float((a == b).mean()),
        "pearson": correlation(pearsonr),
        "spearman": correlation(spearmanr),
        "kendall": correlation(kendalltau),
        "kappa": lambda a, b: cohen_kappa(a, b, "quadratic"),
        "alpha": lambda a, b: krippendorff_alpha([a, b], "interval"),
    }
    first, second = np.asarray(judge, float), np.asarray(people, float)
    return _agreement(first, second, figures, clusters, resamples, seed)


def cohen_kappa(first: ArrayLike, second: ArrayLike, weights: Weights = "none") -> float:
    """Cohen's kappa of two ratings of the same items (Cohen 1960; with weights Cohen 1968): 1 less the disagreement
    over that of independent raters with the same habits. Weights are of the distance of values, so they need numbers.

    Not-a-number where both always say the same one thing.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    values, codes = np.unique(np.concatenate([a, b]), return_inverse=True)
    joint = np.zeros((len(values), len(values)))
    np.add.at(joint, (codes[: len(a)], codes[len(a) :]), 1 / len(a))
    distance = np.abs(values[:, None] - values[None, :])
    cost = {"none": (distance > 0).astype(float), "linear": distance, "quadratic": distance**2}[weights]
    expected = float((cost * joint.sum(1)[:, None] * joint.sum(0)[None, :]).sum())
    return 1 - float((cost * joint).sum()) / expected if expected else math.nan


def krippendorff_alpha(ratings: Sequence[ArrayLike], level: Level = "nominal") -> float:
    """Krippendorff's alpha of any number of raters (Krippendorff 2011): 1 less the disagreement within items over that
    of all values.

    Arguments:
        ratings: for each rater a value for each item; not-a-number for none. Items with fewer than two values are left
            out.
        level: how far two values are apart: `nominal` (different or not), `ordinal` (by the number of values between
            them), `interval` or `ratio`.

    Not-a-number where nothing can be compared, or all values are equal.
    """
    table = np.stack([np.asarray(each, float) for each in ratings])
    table = table[:, np.isfinite(table).sum(0) >= 2]
    if not table.shape[1]:
        return math.nan
    values = np.unique(table[np.isfinite(table)])
    counts_IV = np.stack([(table == value).sum(0) for value in values], 1).astype(float)
    several_I = counts_IV.sum(1)
    weighted = counts_IV / (several_I - 1)[:, None]
    coincidence = weighted.T @ counts_IV - np.diag(weighted.sum(0))
    totals = coincidence.sum(0)
    cost = _distances(values, totals, level)
    expected = float((cost * np.outer(totals, totals)).sum()) / (totals.sum() - 1)
    return 1 - float((cost * coincidence).sum()) / expected if expected else math.nan


def _distances(values: Floats, totals: Floats, level: Level) -> Floats:
    """Squared distances of values, [V, V]."""
    gap = np.abs(values[:, None] - values[None, :])
    if level == "nominal":
        return (gap > 0).astype(float)
    if level == "interval":
        return gap**2
    if level == "ratio":
        both = values[:, None] + values[None, :]
        return np.divide(gap, both, out=np.zeros_like(gap), where=both != 0) ** 2
    upto = np.cumsum(totals)
    # From the middle of one value's ratings to the middle of the other's.
    middle = upto - totals / 2
    return (middle[:, None] - middle[None, :]) ** 2


def _agreement(
    judge: Floats,
    people: Floats,
    figures: dict[str, Callable[[Floats, Floats], float]],
    clusters: Sequence[Hashable] | None,
    resamples: int,
    seed: int,
) -> Agreement:
    if judge.shape != people.shape or (clusters is not None and len(clusters) != len(judge)):
        raise UserError(f"The judge has judged {len(judge)} items and people {len(people)}.", "Give the same items.")
    both = np.isfinite(judge) & np.isfinite(people)
    if not both.any():
        raise UserError("There is no item that both the judge and people have judged.")
    a, b = judge[both], people[both]
    kept = None if clusters is None else [each for each, keep in zip(clusters, both, strict=True) if keep]
    found: dict[str, Interval[float] | None] = {}
    for name, figure in figures.items():
        value = figure(a, b)
        if not math.isfinite(value) or (len(a) < _FEWEST and name not in (*_SHARES, "bias")):
            found[name] = None
            continue

        if kept is None and name in _SHARES:  # the bootstrap of a share of 0 or 1 is a point
            found[name] = wilson(round(value * len(a)), len(a))
            continue

        if (len(a) if kept is None else len(set(kept))) < _FEWEST:  # one tells nothing of the spread between them
            found[name] = Interval(value, math.nan, math.nan, 0.95)
            continue

        def statistic(chosen: NDArray[np.int64], figure: Callable[[Floats, Floats], float] = figure) -> float:
            return figure(a[chosen], b[chosen])

        found[name] = percentile_interval(value, resample(statistic, len(a), resamples, seed, kept))
    return Agreement(len(a), int((~both).sum()), found)
