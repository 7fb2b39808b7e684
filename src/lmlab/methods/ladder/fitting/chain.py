"""A fitted chain of both steps, for several tasks and, for intervals, many replicates at once.

Legend: S replicates, T tasks, R runs, G groups of checkpoints (runs and external models), K checkpoints, B = S T
problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.fitting import accuracy as acc
from lmlab.methods.ladder.fitting.fit import (
    ANCHOR_SHARE,
    SHRUNK,
    StepFit,
    exponents_of,
    first_step_values,
    fit_first_step,
    fit_second_step,
)
from lmlab.methods.ladder.fitting.points import Points, collect_points, thin
from lmlab.methods.ladder.tables.table import Floats, RunTable
from lmlab.methods.ladder.tables.tasks import Task

_REPLICATE_ITERATIONS = 60  # a resampled fit begins at the fit of all runs, and has not far to go
_LENT_PULL = 1e-3  # as the recommended estimator draws tasks together
_LEAST_SHARE = 0.01  # of right answers, where their information is told: a few hundred questions know no better
_ACCURACY_RANGE = (1e-6, 1 - 1e-6)  # logits stay finite


@dataclass(frozen=True)
class Resample:
    """What replicates change.

    Attributes:
        weights_SG: how much each run and external model weighs in the second step.
        factor_STR: what the first step's values are multiplied by, for the noise between repeated runs. Its points are
            not weighed anew as well: that would count the same noise twice.
    """

    weights_SG: Floats
    factor_STR: Floats


@dataclass(frozen=True)
class Chain:
    """A fitted chain; S is 1 unless it was fitted to replicates.

    Attributes:
        lent_E: exponents that other families lend, to which those of this one are drawn.
        first: the first step, [S T] problems; `second` is None where the law leads straight to the accuracy.
    """

    settings: TwoStepSettings
    tasks: tuple[Task, ...]
    points: Points
    first: StepFit
    second: StepFit | None
    lent_E: Floats | None = None

    def loss(self, x_3K: Floats) -> Floats:
        """The quantity between the steps at ln N, ln D, ln C; [S, T, K]."""
        values = first_step_values(self.settings.law, self.first.parameters_BP, x_3K)
        return values.reshape(-1, len(self.tasks), values.shape[1])

    def accuracy_of(self, loss_STK: Floats) -> Floats:
        """The second step, [S, T, K], within 0 and 1."""
        if self.second is None:
            value = loss_STK
        else:
            flat = np.broadcast_to(loss_STK, (len(self.second.parameters_BP) // len(self.tasks), *loss_STK.shape[1:]))
            flat = flat.reshape(-1, loss_STK.shape[-1])
            value = acc.value_and_gradient(self.settings.accuracy_law, self.second.parameters_BP, flat)[0]
            value = value.reshape(-1, len(self.tasks), loss_STK.shape[-1])
        value = np.clip(value, *_ACCURACY_RANGE)
        if not self.settings.pool:
            return value
        odds = value / (1 - value) * np.exp(self.points.offset_T)[None, :, None]
        return np.clip(odds / (1 + odds), *_ACCURACY_RANGE)

    def accuracy(self, x_3K: Floats) -> Floats:
        """The chained prediction, [S, T, K]."""
        return self.accuracy_of(self.loss(x_3K))


def fit_chain(table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings) -> Chain:
    """Fit one chain to a ladder."""
    chosen = table.paper if settings.runs == "paper" else table
    return fit_points(collect_points(chosen, tasks, settings), tasks, settings, _lent(table, tasks, settings))


def _lent(table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings) -> Floats | None:
    """Medians of the exponents over the tasks and the other families of a table, [E]; None without such."""
    if not table.lenders or settings.law not in SHRUNK:
        return None
    plain = settings.model_copy(update={"shrink": 0.0})
    found = [fit_chain(replace(each, lenders=()), tasks, plain).first.parameters_BP for each in table.lenders]
    exponents = np.maximum(np.concatenate(found)[:, exponents_of(settings.law)], 1e-3)
    return np.asarray(np.exp(np.median(np.log(exponents), axis=0)))


def fit_points(points: Points, tasks: Sequence[Task], settings: TwoStepSettings, lent_E: Floats | None = None) -> Chain:
    """Fit one chain to points; `lent_E` are exponents that other families lend."""
    chance_T = np.array([task.chance for task in tasks])
    y_TR, weights_BR = points.target(settings.chained), run_weights(points, settings)
    first = fit_first_step(settings.law, points.x_3R, y_TR, weights_BR, settings.delta, settings.starts, chance_T)
    pull = _pull(settings, lent_E)
    if pull:
        first = fit_first_step(
            settings.law,
            points.x_3R,
            y_TR,
            weights_BR,
            settings.delta,
            "grid",
            chance_T,
            pull,
            _center(settings, first.parameters_BP, len(tasks)) if lent_E is None else np.tile(lent_E, (len(tasks), 1)),
        )
    if not settings.chained:
        return Chain(settings, tuple(tasks), points, first, None, lent_E)
    weights = checkpoint_weights(points, tasks, settings)
    second = fit_second_step(
        settings.accuracy_law,
        points.loss_TK,
        points.accuracy_TK,
        chance_T,
        weights,
        settings.anchor,
        settings.starts,
        _anchor_share(settings),
    )
    return Chain(settings, tuple(tasks), points, first, second, lent_E)


def refit(chain: Chain, resample: Resample) -> Chain:
    """Fit a chain again to replicates of its points, starting from its parameters."""
    thinned, counts_K = thin(chain.points)
    y_STR = chain.points.target(chain.settings.chained)[None] * resample.factor_STR
    return fit_again(chain, thinned, counts_K, y_STR, resample.weights_SG)


def fit_again(
    chain: Chain,
    points: Points,
    counts_K: Floats,
    y_STR: Floats,
    weights_SG: Floats,
    accuracy_STK: Floats | None = None,
) -> Chain:
    """Fit a chain to S sets of other figures at some points, starting from its parameters.

    Arguments:
        points: where; counts_K: how many checkpoints are behind each of the second step's.
        y_STR: the first step's figures.
        weights_SG: how much each run and external model weighs in the second step.
        accuracy_STK: the second step's accuracies; by default those of `points`.
    """
    settings, tasks = chain.settings, chain.tasks
    count = len(weights_SG)
    chance_B = np.tile([task.chance for task in tasks], count)
    y_BR = y_STR.reshape(-1, y_STR.shape[2])
    if not settings.chained:
        y_BR = np.minimum(y_BR, 1.0)  # no accuracy is above 1, whatever the noise
    weights_BR = np.tile(run_weights(points, settings), (count, 1))
    starts_BSP = np.tile(_near_starts(chain.first), (count, 1, 1))
    pull, center = _pull(settings, chain.lent_E), None
    if pull:
        center = _center(settings, chain.first.parameters_BP, len(tasks))
        center = center if chain.lent_E is None else np.tile(chain.lent_E, (len(tasks), 1))
    first = fit_first_step(
        settings.law,
        points.x_3R,
        y_BR,
        weights_BR,
        settings.delta,
        starts_BSP,
        chance_B,
        pull,
        None if center is None else np.tile(center, (count, 1)),
        _REPLICATE_ITERATIONS,
    )
    if chain.second is None:
        return Chain(settings, tasks, points, first, None, chain.lent_E)
    base = checkpoint_weights(points, tasks, settings) * (1.0 if settings.weighting == "runs" else counts_K)
    weights_BK = (weights_SG[:, None, points.run_K] * base[None]).reshape(-1, len(points.run_K))
    second = fit_second_step(
        settings.accuracy_law,
        np.tile(points.loss_TK, (count, 1)),
        np.tile(points.accuracy_TK, (count, 1))
        if accuracy_STK is None
        else accuracy_STK.reshape(-1, len(points.run_K)),
        chance_B,
        weights_BK,
        settings.anchor,
        np.tile(chain.second.parameters_BP, (count, 1))[:, None],
        _anchor_share(settings),
    )
    return Chain(settings, tasks, points, first, second, chain.lent_E)


def _anchor_share(settings: TwoStepSettings) -> float:
    """The most that the anchor weighs; in the reference's fits it is one checkpoint among any number."""
    return np.inf if settings.starts == "paper" else ANCHOR_SHARE


