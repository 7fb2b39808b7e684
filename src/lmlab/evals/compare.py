"""Is one model better than another? Both have answered the same questions, so differences are taken question by
question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from lmlab.errors import UserError
from lmlab.evals.rows import Row

_RESAMPLES = 10_000
_SAME = ("gold", "references", "characters", "bytes", "domain")


@dataclass(frozen=True)
class Comparison:
    """The second model minus the first, on the same questions.

    Attributes:
        first, second: means of both.
        difference: of the means; its standard error is that of the differences of pairs.
        interval: of 95 %, from a paired bootstrap.
        p_value: of no difference; McNemar's exact test where questions are right or wrong, else the paired bootstrap
            (two-sided).
        only_first, only_second: questions that one alone got right; None where they are not right or wrong.
        left_out: rows of each run without a partner in the other one.
    """

    metric: str
    count: int
    first: float
    second: float
    difference: float
    standard_error: float | None
    interval: tuple[float, float]
    p_value: float
    only_first: int | None = None
    only_second: int | None = None
    left_out: tuple[int, int] = (0, 0)


def pair_rows(first: Sequence[Row], second: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of the questions that both have, in one order; skipped ones are left out.

    Raises:
        UserError: they have no question in common, or a question is another one.
    """
    known = {row["id"]: row for row in second if not row.get("skipped")}
    pairs = [(row, known[row["id"]]) for row in first if row["id"] in known and not row.get("skipped")]
    if not pairs:
        raise UserError(
            "The two models have not answered the same questions.",
            "Evaluate both with the same tasks and the same limit.",
        )
    for a, b in pairs:
        if any(a.get(key) != b.get(key) for key in _SAME):
            raise UserError(
                f"Question '{a['id']}' is another one in the second run.", "The task has changed; evaluate both again."
            )
    return [a for a, _ in pairs], [b for _, b in pairs]


def compare_values(metric: str, first: Sequence[float], second: Sequence[float], seed: int = 0) -> Comparison:
    """Compare the values of both on the same questions.

    The bootstrap resamples questions (Koehn 2004); its p-value is twice the share of resampled differences on the other
    side of zero. Where all values are 0 or 1, McNemar's exact test looks at the questions that only one got right
    (McNemar 1947): the binomial test of a fair coin.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    gaps = b - a
    resampled = _resampled_means(gaps, seed)
    low, high = np.quantile(resampled, [0.025, 0.975])
    p_value = min(1.0, 2 * min((resampled <= 0).mean(), (resampled >= 0).mean()))
    only_first = only_second = None
    if np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        only_first, only_second = int((gaps < 0).sum()), int((gaps > 0).sum())
        p_value = float(binomtest(only_second, only_first + only_second).pvalue) if only_first + only_second else 1.0
    error = float(gaps.std(ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else None
    interval = float(low), float(high)
    means = float(a.mean()), float(b.mean()), float(gaps.mean())
    return Comparison(metric, len(gaps), *means, error, interval, float(p_value), only_first, only_second)


def _resampled_means(values: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    generator = np.random.default_rng(seed)
    chunk = max(1, 2_000_000 // len(values))
    parts = [
        values[generator.integers(0, len(values), (min(chunk, _RESAMPLES - done), len(values)))].mean(1)
        for done in range(0, _RESAMPLES, chunk)
    ]
    return np.concatenate(parts)
