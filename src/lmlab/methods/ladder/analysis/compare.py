"""Which of two recipes will be better at the target: the predicted difference, and the probability that it is real."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.errors import UserError
from lmlab.methods.ladder.analysis.decide import drawn_together, shares, told
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.tables.table import Floats
from lmlab.stats import percentiles


@dataclass(frozen=True)
class Difference:
    """One task, or the mean of all: accuracies in 0 to 1, the difference B - A with its interval, and the probability
    that B is better. Where all runs of one are at chance, neither its accuracy is told nor the difference.
    """

    task: str
    a: float | None
    b: float | None
    difference: float | None
    lo: float
    hi: float
    b_better: float


def compare(
    a: Forecaster, b: Forecaster, n: float, d: float, level: float = 0.9, weights: Sequence[float] = ()
) -> list[Difference]:
    """Compare two ladders at one target.

    The runs of both are independent, and drawn so. What another form of the law would change counts only as far as it
    changes the difference, where both ladders have it. Differences are those of the draws that `rank` orders recipes
    by, so that none is larger than accuracies allow.

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
    point_AT, value_AST = drawn_together((a, b), n, d, level)
    share_T = shares(weights, len(a.tasks))
    rows = [_row(task.name, point_AT[:, k], value_AST[:, :, k], level) for k, task in enumerate(a.tasks)]
    return [*rows, _row("mean", point_AT @ share_T, value_AST @ share_T, level)]


def _row(name: str, point_A: Floats, value_AS: Floats, level: float) -> Difference:
    between_S = value_AS[1] - value_AS[0]
    lo, hi = percentiles(between_S, level)
    return Difference(
        name,
        told(float(point_A[0])),
        told(float(point_A[1])),
        told(float(point_A[1] - point_A[0])),
        float(lo),
        float(hi),
        float((between_S > 0).mean() + (between_S == 0).mean() / 2),
    )
