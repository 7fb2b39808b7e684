"""Which of two recipes will be better at the target: the predicted difference, and the probability that it is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.analysis.decide import shares
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.fitting.intervals import OWN_PARTS
from lmlab.stats import normal_cdf, normal_quantile


@dataclass(frozen=True)
class Difference:
    """One task, or the mean of all: accuracies in 0 to 1, the difference B - A with its interval, and the probability
    that B is better.
    """

    task: str
    a: float
    b: float
    difference: float
    lo: float
    hi: float
    b_better: float


def compare(
    a: Forecaster, b: Forecaster, n: float, d: float, level: float = 0.9, weights: Sequence[float] = ()
) -> list[Difference]:
    """Compare two ladders at one target.

    The runs of both are independent, so their parts `fit` and `run` add up. What another form of the law would change
    counts only as far as it changes the difference, where both ladders have it. The accuracy curve is that of the same
    questions in both and counts once for each.

    Arguments:
        weights: of the tasks in their mean; equal by default.

    Returns:
        a row for each task, and one for the mean over them.

    Raises:
        UserError: they were fitted to different tasks, or the target is none.
    """
    if [task.name for task in a.tasks] != [task.name for task in b.tasks]:
        raise UserError("The two ladders were fitted to different tasks.")
    if a.table.ladder.digest == b.table.ladder.digest:
        raise UserError("The two ladders are the same.")
    points, own_parts, forms, slopes, factors, together = [], [], [], [], [], []
    for each in (a, b):
        x_3 = each.target(n, d, level)
        x_3Q = x_3[:, None]
        p = each.ensemble.accuracy(x_3Q)[0, :, 0]
        points.append(p)
        slopes.append(p * (1 - p))
        parts = each.ensemble.spread(x_3Q).parts
        own = [((parts[name][0] + parts[name][1]) / 2) ** 2 for name in OWN_PARTS if name in parts]
        factors.append(each.factor(level, each.beyond(x_3)))
        own_parts.append(factors[-1] ** 2 * np.sum(own, axis=0)[:, 0])
        together.append(each.ensemble.correlations(x_3Q))
        forms.append(each.ensemble.form_shifts(x_3Q, each.beyond(x_3)))
    difference = points[1] - points[0]
    variance = own_parts[0] * slopes[0] ** 2 + own_parts[1] * slopes[1] ** 2
    none = np.zeros((len(difference), 1))
    for name in {*forms[0], *forms[1]}:  # what one ladder alone supposes moves that ladder alone
        one, two = (
            factor * slope * shifts.get(name, none)[:, 0]
            for factor, slope, shifts in zip(factors, slopes, forms, strict=True)
        )
        variance += (two - one) ** 2
    reach = np.sqrt(variance)
    z = normal_quantile(level)
    rows = [
        _row(task.name, float(points[0][k]), float(points[1][k]), float(difference[k]), float(reach[k]), z)
        for k, task in enumerate(a.tasks)
    ]
    correlation = (together[0] + together[1]) / 2
    share_T = shares(weights, len(rows))
    whole = float(np.sqrt((share_T * reach) @ correlation @ (share_T * reach)))
    mean_a, mean_b, between = (float(share_T @ each) for each in (*points, difference))
    rows.append(_row("mean", mean_a, mean_b, between, whole, z))
    return rows


def _row(name: str, a: float, b: float, difference: float, reach: float, z: float) -> Difference:
    return Difference(
        name,
        a,
        b,
        difference,
        difference - reach,
        difference + reach,
        normal_cdf(difference / max(reach / z, 1e-12)),
    )
