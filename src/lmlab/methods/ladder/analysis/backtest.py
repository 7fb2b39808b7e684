"""Backtests inside a ladder: fit some of its runs, predict others.

The splits of a ladder with sizes s_1 < ... < s_k and lengths m_1 < ... < m_l are
- by size: fit sizes up to s_i (i >= 2), predict the runs of one larger size;
- by length: fit lengths up to m_i (i >= 2), predict the longer runs;
- both: fit sizes up to s_(k-1) and lengths up to m_i (i >= 2), predict the longer runs of s_k.

Lengths are multiples of 20 N tokens, or tokens where all sizes were planned by these. Then, and where lengths are no
grid at all, there are splits by compute too: fit the cheaper runs, predict all dearer ones. By tokens a ladder of three
lengths has only few splits otherwise, and none of them goes far.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.config import EstimatorSettings, TwoStepSettings
from lmlab.methods.ladder.fitting.chain import fit_chain
from lmlab.methods.ladder.fitting.logits import mean_logit
from lmlab.methods.ladder.fitting.points import length_kind, length_name, length_of, place_of, target_values
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable
from lmlab.methods.ladder.tables.tasks import Task

_FEWEST_RUNS = 4  # the simplest law of N and D has four parameters
_CHEAPEST = (1 / 2, 2 / 3)  # of the runs that a split by compute is fitted to


@dataclass(frozen=True)
class Split:
    """Names of the runs that are fitted, and of those that are predicted."""

    name: str
    fitted: tuple[str, ...]
    predicted: tuple[str, ...]


def splits(table: RunTable) -> list[Split]:
    """All splits of a ladder.

    Raises:
        UserError: fewer than three sizes and fewer than three lengths.
    """
    runs = table.paper.ladder.runs
    by = length_kind(runs)
    sizes = sorted({run.n for run in runs})
    lengths = sorted({length_of(run, by) for run in runs}) if by != "nothing" else []
    named = {run.n: run.size or f"{run.n:.3g}" for run in runs}

    def split(label: str, fit: tuple[float, float], predict: tuple[set[float], float]) -> Split:
        fitted = tuple(run.name for run in table.ladder if run.n <= fit[0] and length_of(run, by) <= fit[1])
        predicted = tuple(run.name for run in runs if run.n in predict[0] and length_of(run, by) > predict[1])
        return Split(label, fitted, predicted)

    found = []
    for i in range(1, len(sizes)):
        found += [
            split(f"N <= {named[sizes[i]]} to {named[larger]}", (sizes[i], np.inf), ({larger}, 0))
            for larger in sizes[i + 1 :]
        ]
    for length in lengths[1:-1]:
        found.append(split(f"{length_name(length, by)} to longer", (np.inf, length), (set(sizes), length)))
    for length in lengths[1:-1] if len(sizes) > 2 else ():
        found.append(
            split(
                f"N <= {named[sizes[-2]]}, {length_name(length, by)} to longer {named[sizes[-1]]}",
                (sizes[-2], length),
                ({sizes[-1]}, length),
            )
        )
    if by != "multiples":
        found += _by_compute(table, runs)
    found = [each for each in found if each.predicted and len(each.fitted) >= _FEWEST_RUNS]
    if not found:
        raise UserError("The ladder is too small for backtests.", "It needs three sizes or three lengths.")
    return found


def _cost(run: Run) -> float:
    """A run's compute, rounded to three digits: costs that differ by less are one."""
    return float(f"{run.flops:.3g}")


def _by_compute(table: RunTable, runs: Sequence[Run]) -> list[Split]:
    """Fit the cheaper runs, of two sizes and two lengths at least; predict all that have more compute."""
    found = []
    costs = sorted({_cost(run) for run in runs})
    parts = sorted({round(share * len(costs)) for share in _CHEAPEST})
    for cost in (costs[part - 1] for part in parts if 0 < part < len(costs)):
        fitted = [run for run in table.ladder if _cost(run) <= cost]
        if min(len({run.n for run in fitted}), len({run.final_tokens for run in fitted})) < 2:
            continue
        names = tuple(run.name for run in runs if _cost(run) > cost)
        found.append(Split(f"C <= {cost:.3g} to more", tuple(run.name for run in fitted), names))
    return found


@dataclass(frozen=True)
class SplitResult:
    """Predictions on one split.

    Attributes:
        loss_TQ, accuracy_TQ: predicted for each task and each predicted run.
        actual_loss_TQ, actual_TQ: measured.
        x_3Q: ln N, ln D, ln C of the predicted runs.
    """

    split: Split
    loss_TQ: Floats
    accuracy_TQ: Floats
    actual_loss_TQ: Floats
    actual_TQ: Floats
    x_3Q: Floats

    @property
    def errors_TQ(self) -> Floats:
        """Absolute errors in points."""
        return np.abs(self.accuracy_TQ - self.actual_TQ) * 100


def predict_split(table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings, split: Split) -> SplitResult:
    """Fit one chain on a split's first part and predict its second."""
    targets = [table[name] for name in split.predicted]
    x_3Q = np.stack([place_of(run) for run in targets], axis=1)
    chain = fit_chain(table.ladder.where(names=split.fitted), tasks, settings)
    loss = chain.loss(x_3Q)
    actual = np.array([[target_values(run, task, settings) for run in targets] for task in tasks])
    return SplitResult(split, loss[0], chain.accuracy_of(loss)[0], actual[..., 0], actual[..., 1], x_3Q)


def combine(results: Sequence[SplitResult], weights: Sequence[float] = ()) -> SplitResult:
    """The mean logit of several chains on one split."""
    accuracy = mean_logit([each.accuracy_TQ for each in results], weights)
    first = results[0]
    return SplitResult(first.split, first.loss_TQ, accuracy, first.actual_loss_TQ, first.actual_TQ, first.x_3Q)


def backtest(
    table: RunTable, tasks: Sequence[Task], estimator: EstimatorSettings, chosen: Sequence[Split] | None = None
) -> list[SplitResult]:
    """Predict every split of a ladder."""
    return [
        combine([predict_split(table, tasks, member, each) for member in estimator.members], estimator.weights)
        for each in (splits(table) if chosen is None else chosen)
    ]


def score(results: Sequence[SplitResult]) -> float:
    """The mean over splits of the mean absolute error in points: what estimators are chosen by."""
    return float(np.mean([each.errors_TQ.mean() for each in results]))
