"""From forecasts to a decision: several targets of one ladder side by side, and several recipes in their order.

Both are answered by draws of the accuracies that are forecast. The draws have the widths of the printed intervals, and
errors go together as those of the fit's replicates do: the same runs, lucky or not, are behind all tasks and all
targets.

Legend: S draws, T tasks, Q targets, A recipes, K other forms of the law.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.analysis.diagnose import distance
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.fitting.intervals import OWN_PARTS
from lmlab.methods.ladder.fitting.logits import inverse_logit, logit
from lmlab.methods.ladder.tables.table import Floats, RunTable
from lmlab.methods.ladder.tables.tasks import Task, TaskRegistry, places_of
from lmlab.stats import normal_quantile, percentiles

DRAWS = 4000  # a probability of a half is then told to within 0.8 %
MEAN = "mean"  # the mean over all tasks, as a name among those of tasks


@dataclass(frozen=True)
class Scenario:
    """One model that could be trained.

    Attributes:
        n, d: parameters without the input embedding, and tokens.
        flops: of its training.
        accuracy, lo, hi: forecast of each task and of the mean over them (`mean`), 0 to 1, with the interval.
        reaches: for each threshold the probability that it is reached.
        reaches_all: the probability that all are reached together; None without thresholds.
        best: the probability that no other scenario has a higher mean.
        where: whether it lies beyond the ladder, and how far in compute.
    """

    n: float
    d: float
    flops: float
    accuracy: dict[str, float]
    lo: dict[str, float]
    hi: dict[str, float]
    reaches: dict[str, float]
    reaches_all: float | None
    best: float
    where: str


@dataclass(frozen=True)
class Decision:
    """Scenarios in the order given, and the cheapest that reaches all thresholds with the wanted probability."""

    scenarios: tuple[Scenario, ...]
    choice: int | None


@dataclass(frozen=True)
class Rank:
    """One of several recipes at a target.

    Attributes:
        accuracy, lo, hi: mean over the tasks, 0 to 1; no accuracy where its runs are at chance on a task.
        best: the probability that its mean is the highest.
        rank: the expected rank, 1 for the best.
        best_at: for each task the probability that it is the best at it.
        by_largest_run: its place if recipes are ordered by the mean accuracy of their largest runs, without a law: the
            baseline that no law has beaten at equal cost elsewhere (Magnusson et al. 2025, arXiv 2504.11393).
    """

    name: str
    accuracy: float | None
    lo: float
    hi: float
    best: float
    rank: float
    best_at: dict[str, float]
    by_largest_run: int


@dataclass(frozen=True)
class Ranking:
    """Recipes, the likeliest first, and the probability of each order that was drawn, the likeliest first."""

    recipes: tuple[Rank, ...]
    orders: tuple[tuple[tuple[str, ...], float], ...]


def what_is_wanted(
    tasks: Sequence[Task], targets: Sequence[tuple[float, float]], thresholds: Mapping[str, float], sure: float
) -> dict[str, float]:
    """The thresholds by the full names of their tasks. It needs no fit, so that a slip is told before one.

    Raises:
        UserError: no target, one twice, a threshold out of its range or of another task, or no probability.
    """
    registry = TaskRegistry(tasks)
    wanted = {name if name == MEAN else registry[name].name: value for name, value in thresholds.items()}
    if len(wanted) < len(thresholds):
        raise UserError("Two thresholds name the same task.")
    for name, value in wanted.items():
        if not 0 < value < 1:
            raise UserError(f"The threshold {name}={value} is not between 0 and 1.", "Write 0.65 for 65 %.")
    if not targets:
        raise UserError("There is no scenario.", "Name at least one, such as --scenario 7e9:4T.")
    if len(set(targets)) < len(targets):
        raise UserError("A scenario is given twice.")
    if not 0 < sure < 1:
        raise UserError(f"The probability --sure lies between 0 and 1, not at {sure}.")
    return wanted


def require_different(tables: Mapping[str, RunTable]) -> None:
    """See that no two recipes are the same runs.

    Raises:
        UserError: two are.
    """
    seen: dict[str, str] = {}
    for name, table in tables.items():
        other = seen.setdefault(table.ladder.digest, name)
        if other != name:
            raise UserError(f"The ladders '{other}' and '{name}' are the same.")


def decide(
    forecaster: Forecaster,
    targets: Sequence[tuple[float, float]],
    thresholds: Mapping[str, float] | None = None,
    sure: float = 0.8,
    level: float = 0.9,
    seed: int = 0,
    weights: Sequence[float] = (),
) -> Decision:
    """Set several targets of one ladder side by side.

    Arguments:
        targets: N and D of each.
        thresholds: accuracies (0 to 1) that are wanted, by the name of a task or `mean`.
        sure: the probability with which all of them are to be reached.
        level: of the intervals.
        weights: of the tasks in their mean; equal by default.

    Raises:
        UserError: no target, one twice, a threshold out of its range or of a task that was not fitted, or that no run
            tells anything of.
    """
    names = [task.name for task in forecaster.tasks]
    wanted = what_is_wanted(forecaster.tasks, targets, thresholds or {}, sure)
    predictions = [forecaster.predict_all(n, d, level) for n, d in targets]  # also refuses impossible ones
    x_3Q = np.stack([forecaster.target(n, d, level) for n, d in targets], axis=1)
    _require_told(forecaster, x_3Q, wanted)
    accuracy_STQ = draws(forecaster, x_3Q, level, seed)
    share_T = shares(weights, len(names))
    mean_SQ = np.einsum("stq,t->sq", accuracy_STQ, share_T)
    low_Q, high_Q = percentiles(mean_SQ, level)
    best_S = mean_SQ.argmax(1)
    scenarios = []
    for q, (n, d) in enumerate(targets):
        hits = {
            name: (mean_SQ[:, q] if name == MEAN else accuracy_STQ[:, names.index(name), q]) >= value
            for name, value in wanted.items()
        }
        own = {each.task: each for each in predictions[q]}
        away = distance(forecaster.ensemble.chains[0].points, x_3Q[:, q])
        scenarios.append(
            Scenario(
                n,
                d,
                float(np.exp(x_3Q[2, q])),
                {name: each.accuracy for name, each in own.items()}
                | {MEAN: float(share_T @ [each.accuracy for each in own.values()])},
                {name: each.lo for name, each in own.items()} | {MEAN: float(low_Q[q])},
                {name: each.hi for name, each in own.items()} | {MEAN: float(high_Q[q])},
                {name: float(hit.mean()) for name, hit in hits.items()},
                float(np.all(list(hits.values()), axis=0).mean()) if hits else None,
                float((best_S == q).mean()),
                f"{away['kind']}, {away['times_compute']:.3g} x the compute of the largest run",
            )
        )
    fit = [q for q, each in enumerate(scenarios) if each.reaches_all is not None and each.reaches_all >= sure]
    return Decision(tuple(scenarios), min(fit, key=lambda q: scenarios[q].flops) if fit else None)


def _require_told(forecaster: Forecaster, x_3Q: Floats, wanted: Mapping[str, float]) -> None:
    """See that the runs say something of what is wanted: of runs at chance no probability can be told."""
    untold_TQ = forecaster.ensemble.untold(x_3Q)
    untold = {task.name: bool(row.any()) for task, row in zip(forecaster.tasks, untold_TQ, strict=True)}
    named = [name for name in wanted if untold.get(name)]
    if all(untold.values()):
        named = list(untold)
    if named:
        raise UserError(
            f"No probability can be told of {', '.join(named)}: all runs are at chance there, and the scenarios lie"
            " beyond what they reach.",
            "Add larger runs, ask more or easier questions, or decide by the loss: lmlab ladder predict shows it.",
        )


def shares(weights: Sequence[float], count: int) -> Floats:
    """Weights that add up to 1, equal ones where none are given."""
    given = np.array(weights, dtype=float) if len(weights) else np.ones(count)
    if len(given) != count or not np.isfinite(given).all() or (given < 0).any() or not given.any():
        raise UserError(f"{count} tasks need {count} weights of 0 or more, not all 0.")
    return np.asarray(given / given.sum())


def rank(
    forecasters: Mapping[str, Forecaster],
    n: float,
    d: float,
    level: float = 0.9,
    seed: int = 0,
    weights: Sequence[float] = (),
) -> Ranking:
    """Order several recipes at one target.

    Their runs are independent, so that each has draws of its own; what another form of the law would change is drawn
    once for all, since it moves them together.

    Raises:
        UserError: fewer than two, different tasks, the same runs twice, or the target is none.
    """
    if len(forecasters) < 2:
        raise UserError("A ranking needs two recipes or more.")
    tasks = [tuple(task.name for task in each.tasks) for each in forecasters.values()]
    if len(set(tasks)) > 1:
        raise UserError("The ladders were fitted to different tasks.")
    require_different({name: each.table for name, each in forecasters.items()})
    point_AT, value_AST = drawn_together(list(forecasters.values()), n, d, level, seed)
    names = list(forecasters)
    share_T = shares(weights, len(tasks[0]))
    mean_AS = value_AST @ share_T
    order_SA = (-mean_AS.T).argsort(axis=1, kind="stable")
    place_SA = order_SA.argsort(axis=1)
    best_TA = np.array([np.bincount(column, minlength=len(names)) for column in value_AST.argmax(0).T]) / DRAWS
    low, high = percentiles(mean_AS.T, level)
    largest = [_largest_mean(each, share_T) for each in forecasters.values()]
    rows = [
        Rank(
            name,
            told(float(point_AT[a] @ share_T)),
            float(low[a]),
            float(high[a]),
            float((order_SA[:, 0] == a).mean()),
            float(place_SA[:, a].mean() + 1),
            {task: float(best_TA[t, a]) for t, task in enumerate(tasks[0])},
            1 + sum(value > largest[a] for value in largest),
        )
        for a, name in enumerate(names)
    ]
    counted = Counter(map(tuple, order_SA.tolist()))
    orders = tuple(
        (tuple(names[a] for a in order), count / DRAWS)
        for order, count in sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    )
    return Ranking(tuple(sorted(rows, key=lambda row: row.rank)), orders)


def drawn_together(
    forecasters: Sequence[Forecaster], n: float, d: float, level: float, seed: int = 0
) -> tuple[Floats, Floats]:
    """Accuracies of several recipes at one target, [A, T], and draws of them, [A, S, T], as wide as the printed
    intervals: each with the noise of its own runs, and moved together by what they suppose of the law. An accuracy that
    no run tells is not a number, and its draws are a guess at least.
    """
    rng = np.random.default_rng(seed)
    targets = [each.target(n, d, level) for each in forecasters]
    shifts = [
        each.ensemble.form_shifts(x_3[:, None], each.beyond(x_3))
        for each, x_3 in zip(forecasters, targets, strict=True)
    ]
    # Who supposes the same of the law is moved by the same draw.
    shared = {name: rng.standard_normal(DRAWS) for name in sorted({name for each in shifts for name in each})}
    points, values = [], []
    for each, x_3, moved in zip(forecasters, targets, shifts, strict=True):
        x_3Q = x_3[:, None]
        point_T = logit(each.ensemble.accuracy(x_3Q)[0, :, 0])
        spread = each.ensemble.spread(x_3Q).parts
        own = [spread[name] for name in OWN_PARTS if name in spread]
        below, above = (np.sqrt(np.sum([part[side][:, 0] ** 2 for part in own], axis=0)) for side in (0, 1))
        own_rng = np.random.default_rng([seed, int(each.table.ladder.digest[:8], 16)])  # whatever their order
        by_place = np.argsort(places_of(each.tasks))
        root = _root(each.ensemble.correlations(x_3Q)[np.ix_(by_place, by_place)])
        z_ST = np.empty((DRAWS, len(point_T)))
        z_ST[:, by_place] = own_rng.standard_normal((DRAWS, len(point_T))) @ root.T
        scale = each.factor(level, each.beyond(x_3)) / normal_quantile(level)
        drawn = point_T + scale * z_ST * np.where(z_ST < 0, below, above)
        for name, shift in moved.items():
            drawn = drawn + shared[name][:, None] * scale * shift[:, 0]
        points.append(np.where(each.ensemble.untold(x_3Q)[:, 0], np.nan, inverse_logit(point_T)))
        values.append(_a_guess_at_least(each, x_3Q, inverse_logit(drawn)[:, :, None])[:, :, 0])
    return np.array(points), np.array(values)


def draws(forecaster: Forecaster, x_3Q: Floats, level: float, seed: int) -> Floats:
    """Accuracies at several targets (ln N, ln D, ln C; [3, Q]), [S, T, Q], as wide as the printed intervals."""
    tasks, places = len(forecaster.tasks), x_3Q.shape[1]
    point_TQ = logit(forecaster.ensemble.accuracy(x_3Q)[0])
    sides, scales = [], []
    for q in range(places):
        beyond = forecaster.beyond(x_3Q[:, q])
        scales.append(forecaster.factor(level, beyond) / normal_quantile(level))
        sides.append([side[:, 0] for side in forecaster.ensemble.spread(x_3Q[:, q : q + 1], beyond).total])
    below_TQ, above_TQ = (np.stack([each[side] for each in sides], axis=1) for side in (0, 1))
    # The order in which tasks and targets are named must not matter: draws are made in another one.
    by_place = np.argsort(places_of(forecaster.tasks))[:, None] * places + np.lexsort(x_3Q)[None]
    correlation = forecaster.ensemble.correlations(x_3Q)
    root = _root(correlation[np.ix_(by_place.ravel(), by_place.ravel())])
    z_SB = np.empty((DRAWS, tasks * places))
    z_SB[:, by_place.ravel()] = np.random.default_rng(seed).standard_normal((DRAWS, tasks * places)) @ root.T
    z_STQ = z_SB.reshape(-1, tasks, places)
    scale_TQ = np.stack(scales, axis=1)
    value_STQ = inverse_logit(point_TQ + scale_TQ * z_STQ * np.where(z_STQ < 0, below_TQ, above_TQ))
    return _a_guess_at_least(forecaster, x_3Q, value_STQ)


def _a_guess_at_least(forecaster: Forecaster, x_3Q: Floats, value_STQ: Floats) -> Floats:
    """Draws of accuracies that no run tells reach from a guess upwards, as their intervals do."""
    chance = np.array([task.chance for task in forecaster.tasks])[:, None]
    return np.where(forecaster.ensemble.untold(x_3Q), np.maximum(value_STQ, chance), value_STQ)


def told(value: float) -> float | None:
    """A figure, or none where it is not a number."""
    return None if math.isnan(value) else value


def _root(correlation: Floats) -> Floats:
    """A square root; of fewer replicates than errors the matrix is singular, so by its eigenvalues."""
    values, vectors = np.linalg.eigh(correlation)
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    return np.asarray(root / np.sqrt(np.maximum((root**2).sum(1, keepdims=True), 1e-30)))


def _largest_mean(forecaster: Forecaster, share_T: Floats) -> float:
    """Mean accuracy over the tasks of the run with the most compute."""
    run = max(forecaster.table.ladder, key=lambda each: each.flops)
    member = forecaster.ensemble.settings.members[0]
    return float(
        share_T @ [run.final_value(run.accuracy(task, member.variant), member.last) for task in forecaster.tasks]
    )
