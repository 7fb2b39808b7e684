"""Intervals that held on runs that were left out: by how much those of the parts must be widened."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from lmlab.methods.ladder.analysis.backtest import Split, splits
from lmlab.methods.ladder.config import EstimatorSettings
from lmlab.methods.ladder.fitting.intervals import fit_ensemble
from lmlab.methods.ladder.fitting.logits import logit
from lmlab.methods.ladder.fitting.points import place_of, target_values
from lmlab.methods.ladder.tables.table import Floats, RunTable
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.stats import normal_quantile

_LEVEL = 0.9  # at which the noise of parts is made comparable with that of the whole ladder
_LEAST_REACH = math.log(2)  # of compute: backtests that go no farther tell nothing of distances


def times_beyond(log_distance: float, reach: float, span: float) -> float:
    """How many times farther than any backtest a target is, as logarithms of the ratio of compute; 1 within their
    reach. Two laws that part with the distance part in proportion to it.

    Arguments:
        reach: of the backtests; 0 without any.
        span: between the runs with the least and the most compute. Where no backtest reaches twice the compute, half of
            it stands for their reach, and twice the compute at least.
    """
    if reach < _LEAST_REACH:
        reach = max(_LEAST_REACH, span / 2)
    return max(1.0, log_distance / reach)


@dataclass(frozen=True)
class Calibration:
    """Normalized errors of the backtests: |logit error| over the standard deviation on that side, with the split of
    each.

    Attributes:
        split_of: the split of each score; `names` says which run and task it is.
        reach: how much more compute than the largest fitted run the farthest predicted one has, as a logarithm.
        losses: for each chain with a quantity between the steps, the same for the logarithm of that quantity.
    """

    scores: Floats
    split_of: tuple[str, ...]
    names: tuple[str, ...]
    reach: float
    losses: dict[int, Calibration] = field(default_factory=dict)

    def factor(self, level: float, without: Collection[str] = ()) -> float:
        """What standard deviations are multiplied by: between the normal quantile, which correct ones need, and the
        conformal one, which makes a share `level` of the backtests lie inside.

        As the splits of one ladder share their runs, the conformal one is a noisy estimate: it is followed half of the
        way, and where it is wider, farther as far as the splits agree. With d its distance from the normal quantile in
        logarithms and s the standard error of d by the jackknife over splits, that is the share d^2 / (d^2 + s^2)
        (James and Stein 1961).

        Arguments:
            without: splits that are left out.
        """
        normal = normal_quantile(level)
        away = math.log(max(self.conformal_factor(level, without), 1e-6) / normal)
        names = [name for name in dict.fromkeys(self.split_of) if name not in without]
        share = 0.5
        if away > 0 and len(names) > 2:
            left = np.log([self.conformal_factor(level, {*without, name}) for name in names])
            error = (len(names) - 1) * left.var()
            share = max(share, float(away**2 / (away**2 + error)))
        return normal * math.exp(share * away)

    def conformal_factor(self, level: float, without: Collection[str] = ()) -> float:
        """The quantile of the backtests' scores."""
        chosen = np.array([each not in without for each in self.split_of])
        if not chosen.any():
            return normal_quantile(level)
        scores, owners = self.scores[chosen], np.array(self.split_of)[chosen]
        counts = {name: (owners == name).sum() for name in set(owners)}
        weights = np.array([1 / counts[name] for name in owners])
        order = np.argsort(scores)
        share = np.cumsum(weights[order]) / weights.sum()
        wanted = min(1.0, level * (1 + 1 / len(scores)))
        return float(scores[order][min(int(np.searchsorted(share, wanted)), len(scores) - 1)])

    def coverage(self, level: float) -> dict[str, float]:
        """For each split the share inside intervals that were calibrated on the other splits."""
        owners = np.array(self.split_of)
        return {
            name: float((self.scores[owners == name] <= self.factor(level, without={name})).mean())
            for name in dict.fromkeys(self.split_of)
        }


def calibrate(
    table: RunTable,
    tasks: Sequence[Task],
    settings: EstimatorSettings,
    replicates: int = 60,  # of each split, of which there are many; forecasts have 200
    seed: int = 0,
    chosen: Sequence[Split] | None = None,
) -> Calibration:
    """Predict all splits of the ladder, and compare errors with their spread."""
    scores, owners, names, reach = [], [], [], 0.0
    losses: dict[int, tuple[list[Floats], list[str], list[str]]] = {}
    for split in splits(table) if chosen is None else chosen:
        targets = [table[name] for name in split.predicted]
        x_3Q = np.stack([place_of(run) for run in targets], axis=1)
        part = table.ladder.where(names=split.fitted)
        ensemble = fit_ensemble(part, tasks, settings, replicates, seed)
        below, above = ensemble.spread(x_3Q).total
        actual = np.array([[target_values(run, task, settings.members[0])[1] for run in targets] for task in tasks])
        error = logit(actual) - logit(ensemble.accuracy(x_3Q)[0])
        scores.append((np.abs(error) / np.where(error < 0, below, above)).ravel())
        owners += [split.name] * error.size
        names += [f"{run.name} {task.name}" for task in tasks for run in targets]
        reach = max(reach, float(x_3Q[2].max() - max(math.log(run.flops) for run in part)))
        for number, member in enumerate(settings.members):
            # A law through as many runs as it has parameters leaves no residuals, and nothing to measure errors by.
            if member.chained and ensemble.freedom_of(number) > 0:
                point, sd = ensemble.log_loss(number, x_3Q)
                outcome = np.log([[target_values(run, task, member)[0] for run in targets] for task in tasks])
                # A quantity that all tasks share, as the C4 loss, is one outcome and not one for each of them.
                _, own = np.unique(outcome, axis=0, return_index=True)
                # Parts of a ladder have few runs, and their noise is a guess.
                sd = sd * ensemble.few_runs(number, _LEVEL)
                found = (np.abs(outcome - point) / sd)[own]
                into = losses.setdefault(number, ([], [], []))
                into[0].append(found.ravel())
                into[1].extend([split.name] * found.size)
                into[2].extend(f"{run.name} {tasks[place].name}" for place in own for run in targets)
    return Calibration(
        np.concatenate(scores),
        tuple(owners),
        tuple(names),
        reach,
        {
            number: Calibration(np.concatenate(found), tuple(of), tuple(named), reach)
            for number, (found, of, named) in losses.items()
        },
    )
