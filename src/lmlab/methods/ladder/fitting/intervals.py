"""How far a forecast can be off: where the spread comes from, and its calibration on backtests.

The parts, each as a standard deviation below and above in the logit of accuracy, are
- fit: replicates of both steps. The first step's points (one a run) get noise of the size of the runs' residuals and of
  the differences between repeated runs, and both steps' points are resampled by whole runs, with exponential weights
  (Rubin 1981);
- run: the same noise in the run that is predicted;
- curve: how far single runs lie from the second step's curve, at least the binomial error of the questions. Where all
  runs are at chance nothing is known of where and how steeply accuracy rises, and this part is at least half a logit.
  Far above all accuracies that were measured it grows with the distance;
- form: how far other forms of the law predict otherwise. Where all runs are at chance, that accuracy never rises is one
  of them.
They are added in quadrature. Their sum is multiplied by a factor that makes intervals cover what they promise on
backtests inside the ladder (conformal prediction with a normalized score, Lei et al. 2018); without backtests by the
normal quantile.

Legend: S replicates, T tasks, R runs, G groups, Q places that are predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.methods.ladder.config import EstimatorSettings, LossForm, TwoStepSettings
from lmlab.methods.ladder.fitting.chain import Chain, Resample, fit_chain, refit
from lmlab.methods.ladder.fitting.fit import fit_first_step
from lmlab.methods.ladder.fitting.laws import FORMS
from lmlab.methods.ladder.fitting.logits import logit, mean_logit
from lmlab.methods.ladder.fitting.points import LEAST_ACCURACY, levels
from lmlab.methods.ladder.tables.table import C4, Floats, RunTable
from lmlab.methods.ladder.tables.tasks import Task, places_of
from lmlab.stats import normal_quantile, percentiles, t_quantile

PARTS = ("fit", "run", "curve", "form")
OWN_PARTS = ("fit", "run", "curve")  # that two ladders do not share
_ONE_DEVIATION = 0.6826894921370859  # of a normal figure lie within one standard deviation of the median
_LEAST = 0.01  # logits
_NO_SIGNAL = 0.5  # logits
_NARROWEST = 0.1  # logits, of the accuracies that a curve was seen through
_CHANCE_MARGIN = 0.02  # of accuracy, which a few hundred questions give by luck


@dataclass(frozen=True)
class Spread:
    """Standard deviations in logits: part -> (below [T, Q], above [T, Q])."""

    parts: dict[str, tuple[Floats, Floats]]

    @property
    def total(self) -> tuple[Floats, Floats]:
        """All parts in quadrature."""
        below, above = (np.sqrt(sum(part[side] ** 2 for part in self.parts.values())) for side in (0, 1))
        return np.maximum(below, _LEAST), np.maximum(above, _LEAST)


@dataclass(frozen=True)
class Ensemble:
    """Fitted chains, their replicates, the other forms, and the noise between runs.

    Attributes:
        noise_MT: standard deviation of a run's logarithm of the first step's quantity, for each chain.
        curve_T: standard deviation of runs around the accuracy curve, in logits.
        other_laws: for each chain other laws of its first step, fitted to the same quantity.
    """

    settings: EstimatorSettings
    tasks: tuple[Task, ...]
    chains: tuple[Chain, ...]
    replicates: tuple[Chain, ...]
    forms: tuple[Chain, ...]
    noise_MT: Floats
    curve_T: Floats
    other_laws: tuple[tuple[Chain, ...], ...]

    def log_loss(self, member: int, x_3Q: Floats, beyond: float = 1.0) -> tuple[Floats, Floats]:
        """What one chain says of its quantity, as a logarithm, and its standard deviation; [T, Q] both.

        The parts are those of accuracies without the curve: the fit, the run that is predicted, and other forms of the
        law.
        """
        chain = self.chains[member]
        point = np.log(chain.loss(x_3Q)[0])
        variance = np.broadcast_to(np.square(self.noise_MT[member])[:, None], point.shape).copy()
        if self.replicates:
            low, high = percentiles(np.log(self.replicates[member].loss(x_3Q)), _ONE_DEVIATION)
            variance += np.square((high - low) / 2)
        away = [
            np.square(np.log(other.loss(x_3Q)[0]) - point) * _plausibility(other, [chain])[:, None]
            for other in self.other_laws[member]
        ]
        variance += beyond**2 * np.mean(away, axis=0) if away else 0.0
        if self.one_size:
            variance += np.square(np.log(chain.loss(self._at_own_size(x_3Q))[0]) - point)
        return point + chain.points.loss_offset_T[:, None], np.sqrt(variance)

    def accuracy(self, x_3Q: Floats, chains: Sequence[Chain] | None = None) -> Floats:
        """Predicted accuracy, [S, T, Q]."""
        return mean_logit([chain.accuracy(x_3Q) for chain in chains or self.chains], self.settings.weights)

    def spread(self, x_3Q: Floats, beyond: float = 1.0) -> Spread:
        """Where the uncertainty at some places comes from.

        Arguments:
            beyond: by how much the part `form` is multiplied where backtests do not reach: the other parts grow with
                the distance by themselves.
        """
        point = logit(self.accuracy(x_3Q)[0])
        parts = {}
        if self.replicates:
            values = logit(self.accuracy(x_3Q, self.replicates))
            middle, (low, high) = np.median(values, axis=0), percentiles(values, _ONE_DEVIATION)
            parts["fit"] = (middle - low, high - middle)
        up, down = (np.abs(self._shifted(x_3Q, sign) - point) for sign in (1.0, -1.0))
        parts["run"] = up, down
        parts["curve"] = (self.beside_curve_T[:, None] * self._up_the_curve(point),) * 2
        shifts = self.form_shifts(x_3Q, beyond)
        if shifts:
            parts["form"] = (np.sqrt(np.sum(np.square(list(shifts.values())), axis=0)),) * 2
        return Spread(parts)

    def form_shifts(self, x_3Q: Floats, beyond: float = 1.0) -> dict[str, Floats]:
        """By how much each other form of the law moves the logits, [T, Q], by what it supposes: their squares add up to
        the variance of the part `form`. Two ladders share a supposition that has the same name in both.
        """
        point = logit(self.accuracy(x_3Q)[0])
        scale = beyond / np.sqrt(max(1, len(self.forms)))
        found = {}
        for form in self.forms:
            weight = np.sqrt(_plausibility(form, [*self.forms, *self.chains]))[:, None]
            settings = form.settings
            name = f"{settings.x}, {settings.law}, {settings.accuracy_law}"
            found[name] = scale * weight * (logit(form.accuracy(x_3Q)[0]) - point)
        if self.one_size:
            found["size does not help"] = beyond * (logit(self.accuracy(self._at_own_size(x_3Q))[0]) - point)
        untold = self.untold(x_3Q)
        if untold.any():
            chance = logit(np.array([task.chance for task in self.tasks]))[:, None]
            found["accuracy stays at chance"] = np.where(untold, chance - point, 0.0)
        return found

    def untold(self, x_3Q: Floats) -> NDArray[np.bool_]:
        """Where nothing measured tells the accuracy, [T, Q]: all runs are at chance, and the law says more than they
        reach by luck. Its curve is then drawn through the point of a loss of 0 alone.
        """
        chain = self.chains[0]
        luck_T = np.maximum(np.quantile(_of_the_curve(chain), 0.95, axis=1), by_luck(self.tasks))
        return np.asarray(at_chance(chain)[:, None] & (self.accuracy(x_3Q)[0] > luck_T[:, None]))

    def _up_the_curve(self, point_TQ: Floats) -> Floats:
        """How much less is known of the curve far above all that was measured than beside it, at least 1, [T, Q]: half
        of the distance over what the runs span, both in logits. A curve through a narrow piece is not known at its end,
        and forms that all end at 1 do not tell by agreeing there.
        """
        chain = self.chains[0]
        if chain.settings.variant == "soft":
            return np.ones_like(point_TQ)
        low_T, high_T = logit(np.quantile(chain.points.accuracy_TK, (0.05, 0.95), axis=1))
        span_T = np.maximum(high_T - low_T, _NARROWEST)
        return np.asarray(np.maximum(1.0, (point_TQ - high_T[:, None]) / (2 * span_T[:, None])))

    def correlations(self, x_3Q: Floats) -> Floats:
        """How far the errors of all tasks at all places go together, [T Q, T Q]: the correlations of their replicates.

        The same runs, lucky or not, are behind all of them, so that errors do not cancel in a mean as independent ones
        would. Without replicates they are taken to go together entirely.
        """
        size = len(self.tasks) * x_3Q.shape[1]
        if not self.replicates:
            return np.ones((size, size))
        values = logit(self.accuracy(x_3Q, self.replicates)).reshape(-1, size)
        values = values - values.mean(0)
        covariance = values.T @ values
        scale = np.sqrt(np.maximum(np.diag(covariance), 1e-30))
        return np.asarray(covariance / np.outer(scale, scale))

    @property
    def beside_curve_T(self) -> Floats:
        """How far a run may lie from the curve, in logits: as far as the runs do, and where they are all at chance half
        a logit at least, since they do not tell where it rises. That is ignorance, which no run is measured with.
        """
        chain = self.chains[0]
        if chain.points.separate:
            return self.curve_T
        return np.where(at_chance(chain), np.maximum(self.curve_T, _NO_SIGNAL), self.curve_T)

    @property
    def freedom(self) -> int:
        """Degrees of freedom that the noise between runs is estimated with."""
        return max(2, self.freedom_of(0))

    def few_runs(self, member: int, level: float) -> float:
        """How much wider an interval of one chain's quantity must be because the noise between runs is itself known
        from few of them: Student's quantile over the normal one, at least 1. A law with five parameters through six
        runs leaves residuals that say nearly nothing of the noise.
        """
        return t_quantile(level, max(1, self.freedom_of(member))) / normal_quantile(level)

    def freedom_of(self, member: int) -> int:
        """Configurations less the parameters of one chain's first step."""
        return _freedom(self.chains[member])

    def reaching(self, factor: float, level: float, beyond: float) -> float:
        """A calibrated factor at a target that lies `beyond` times farther than any backtest: what backtests have
        narrowed is not known to hold there, so that it grows with the distance, to Student's quantile for the few runs
        by which the noise is known.
        """
        return max(factor, min(t_quantile(level, self.freedom), factor * beyond))

    @property
    def one_size(self) -> bool:
        """Whether all runs are of one size: a law of compute then takes a larger model for a longer training of the
        small one, which these runs cannot tell.
        """
        return levels(self.chains[0].points.x_3R[0]) < 2

    def _at_own_size(self, x_3Q: Floats) -> Floats:
        """The same tokens at the size of the runs: what is forecast if size did not help at all."""
        x_3R = self.chains[0].points.x_3R
        n, ratio = x_3R[0].mean(), (x_3R[2] - x_3R[0] - x_3R[1]).mean()
        return np.stack([np.full_like(x_3Q[0], n), x_3Q[1], n + x_3Q[1] + ratio])

    def _shifted(self, x_3Q: Floats, sign: float) -> Floats:
        values = []
        for chain, noise in zip(self.chains, self.noise_MT, strict=True):
            values.append(
                chain.accuracy_of(chain.loss(x_3Q) * np.exp(chain.settings.sign * sign * noise)[None, :, None])[0]
            )
        return logit(mean_logit(values, self.settings.weights))


