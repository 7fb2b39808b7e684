"""Which run to add next: the estimator itself is fitted to simulated ladders with and without it.

A truth is drawn from the replicates of the fit: the laws of all chains and their curves. From each truth the ladder is
measured again, with the noise of its runs (lack of fit, differences between repeats) and of its curve, and so is the
run that could be added. The estimator, with its shrinkage and averaging, is fitted to the ladder and to the ladder with
the run, and both forecasts are compared with the truth. The same draws serve all candidates, so that differences
between them are not noise.

Legend: S truths, T tasks, R configurations, G groups of checkpoints, K checkpoints, Q places (one).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.fitting.chain import Chain, fit_again
from lmlab.methods.ladder.fitting.fit import StepFit
from lmlab.methods.ladder.fitting.intervals import Ensemble
from lmlab.methods.ladder.fitting.laws import log_residuals, shift_units
from lmlab.methods.ladder.fitting.logits import inverse_logit, logit, mean_logit
from lmlab.methods.ladder.fitting.points import Points, lengths_are, logs, thin
from lmlab.methods.ladder.tables.table import TOKENS_PER_PARAMETER, Floats
from lmlab.methods.ladder.tables.tasks import places_of

_PRIOR = 1e-4  # of the parameters in scaled units, so that undetermined ones stay finite
_TRUTHS = 64  # more narrow the estimate of what a run would tell, and take time in proportion
_SIMULATED = 10  # candidates; the others are ruled out by a linear estimate
_LEAST_GAIN = 0.05  # of the variance: what is less is not worth a run
_ROUNDED = 0.05  # lengths are told by two digits
_SURE = 2.0  # standard errors of the simulation


@dataclass(frozen=True)
class NextRun:
    """A run that could be added.

    Attributes:
        flops: what it costs; `share` of the ladder's cost so far.
        gain: the share of the forecast's expected squared error that it takes away, mean over tasks. That error is
            the part of the variance that comes from the ladder's runs, which a further run can lower, and what other
            forms of the law say otherwise, which it cannot.
        error: standard error of the gain, over the simulated truths.
    """

    n: float
    multiple: float
    flops: float
    share: float
    gain: float
    error: float

    @property
    def d(self) -> float:
        """Its tokens."""
        return TOKENS_PER_PARAMETER * self.multiple * self.n

    @property
    def worthwhile(self) -> bool:
        """Whether the gain is more than a little, and more than the noise of the simulation."""
        return self.gain >= _LEAST_GAIN and self.gain > _SURE * self.error


def next_runs(
    ensemble: Ensemble,
    n: float,
    d: float,
    flops_per_token: float | None = None,
    sizes: Sequence[float] = (),
    multiples: Sequence[float] = (),
    ladder_flops: float = 0.0,
    beyond: float = 1.0,
    truths: int = _TRUTHS,
    seed: int = 0,
) -> list[NextRun]:
    """Runs that could be added: those that are worth it first, by their gain for their cost.

    Arguments:
        sizes, multiples: of the candidates; by default the ladder's sizes and twice the largest, and the lengths that
            the estimator fits, to twice the longest: in tokens where the ladder is planned by these. Smaller sizes
            and shorter runs than any of the ladder's are cheap, and promise much if the law holds for them too;
            whether it does, these runs do not tell.
        ladder_flops: cost of the ladder so far.
        beyond: how many times farther than any backtest the target is (`Forecaster.beyond`).

    Raises:
        UserError: the estimator was fitted without replicates, which the truths are drawn from.
    """
    if not ensemble.replicates:
        raise UserError("Without replicates nothing is known of what the next run could tell.", "Fit with replicates.")
    x_3R = ensemble.chains[0].points.x_3R
    ratio = np.median(np.exp(x_3R[2] - x_3R[0] - x_3R[1]))
    known = sorted({float(f"{np.exp(value):.3g}") for value in x_3R[0]})
    by_tokens = not multiples and lengths_are(x_3R[0], x_3R[1]) == "tokens"
    counted = x_3R[1] if by_tokens else x_3R[1] - x_3R[0] - np.log(TOKENS_PER_PARAMETER)
    lengths = sorted({float(f"{value:.2g}") for value in np.exp(counted)})
    least = (1 - _ROUNDED) * float(np.exp(x_3R[1].min()))
    found = []
    for size in list(sizes) or [*known, known[-1] * 2]:
        for length in list(multiples) or [*lengths, 2 * lengths[-1]]:
            tokens = length if by_tokens else TOKENS_PER_PARAMETER * length * size
            if multiples or tokens >= least:
                multiple = tokens / (TOKENS_PER_PARAMETER * size)
                found.append((size, multiple, logs(size, tokens, float(ratio) * size)))
    if not sizes and not multiples:
        found = _promising(ensemble, found, logs(n, d, flops_per_token))
    drawn = _Draws(ensemble, truths, seed)
    x_3Q = logs(n, d, flops_per_token)[:, None]
    truth_ST = logit(ensemble.accuracy(x_3Q, ensemble.replicates)[drawn.chosen_S, :, 0])
    shifts = list(ensemble.form_shifts(x_3Q, beyond).values())
    form_T = np.sum(np.square(shifts), axis=0)[:, 0] if shifts else 0.0
    before = np.square(drawn.forecast(None, x_3Q) - truth_ST) + form_T
    runs = []
    for size, length, x_3 in found:
        after = np.square(drawn.forecast(x_3, x_3Q) - truth_ST) + form_T
        gain, error = _gain(before, after)
        flops = float(np.exp(x_3[2]))
        runs.append(NextRun(size, length, flops, flops / ladder_flops if ladder_flops else float("nan"), gain, error))
    return sorted(runs, key=lambda run: (not run.worthwhile, -run.gain / run.flops if run.worthwhile else -run.gain))


def _gain(before_ST: Floats, after_ST: Floats) -> tuple[float, float]:
    """1 - the ratio of mean squared errors, mean over tasks, and its standard error by the jackknife over truths."""

    def value(before: Floats, after: Floats) -> Floats:
        return np.asarray(1 - (after / before).mean(-1))

    count = len(before_ST)
    total = float(value(before_ST.mean(0), after_ST.mean(0)))
    left = value(
        (before_ST.sum(0) - before_ST) / (count - 1),
        (after_ST.sum(0) - after_ST) / (count - 1),
    )
    return total, float(np.sqrt((count - 1) / count * np.square(left - left.mean()).sum()))


class _Draws:
    """Truths, and the ladders that were measured in each."""

    def __init__(self, ensemble: Ensemble, truths: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.ensemble = ensemble
        tasks, configurations = len(ensemble.tasks), ensemble.chains[0].points.y_TR.shape[1]
        replicates = len(ensemble.replicates[0].first.parameters_BP) // tasks
        self.chosen_S = rng.permutation(replicates)[:truths]
        count = len(self.chosen_S)
        # One draw a run and task: the chains see the same runs, lucky or not. The last is that of the run to be added.
        places = places_of(ensemble.tasks)
        groups = 1 + max(chain.points.num_groups for chain in ensemble.chains)
        self.run_STR = rng.standard_normal((count, tasks, configurations + 1))[:, places]
        self.curve_STG = rng.standard_normal((count, tasks, groups))[:, places]

    def forecast(self, added_3: Floats | None, x_3Q: Floats) -> Floats:
        """Logits of the accuracies that the estimator forecasts from each truth's ladder, [S, T]; `added_3` is the run
        that is added.
        """
        values = []
        for number in range(len(self.ensemble.chains)):
            values.append(self._refitted(number, added_3).accuracy(x_3Q)[:, :, 0])
        return logit(mean_logit(values, self.ensemble.settings.weights))

    def _truth(self, number: int) -> Chain:
        """The chosen replicates of a chain."""
        chain, tasks = self.ensemble.replicates[number], len(self.ensemble.tasks)
        rows = (self.chosen_S[:, None] * tasks + np.arange(tasks)).ravel()

        def pick(fit: StepFit) -> StepFit:
            return StepFit(fit.parameters_BP[rows], fit.cost_B[rows], fit.converged_B[rows])

        return replace(chain, first=pick(chain.first), second=None if chain.second is None else pick(chain.second))

    def _refitted(self, number: int, added_3: Floats | None) -> Chain:
        chain, truth = self.ensemble.chains[number], self._truth(number)
        points, counts_K = thin(chain.points)
        if added_3 is not None:
            points, counts_K = _with_run(chain, points, counts_K, added_3)
        configurations = points.x_3R.shape[1]
        noise_T = self.ensemble.noise_MT[number]
        spread_TR = noise_T[:, None] / np.sqrt(points.repeats_R)
        y_STR = truth.loss(points.x_3R) * np.exp(
            chain.settings.sign * spread_TR[None] * self.run_STR[:, :, :configurations]
        )
        weights_SG = np.ones((len(self.chosen_S), points.num_groups))
        if chain.second is None:
            return fit_again(chain, points, counts_K, y_STR, weights_SG)
        losses_STK = np.broadcast_to(points.loss_TK, (len(self.chosen_S), *points.loss_TK.shape))
        # Where the runs lie beside the curve is drawn anew, run by run: neighboring checkpoints stray together.
        away = self.ensemble.curve_T[None, :, None] * self.curve_STG[:, :, points.run_K]
        odds = logit(_curve(truth, losses_STK)) + away
        accuracy_STK = inverse_logit(odds)
        return fit_again(chain, points, counts_K, y_STR, weights_SG, accuracy_STK)


def _curve(truth: Chain, losses_STK: Floats) -> Floats:
    """The second step of each truth, before it is moved to the split that is predicted."""
    plain = replace(truth, settings=truth.settings.model_copy(update={"pool": False}))
    return plain.accuracy_of(losses_STK)


def _with_run(chain: Chain, points: Points, counts_K: Floats, added_3: Floats) -> tuple[Points, Floats]:
    """The points with one more configuration, whose checkpoints go the way of the run nearest to it in compute."""
    last = points.x_3R.shape[1]
    near = int(np.abs(points.x_3R[2] - added_3[2]).argmin())
    like = np.flatnonzero(points.run_K == near)
    end_T = chain.loss(added_3[:, None])[0, :, 0] / chain.loss(points.x_3R[:, near : near + 1])[0, :, 0]
    owners = np.where(points.run_K >= last, points.run_K + 1, points.run_K)  # other models come after all runs
    more = replace(
        points,
        x_3R=np.concatenate([points.x_3R, added_3[:, None]], axis=1),
        y_TR=np.concatenate([points.y_TR, points.y_TR[:, near : near + 1]], axis=1),
        accuracy_TR=np.concatenate([points.accuracy_TR, points.accuracy_TR[:, near : near + 1]], axis=1),
        pooled_TR=np.concatenate([points.pooled_TR, points.pooled_TR[:, near : near + 1]], axis=1),
        loss_TK=np.concatenate([points.loss_TK, points.loss_TK[:, like] * end_T[:, None]], axis=1),
        accuracy_TK=np.concatenate([points.accuracy_TK, points.accuracy_TK[:, like]], axis=1),
        run_K=np.concatenate([owners, np.full(len(like), last)]),
        members=(*points.members, ("the next run",)),
        share_R=np.append(points.share_R, 1.0),
    )
    return more, np.concatenate([counts_K, counts_K[like]])


def _promising(
    ensemble: Ensemble, candidates: list[tuple[float, float, Floats]], target_3: Floats
) -> list[tuple[float, float, Floats]]:
    """The candidates with the largest drop of the variance by a linear estimate (a c-optimal design), half of them for
    their cost, half whatever they cost.
    """
    chain = next((each for each in ensemble.chains if each.settings.chained), None)
    if chain is None or len(candidates) <= _SIMULATED:
        return candidates
    x_3R, law = chain.points.x_3R, chain.settings.law
    offset = x_3R.mean(1)
    p_TP = shift_units(law, chain.first.parameters_BP, offset, 1)

    def gradients(x_3K: Floats) -> Floats:
        return log_residuals(law, p_TP, x_3K - offset[:, None], np.zeros((1, x_3K.shape[1])))[1]

    have, target = gradients(x_3R), gradients(target_3[:, None])[:, 0]
    scale = np.sqrt((have**2).sum(1)) + 1e-12
    have, target = have / scale[:, None], target / scale
    normal = np.einsum("tkp,tkq->tpq", have, have) + _PRIOR * np.eye(have.shape[2])

    def variance(matrix: Floats) -> Floats:
        return np.einsum("tp,tp->t", target, np.linalg.solve(matrix, target[:, :, None])[:, :, 0])

    before, drops = variance(normal), []
    for _, _, x_3 in candidates:
        g = gradients(x_3[:, None])[:, 0] / scale
        drops.append(1 - float((variance(normal + g[:, :, None] * g[:, None, :]) / before).mean()))
    worth = [place for place, drop in enumerate(drops) if drop >= _LEAST_GAIN] or list(range(len(drops)))
    by_cost = sorted(worth, key=lambda place: -drops[place] / np.exp(candidates[place][2][2]))[: _SIMULATED // 2]
    rest = [place for place in sorted(worth, key=lambda place: -drops[place]) if place not in by_cost]
    return [candidates[place] for place in [*by_cost, *rest[: _SIMULATED - len(by_cost)]]]
