"""Which of two recipes will be better at the target: the predicted difference, and the probability that it is real."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.fitting.logits import logit
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


def compare(a: Forecaster, b: Forecaster, n: float, d: float, level: float = 0.9) -> list[Difference]:
    """Compare two ladders at one target.

    The runs of both are independent, so their parts `fit` and `run` add up. What another form of the law would change
    counts only as far as it changes the difference. The accuracy curve is that of the same questions in both and counts
    once for each.

    Returns:
        a row for each task, and one for the mean over them.

    Raises:
        UserError: they were fitted to different tasks, or the target is none.
    """
    if [task.name for task in a.tasks] != [task.name for task in b.tasks]:
        raise UserError("The two ladders were fitted to different tasks.")
    if a.table.ladder.digest == b.table.ladder.digest:
        raise UserError("The two ladders are the same.")
    points, spreads, forms, slopes, together = [], [], [], [], []
    for each in (a, b):
        x_3Q = each.target(n, d, level)[:, None]
        p = each.ensemble.accuracy(x_3Q)[0, :, 0]
        points.append(p)
        slopes.append(p * (1 - p))
        parts = each.ensemble.spread(x_3Q).parts
        factor = each.calibration.factor(level) if each.calibration else normal_quantile(level)
        own = [((parts[name][0] + parts[name][1]) / 2) ** 2 for name in ("fit", "run", "curve") if name in parts]
        spreads.append(factor**2 * np.sum(own, axis=0)[:, 0])
        together.append(each.ensemble.correlations(x_3Q))
        forms.append(np.array([logit(chain.accuracy(x_3Q)[0, :, 0]) - logit(p) for chain in each.ensemble.forms]))
    difference = points[1] - points[0]
    variance = spreads[0] * slopes[0] ** 2 + spreads[1] * slopes[1] ** 2
    if len(forms[0]) and len(forms[0]) == len(forms[1]):
        variance += np.mean((forms[1] * slopes[1] - forms[0] * slopes[0]) ** 2, axis=0) * normal_quantile(level) ** 2
    reach = np.sqrt(variance)
    z = normal_quantile(level)
    rows = [
        _row(task.name, float(points[0][k]), float(points[1][k]), float(difference[k]), float(reach[k]), z)
        for k, task in enumerate(a.tasks)
    ]
    correlation = (together[0] + together[1]) / 2
    whole = float(np.sqrt(reach @ correlation @ reach)) / len(rows)
    rows.append(_row("mean", float(points[0].mean()), float(points[1].mean()), float(difference.mean()), whole, z))
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