def fit_ensemble(
    table: RunTable,
    tasks: Sequence[Task],
    settings: EstimatorSettings,
    replicates: int = 200,
    seed: int = 0,
    forms: Sequence[TwoStepSettings] | None = None,
) -> Ensemble:
    """Fit an estimator, and what its intervals need.

    Arguments:
        replicates: 0 for none; the spread then has no part `fit`.
        forms: of the law, for the part `form`; by default those that the table has the columns for.
    """
    chains = tuple(fit_chain(table, tasks, member) for member in settings.members)
    noise_MT = np.array([_run_noise(chain, table) for chain in chains])
    copies = (
        tuple(_replicate(chain, noise, replicates, seed) for chain, noise in zip(chains, noise_MT, strict=True))
        if replicates
        else ()
    )
    wanted = other_forms(table, settings) if forms is None else forms
    others = tuple(fit_chain(table, tasks, form) for form in wanted if form not in settings.members)
    laws = tuple(_other_laws(chain) for chain in chains)
    curve = _curve_noise(chains[0], settings, chains)
    return Ensemble(settings, tuple(tasks), chains, copies, others, noise_MT, curve, laws)


def other_forms(table: RunTable, settings: EstimatorSettings) -> list[TwoStepSettings]:
    """The forms whose disagreement is part of the uncertainty: the quantity between the steps by N and D, by FLOPs, and
    the C4 loss in its place, fitted to the runs and questions of the estimator. All predict the same figure: answers by
    letter are no form of full answers.
    """
    first = settings.members[0]
    same: dict[str, Any] = {"runs": first.runs, "short_weight": first.short_weight, "pool": first.pool}
    own: dict[str, Any] = {}
    if first.variant != "rc":
        own = {"accuracy_law": first.accuracy_law, "anchor": first.anchor, "x": first.x}
    # in logarithms: a run that lies off by more than 1 % counts linearly
    forms = [TwoStepSettings(delta=1e-2, **same, **own), TwoStepSettings(delta=1e-2, law="flops", **same, **own)]
    # Letters are read off a large run's curve, of the task loss.
    if first.variant != "mc" and all(C4 in run.metrics for run in table.ladder):
        forms.append(TwoStepSettings(delta=1e-2, x="c4", figure=first.variant, **same))
    return forms


