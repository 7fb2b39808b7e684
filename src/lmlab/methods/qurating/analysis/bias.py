"""What ratings do to groups of texts: languages, dialects, regions, roles, sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lmlab.stats import Interval, percentile_interval, resampled_means

CAUTION = (
    "Ratings carry the social, dialectal and regional preferences of the judge and of the texts that it learned from. "
    "They measure neither literary nor social value, and are not fit for the study of groups of people."
)

_MANY = 5000  # rows of a group whose mean is as good as normal: its bootstrap is drawn from that law


@dataclass(frozen=True)
class GroupBias:
    """One group.

    Attributes:
        rows: of the group.
        mean_z: mean of the normalized ratings.
        rate: share of the rows that were chosen.
        ratio: that over the share of all rows.

    Intervals are of 95 %, by bootstrap over rows.
    """

    group: str
    rows: int
    mean_z: Interval[float]
    rate: Interval[float]
    ratio: Interval[float]

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def bias_report(
    z: ArrayLike, chosen: ArrayLike, groups: Sequence[Any], replicates: int = 1000, seed: int = 0
) -> list[GroupBias]:
    """Mean rating and rate of selection of each group, the largest group first.

    Arguments:
        z: normalized ratings, [N].
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
            if len(own) > _MANY
            else resampled_means(own, replicates, rng)
        )
        ratios = np.divide(rates, overall_draws, out=np.full(replicates, np.nan), where=overall_draws > 0)
        ratio = rate / overall if overall else float("nan")
        found.append(
            GroupBias(
                str(names[number]),
                len(own),
                percentile_interval(float(own.mean()), draws),
                percentile_interval(rate, rates),
                percentile_interval(ratio, ratios),
            )
        )
    return found
