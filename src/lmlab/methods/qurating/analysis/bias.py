"""What ratings do to groups of texts: languages, dialects, regions, roles, sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

CAUTION = (
    "Ratings carry the social, dialectal and regional preferences of the judge and of the texts that it learned from. "
    "They measure neither literary nor social value, and are not fit for the study of groups of people."
)


@dataclass(frozen=True)
class GroupBias:
    """One group.

    Attributes:
        rows: of the group.
        mean_z: mean of the normalised ratings.
        rate: share of the rows that were chosen.
        ratio: that over the share of all rows.
        mean_z_interval, rate_interval, ratio_interval: of 95 %, by bootstrap over rows.
    """

    group: str
    rows: int
    mean_z: float
    mean_z_interval: tuple[float, float]
    rate: float
    rate_interval: tuple[float, float]
    ratio: float
    ratio_interval: tuple[float, float]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bias_report(
    z: ArrayLike, chosen: ArrayLike, groups: Sequence[Any], replicates: int = 1000, seed: int = 0
) -> list[GroupBias]:
    """Mean rating and rate of selection of each group, the largest group first.

    Arguments:
        z: normalised ratings, [N].
        chosen: which rows were chosen, [N].
        groups: the label of each row.
        replicates: of the bootstrap, which draws rows of all groups.
    """
    ratings, taken = np.asarray(z, np.float64), np.asarray(chosen, bool)
    labels = np.array(["" if each is None else str(each) for each in groups])
    names, code, counts = np.unique(labels, return_inverse=True, return_counts=True)
    rng = np.random.default_rng(seed)
    overall = float(taken.mean()) if len(taken) else 0.0
    overall_draws = rng.binomial(len(taken), overall, replicates) / max(1, len(taken))
    found = []
    for number in np.argsort(-counts, kind="stable"):
        mine = code == number
        own, picked = ratings[mine], taken[mine]
        rate = float(picked.mean())
        rates = rng.binomial(len(own), rate, replicates) / len(own)  # the bootstrap of a share
        draws = (
            rng.normal(own.mean(), own.std() / np.sqrt(len(own)), replicates)
            if len(own) > 5000
            else _means(own, replicates, rng)
        )
        ratios = np.divide(rates, overall_draws, out=np.full(replicates, np.nan), where=overall_draws > 0)
        ratio = rate / overall if overall else float("nan")
        found.append(
            GroupBias(
                str(names[number]),
                len(own),
                float(own.mean()),
                _interval(draws),
                rate,
                _interval(rates),
                ratio,
                _interval(ratios),
            )
        )
    return found


def _means(values: Any, replicates: int, rng: np.random.Generator) -> Any:
    return np.array([values[rng.integers(len(values), size=len(values))].mean() for _ in range(replicates)])


def _interval(draws: Any) -> tuple[float, float]:
    finite = draws[np.isfinite(draws)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [0.025, 0.975])
    return float(low), float(high)