def _plausibility(form: Chain, others: Sequence[Chain]) -> Floats:
    """How much another form of the law counts, [T]: its deviations are weighed by the variance of the residuals that
    the best law of the same quantity leaves over its own.

    Noise can hide which of two forms is right only if both fit about as well; a form that misses the runs by ten times
    their noise is no alternative at the target either. A law with as many parameters as there are runs goes through all
    of them, which tells nothing: it rules out no other, and is not ruled out.
    """

    def residual(chain: Chain) -> Floats:
        return np.maximum((_residuals(chain) ** 2).sum(1) / max(1, _freedom(chain)), 1e-12)

    if _freedom(form) < 1:
        return np.ones(len(form.tasks))
    same = [each for each in others if each.settings.x == form.settings.x and each.settings.chained]
    known = [form, *(each for each in same if _freedom(each) >= 1)]
    return np.asarray(np.min([residual(each) for each in known], axis=0) / residual(form))


def _freedom(chain: Chain) -> int:
    """Configurations less the parameters of the first step."""
    return int(chain.points.y_TR.shape[1] - chain.first.parameters_BP.shape[1])


def _residuals(chain: Chain) -> Floats:
    """Of the first step, as logarithms; [T, R]."""
    y_TR = chain.points.target(chain.settings.chained)
    return np.asarray(np.log(y_TR) - np.log(np.maximum(chain.loss(chain.points.x_3R)[0], 1e-6)))