def run_weights(points: Points, settings: TwoStepSettings) -> Floats:
    """Weights of the first step's points, [T, R]: how many runs are behind each and, of a law of the accuracy that is
    fitted with binomial weights, how well so many right answers tell the logarithm of a share: its variance is
    (1 - p) / p for one question.
    """
    weights = np.broadcast_to(points.weight_R, points.y_TR.shape)
    if settings.chained or settings.weighting != "binomial":
        return weights
    share = np.clip(points.pooled_TR, _LEAST_SHARE, 1 - _LEAST_SHARE)
    informed = weights * share / (1 - share)
    return np.asarray(informed * weights.sum(1, keepdims=True) / informed.sum(1, keepdims=True))


def checkpoint_weights(points: Points, tasks: Sequence[Task], settings: TwoStepSettings) -> Floats:
    """Weights of the second step's points, mean 1; [T, K]."""
    weights = np.ones(points.loss_TK.shape)
    if settings.weighting == "runs":
        weights /= np.bincount(points.run_K)[points.run_K]
    elif settings.weighting == "binomial":
        weights /= points.accuracy_TK * (1 - points.accuracy_TK)
    if (points.share_R != 1).any():
        share_G = np.ones(points.num_groups)
        share_G[: len(points.share_R)] = points.share_R
        weights *= share_G[points.run_K]
    return np.asarray(weights / weights.mean(1, keepdims=True))


def _pull(settings: TwoStepSettings, lent_E: Floats | None) -> float:
    """How strongly exponents are drawn together: over the tasks, and to those of other families."""
    if settings.law not in SHRUNK:
        return 0.0
    return settings.shrink if lent_E is None else max(settings.shrink, _LENT_PULL)


def _center(settings: TwoStepSettings, parameters_BP: Floats, num_tasks: int) -> Floats:
    """Medians of the exponents over the tasks, for each problem; [B, E]."""
    places = exponents_of(settings.law)
    exponents = np.maximum(parameters_BP[:, places], 1e-3).reshape(-1, num_tasks, len(places))
    return np.repeat(np.exp(np.median(np.log(exponents), axis=1)), num_tasks, axis=0)


def _near_starts(first: StepFit) -> Floats:
    """The best parameters and, if another start came to other ones that are as good, those; [T, 2, P]."""
    best = first.parameters_BP[:, None]
    if first.others_BSP is None:
        return best
    distance = np.abs(first.others_BSP - best).sum(2)
    other = first.others_BSP[np.arange(len(best)), distance.argmax(1)][:, None]
    return np.concatenate([best, other], axis=1)
