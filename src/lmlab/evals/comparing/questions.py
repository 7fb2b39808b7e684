"""Is one model better than another? Both have answered the same questions, so differences are taken question by
question.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from lmlab import stats
from lmlab.errors import UserError
from lmlab.evals.rows import Row

_SAME = ("gold", "references", "characters", "bytes", "domain")


@dataclass(frozen=True)
class Comparison:
    """The second model minus the first, on the same questions.

    Attributes:
        first, second: means of both.
        difference: of the means, with the interval of 95 % of a paired bootstrap; its standard error is that of the
            differences of pairs.
        p_value: of no difference; McNemar's exact test where questions are right or wrong, else the paired bootstrap
            (two-sided).
        only_first, only_second: questions that one alone got right; None where they are not right or wrong.
        left_out: rows of each run without a partner in the other one.
        lower_is_better: of the metric.
    """

    metric: str
    count: int
    first: float
    second: float
    difference: stats.Interval[float]
    p_value: float
    only_first: int | None = None
    only_second: int | None = None
    left_out: tuple[int, int] = (0, 0)
    lower_is_better: bool = False


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


def compare_values(
    metric: str,
    first: Sequence[float],
    second: Sequence[float],
    seed: int = 0,
    clusters: Sequence[Hashable] | None = None,
) -> Comparison:
    """Compare the values of both on the same questions.

    The bootstrap resamples questions. Where all values are 0 or 1, the p-value is that of McNemar's exact test, which
    looks at the questions that only one got right.

    Arguments:
        clusters: what questions depend on each other by; whole ones are resampled, and McNemar's test, which supposes
            independence, is not used.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    difference, p_value = stats.paired_bootstrap(a, b, seed=seed, clusters=clusters)
    only_first = only_second = None
    if np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        only_first, only_second = int((b < a).sum()), int((b > a).sum())
        p_value = p_value if clusters is not None else stats.mcnemar(only_first, only_second)
    means = float(a.mean()), float(b.mean())
    return Comparison(metric, len(a), *means, difference, p_value, only_first, only_second)