def _other_laws(chain: Chain) -> tuple[Chain, ...]:
    """The chain's quantity by compute alone, and by N and D with other exponents or another loss function; without a
    second step.
    """
    points, settings = chain.points, chain.settings
    if not settings.chained:
        return ()
    chance_T = np.array([task.chance for task in chain.tasks])
    weights = points.weight_R[None]
    # By compute alone, and by N and D with more exponents or fewer: where lengths or sizes are few, as in parts of a
    # ladder, they fit alike and part at the target. The same law with another loss function is near, and its search
    # starts where this one ended; the others need the grid.
    forms: list[tuple[LossForm, Any]] = [("flops", "grid")] if settings.law != "flops" else []
    if settings.law == "nd":
        forms.append(("nd", chain.first.parameters_BP[:, None]))
    elif points.x_3R.shape[1] >= len(FORMS["nd"].names):
        forms.append(("nd", "grid"))
    if settings.law != "tied" and points.x_3R.shape[1] >= len(FORMS["tied"].names):
        forms.append(("tied", "grid"))
    return tuple(
        replace(
            chain,
            settings=settings.model_copy(update={"law": law}),
            first=fit_first_step(law, points.x_3R, points.y_TR, weights, 1e-2, starts, chance_T),
        )
        for law, starts in forms
    )


def _replicate(chain: Chain, noise_T: Floats, count: int, seed: int) -> Chain:
    """The same draws for all chains of an ensemble, so that their errors go together as they do in the runs."""
    rng = np.random.default_rng(seed)
    runs = chain.points.y_TR.shape[1]
    normal_STR = rng.standard_normal((count, len(chain.tasks), runs))[:, places_of(chain.tasks)]
    weights = rng.exponential(size=(count, chain.points.num_groups))
    weights[:, :runs] *= runs / weights[:, :runs].sum(1, keepdims=True)
    # A run that is unlucky has a higher loss and, by a law that leads straight to it, a lower accuracy.
    noise_TR = chain.settings.sign * noise_T[:, None] / np.sqrt(chain.points.repeats_R)
    return refit(chain, Resample(weights, np.exp(noise_TR[None] * normal_STR)))


def _run_noise(chain: Chain, table: RunTable) -> Floats:
    """Standard deviation between runs of one configuration, of the logarithm of the first step's quantity; [T].

    Residuals of the first step and differences between repeated runs are pooled by their degrees of freedom. A law with
    as many parameters as there are runs leaves no residuals; without repeats those of a line take their place.
    """
    points, pairs = chain.points, repeated_runs(table)
    freedom = float(points.share_R.sum()) - chain.first.parameters_BP.shape[1]
    if freedom < 1 and not pairs:
        return _spread_about_a_line(points.x_3R[2], points.target(chain.settings.chained))
    total = (points.weight_R * _residuals(chain) ** 2).sum(1) if freedom >= 1 else np.zeros(len(chain.tasks))
    for one, two in pairs:
        for place, task in enumerate(chain.tasks):
            first, second = (
                run.final_value(
                    run.intermediate(task, chain.settings.x) if chain.settings.chained else run.accuracy(task),
                    chain.settings.last,
                )
                for run in (table[one], table[two])
            )
            total[place] += np.log(max(first, LEAST_ACCURACY) / max(second, LEAST_ACCURACY)) ** 2 / 2
    return np.asarray(np.sqrt(total / ((freedom if freedom >= 1 else 0.0) + len(pairs))))


