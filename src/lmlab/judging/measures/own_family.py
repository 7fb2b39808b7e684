"""Whether a judge is kinder to answers of its own family than people are."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError
from lmlab.stats import Interval, bootstrap


def of_family(systems: Sequence[str], patterns: Sequence[str]) -> NDArray[np.bool_]:
    """Which answers are of a family, by names or patterns such as `gpt-*`, in any case.

    Raises:
        UserError: none is, or all are, so that there is nothing to compare.
    """
    found = np.array([any(fnmatchcase(name.casefold(), each.casefold()) for each in patterns) for name in systems])
    if found.any() and not found.all():
        return found
    known = ", ".join(sorted(set(systems))[:8])
    raise UserError(
        f"{'All' if found.all() else 'None'} of the systems are of the family {', '.join(patterns)}.",
        f"The systems are: {known}. Name those of the judge's family, as gpt-*.",
    )


def own_family_bias(
    gaps: ArrayLike,
    own: ArrayLike,
    clusters: Sequence[Hashable] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval[float] | None:
    """The mean of judge less people of the own family, less that of all others: above 0 for a judge that favors its
    kin. Answers that are better are no bias, since people's grades are subtracted.

    Arguments:
        gaps: judge less people, of answers with both grades.
        own: which of them are of the judge's family.
        clusters: what each answer belongs to: resamples draw whole ones; those without one of both sides say nothing
            and are left out.

    Returns:
        None where one side has no answer with both grades.
    """
    values, mine = np.asarray(gaps, float), np.asarray(own, bool)
    if not mine.any() or mine.all():
        return None

    def gap(chosen: NDArray[np.int64]) -> float:
        kin = mine[chosen]
        if not kin.any() or kin.all():
            return float("nan")
        return float(values[chosen][kin].mean() - values[chosen][~kin].mean())

    return bootstrap(gap, len(values), 0.95, resamples, seed, clusters)