def _spread_about_a_line(log_c_R: Floats, y_TR: Floats) -> Floats:
    """Standard deviation of ln y about a line in the logarithm of compute, [T]: rather too much, as it holds what the
    line misses too.
    """
    degree = 1 if len(log_c_R) > 2 and levels(log_c_R) > 1 else 0
    powers_RK = np.vander(log_c_R - log_c_R.mean(), degree + 1)
    fitted_KT = np.linalg.lstsq(powers_RK, np.log(y_TR).T, rcond=None)[0]
    away_RT = np.log(y_TR).T - powers_RK @ fitted_KT
    return np.asarray(np.sqrt((away_RT**2).sum(0) / max(1, len(log_c_R) - degree - 1)))


def repeated_runs(table: RunTable) -> list[tuple[str, str]]:
    """Pairs of runs of the same size and length."""
    first: dict[tuple[float, float, float], str] = {}
    pairs = []
    for run in table.ladder:
        key = run.configuration
        if key in first:
            pairs.append((first[key], run.name))
        first.setdefault(key, run.name)
    return pairs


def _curve_noise(chain: Chain, settings: EstimatorSettings, chains: Sequence[Chain]) -> Floats:
    """How far the runs' accuracies lie from the curve at their own losses, in logits, with the binomial error at least;
    [T].
    """
    if chain.points.separate and chain.second is not None:
        return _separate_curve_noise(chain)
    actual = np.clip(chain.points.accuracy_TR, 1e-4, 1 - 1e-4)
    curves = [
        each.accuracy_of(each.points.y_TR[None])[0]
        for each in chains
        if each.second is not None and each.points.y_TR.shape == actual.shape
    ]
    residual = np.zeros(len(chain.tasks))
    if curves:
        away = logit(actual) - logit(mean_logit(curves) if len(curves) > 1 else curves[0])
        residual = np.sqrt((away**2).sum(1) / max(1, actual.shape[1] - 3))
    return _at_least_binomial(chain, residual, actual[:, actual.shape[1] // 2])


def _separate_curve_noise(chain: Chain) -> Floats:
    """The same where the curve is of other runs than those of the first step: how far their checkpoints lie from it."""
    points = chain.points
    curve = chain.accuracy_of(points.loss_TK[None])[0]
    away = logit(points.accuracy_TK) - logit(curve)
    residual = np.sqrt((away**2).sum(1) / max(1, away.shape[1] - 3))
    return _at_least_binomial(chain, residual, np.median(points.accuracy_TK, axis=1))


def _at_least_binomial(chain: Chain, residual_T: Floats, accuracy_T: Floats) -> Floats:
    """No figure of some questions is known better than by their number; a probability has less than binomial noise."""
    if chain.settings.variant == "soft":
        return np.asarray(np.maximum(residual_T, _LEAST))
    questions = np.array([task.n_instances or np.inf for task in chain.tasks])
    return np.asarray(np.maximum(residual_T, 1 / np.sqrt(questions * accuracy_T * (1 - accuracy_T))))


def at_chance(chain: Chain) -> NDArray[np.bool_]:
    """Whether all runs are at chance, for each task; [T]."""
    if chain.settings.variant == "soft":  # near chance it still moves with the loss
        return np.zeros(len(chain.tasks), dtype=bool)
    return np.asarray(np.quantile(_of_the_curve(chain), 0.95, axis=1) < by_luck(chain.tasks))


def by_luck(tasks: Sequence[Task]) -> Floats:
    """The accuracy that a guess stays below in 95 of 100 tests of as many questions, and 0.02 above chance at least;
    [T].
    """
    chance_T = np.array([task.chance for task in tasks])
    questions_T = np.array([task.n_instances or np.inf for task in tasks])
    error_T = np.sqrt(chance_T * (1 - chance_T) / questions_T)
    return np.asarray(chance_T + np.maximum(_CHANCE_MARGIN, normal_quantile(0.9) * error_T))


def _of_the_curve(chain: Chain) -> Floats:
    """The accuracies that the second step is fitted to, or the runs'; [T, K]."""
    return chain.points.accuracy_TK if chain.points.separate else chain.points.accuracy_TR
