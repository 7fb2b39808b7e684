"""Estimators for users: fit to a table of runs, predict with an interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

import lmlab
from lmlab.errors import UserError
from lmlab.methods.ladder.analysis.baselines import line_of
from lmlab.methods.ladder.analysis.diagnose import (
    StepReport,
    check_identifiable,
    distance,
    name_of,
    report_step,
    union,
    units,
)
from lmlab.methods.ladder.checking.checks import warnings
from lmlab.methods.ladder.checking.lengths import finished
from lmlab.methods.ladder.checking.same import consistent
from lmlab.methods.ladder.checking.slips import require_possible
from lmlab.methods.ladder.checking.values import check_values
from lmlab.methods.ladder.config import EstimatorSettings, TwoStepSettings, preset
from lmlab.methods.ladder.fitting.accuracy import NAMES
from lmlab.methods.ladder.fitting.calibration import Calibration, calibrate, times_beyond
from lmlab.methods.ladder.fitting.chain import fit_chain
from lmlab.methods.ladder.fitting.intervals import Ensemble, at_chance, fit_ensemble, other_forms
from lmlab.methods.ladder.fitting.laws import FORMS
from lmlab.methods.ladder.fitting.logits import inverse_logit, logit
from lmlab.methods.ladder.fitting.points import logs
from lmlab.methods.ladder.tables.table import C4, Floats, RunTable, validation_columns, worth_of
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import console
from lmlab.stats import normal_quantile, percentiles

_ENOUGH = 12  # configurations: two for each parameter of the law that has most
_ANOTHER_UNIT = 1e7  # times: billions beside ones


@dataclass(frozen=True)
class Prediction:
    """A forecast for one task.

    Attributes:
        loss: the quantity between the steps of the first chain that has one, with `loss_lo` and `loss_hi`, in
            `loss_unit`; None where the law leads straight to the accuracy.
        accuracy: 0 to 1, with the interval from `lo` to `hi`.
        level: what share of such intervals is to hold the outcome.
        parts: the share of each source of uncertainty in the variance.
        calibrated: whether the width was calibrated on backtests.
        diagnostics: distance from the ladder, flags, how many times farther than any backtest it is, what a line in
            logit accuracy on log compute says, and for every chain its parameters, its quantity with an interval, and
            its own accuracy.
    """

    task: str
    n: float
    d: float
    loss: float | None
    loss_lo: float | None
    loss_hi: float | None
    loss_unit: str
    accuracy: float
    lo: float
    hi: float
    level: float
    parts: dict[str, float]
    calibrated: bool
    diagnostics: dict[str, Any]

    @property
    def acc(self) -> float:
        """The accuracy."""
        return self.accuracy

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


class TwoStep:
    """A two-step estimator, not yet fitted.

    Arguments:
        estimator: a preset (`recommended`, `paper`, `flops`, `single`, `power`, `c4`, `taskce`) or settings of your
            own.
        replicates: for the interval's part `fit`; 0 for a point without it, which is for internal use.
        seed: of the replicates.
    """

    def __init__(
        self, estimator: str | EstimatorSettings | TwoStepSettings = "recommended", replicates: int = 200, seed: int = 0
    ) -> None:
        if isinstance(estimator, TwoStepSettings):
            estimator = EstimatorSettings(name=name_of(estimator), members=(estimator,))
        self.settings = preset(estimator) if isinstance(estimator, str) else estimator
        self.replicates, self.seed = replicates, seed

    def fit(
        self,
        table: RunTable,
        tasks: Task | Sequence[Task],
        calibrated: bool = True,
        allow_unfinished: bool = False,
    ) -> Forecaster:
        """Fit the estimator to the runs of a table.

        Arguments:
            calibrated: calibrate intervals by backtests inside the ladder, where it is large enough for them.
            allow_unfinished: keep runs that have not come to their end; they are left out otherwise, and told.

        Raises:
            UserError: too few runs, a missing column; the message says which.
        """
        chosen = [tasks] if isinstance(tasks, Task) else list(tasks)
        if not chosen:
            raise UserError("There is no task to fit.")
        require_possible(table)
        table = finished(table, allow_unfinished)
        table = consistent(table, available(self.settings, table, chosen, tell=False).members)
        settings = available(self.settings, table, chosen)
        check_values(table.ladder, chosen, chains_read(settings, table, chosen))
        ensemble = fit_ensemble(table, chosen, settings, self.replicates, self.seed)
        for chain in ensemble.chains:
            check_identifiable(chain.points, chain.settings)
        calibration = None
        if calibrated:
            try:
                calibration = calibrate(table, chosen, settings, min(60, self.replicates), self.seed)
            except UserError:
                calibration = None
        return Forecaster(ensemble, calibration, table, self.seed)


def chains_read(settings: EstimatorSettings, table: RunTable, tasks: Sequence[Task]) -> list[TwoStepSettings]:
    """The chains whose columns must hold numbers: those of the estimator and of the other forms of the law; and for an
    estimator of several, which stands for all that is known of the runs, their TaskCE where it was measured.
    """
    read = [*settings.members, *other_forms(table, settings)]
    if len(settings.members) > 1 and _has_soft(table, tasks):
        read.append(TwoStepSettings(x="taskce", pool=settings.members[0].pool))
    return read


def _has_soft(table: RunTable, tasks: Sequence[Task]) -> bool:
    """Whether all runs have the logarithm of the right answer's probability."""
    return all(
        task.soft_log_keys and all(key in run.metrics for key in task.soft_log_keys)
        for task in tasks
        for run in table.ladder
    )


def available(
    settings: EstimatorSettings, table: RunTable, tasks: Sequence[Task], tell: bool = True
) -> EstimatorSettings:
    """The estimator with what the table has columns for: without C4 the mean of all validation sets takes its place,
    other chains are left out. On few runs the chains that an estimator has for small ladders take their place, and of
    others a coupled law, which has six parameters, gives way to that of one exponent.

    An estimator of one chain is left as it is: what is missing is an error then.
    """
    if len(settings.members) == 1:
        return settings
    runs = table.ladder.runs
    has_c4 = all(C4 in run.metrics for run in runs)
    has_soft = _has_soft(table, tasks)
    few = len({run.configuration for run in runs}) < _ENOUGH
    if few and settings.small:
        return settings.model_copy(update={"members": settings.small, "weights": (), "small": ()})
    members, weights = [], []
    for member, weight in zip(settings.members, settings.weights or (1.0,) * len(settings.members), strict=True):
        if member.x == "c4" and not has_c4:
            try:
                for run in runs:
                    validation_columns(run)
            except UserError:
                continue
            member = member.model_copy(update={"x": "validation"})
        if member.x == "taskce" and not has_soft:
            continue
        if few and member.law == "coupled":
            member = member.model_copy(update={"law": "tied"})
        members.append(member)
        weights.append(weight)
    if tell and len(members) < len(settings.members):
        left = ", ".join(name_of(member) for member in members)
        console.print(
            f"Some columns of the estimator '{settings.name}' are missing; it goes on with: {left}.", style="yellow"
        )
    if not members:
        raise UserError(f"The table has no columns for the estimator '{settings.name}'.")
    return settings.model_copy(
        update={"members": tuple(members), "weights": tuple(weights) if settings.weights else ()}
    )


@dataclass(frozen=True)
class Forecaster:
    """A fitted estimator.

    Attributes:
        ensemble: the chains with their replicates.
        calibration: errors of backtests; None where intervals are not calibrated.
        table: what it was fitted to.
    """

    ensemble: Ensemble
    calibration: Calibration | None
    table: RunTable
    seed: int

    @property
    def tasks(self) -> tuple[Task, ...]:
        """What it predicts."""
        return self.ensemble.tasks

    @property
    def fitted_runs(self) -> set[str]:
        """Names of the runs that a chain is fitted to: not all of the table need be."""
        return {name for chain in self.ensemble.chains for name in chain.points.names}

    def predict(
        self, n: float, d: float, level: float = 0.9, task: str | None = None, flops_per_token: float | None = None
    ) -> Prediction:
        """Predict one task; its name is needed where several were fitted.

        Arguments:
            n, d: parameters without the input embedding, and tokens.
            level: of the interval.
        """
        if task is None and len(self.tasks) > 1:
            raise UserError("Several tasks were fitted; name one, or use predict_all.")
        return next(each for each in self.predict_all(n, d, level, flops_per_token) if task in (None, each.task))

    def target(
        self, n: float, d: float, level: float = 0.9, flops_per_token: float | None = None, epochs: float = 1.0
    ) -> Floats:
        """Where a target lies for the laws: the logarithms of N, D and FLOPs, [3]. Repeated data count in D as what
        they are worth.

        Raises:
            UserError: there is no such model or training, or an interval has no such level.
        """
        if not (n > 0 and d > 0 and math.isfinite(n) and math.isfinite(d)):
            raise UserError(f"A target needs a positive number of parameters and of tokens, not N = {n} and D = {d}.")
        if not 0 < level < 1:
            raise UserError(f"The level of an interval lies between 0 and 1, not at {level}.")
        ratio = flops_per_token or self.flops_per_token(n)
        if not 0 < ratio * d < math.inf:
            raise UserError(f"N = {n:g} and D = {d:g} are more FLOPs, or fewer, than numbers reach.")
        if not 1 <= epochs < math.inf:
            raise UserError(f"Data are gone through once or more often, not {epochs:g} times.")
        x_3 = logs(n, d, ratio)
        x_3[1] = math.log(worth_of(d, epochs))
        away = np.abs(x_3[:2, None] - self.ensemble.chains[0].points.x_3R[:2]).min(1)
        for far, name, value in zip(away, ("N", "D"), (n, d), strict=True):
            if far > math.log(_ANOTHER_UNIT):
                raise UserError(
                    f"The target's {name} = {value:.3g} is {math.exp(far):.1g} times away from that of any run.",
                    "Are both counted in the same unit, in ones rather than in millions or billions?",
                )
        return x_3

    @property
    def warnings(self) -> list[str]:
        """What looks wrong about the runs (`fitting.checks.warnings`)."""
        return warnings(self.table, self.tasks)

    def predict_all(
        self, n: float, d: float, level: float = 0.9, flops_per_token: float | None = None, epochs: float = 1.0
    ) -> list[Prediction]:
        """Predict all tasks.

        Arguments:
            epochs: how often the target goes through its data.
        """
        x_3 = self.target(n, d, level, flops_per_token, epochs)
        x_3Q = x_3[:, None]
        point = self.ensemble.accuracy(x_3Q)[0, :, 0]
        away = distance(self.ensemble.chains[0].points, x_3)
        beyond = self.beyond(x_3)
        spread = self.ensemble.spread(x_3Q, beyond)
        below, above = (side[:, 0] for side in spread.total)
        factor = self.factor(level, beyond)
        lo, hi = inverse_logit(logit(point) - factor * below), inverse_logit(logit(point) + factor * above)
        untold = self.ensemble.untold(x_3Q)[:, 0]
        lo = np.where(untold, np.maximum(lo, [task.chance for task in self.tasks]), lo)  # a guess is as bad as it gets
        if not np.isfinite([point, lo, hi]).all():
            raise UserError(
                f"The runs give no forecast at N = {n:.3g}, D = {d:.3g}: it is not a number.",
                "Look at lmlab ladder fit, or take another estimator with --preset.",
            )
        variance = np.sum([low**2 + high**2 for low, high in spread.parts.values()], axis=0)
        members = self.ensemble.settings.members
        losses = [self._loss(number, x_3Q, level, beyond) for number in range(len(members))]
        first = next((number for number, each in enumerate(members) if each.chained), None)
        own = [chain.accuracy(x_3Q)[0, :, 0] for chain in self.ensemble.chains]
        line = self._line(x_3Q)
        reports = self.step_reports(x_3Q)
        flags = union(reports, members)
        found = []
        for place, task in enumerate(self.tasks):
            parts = {
                name: float((low[place, 0] ** 2 + high[place, 0] ** 2) / variance[place, 0])
                for name, (low, high) in spread.parts.items()
            }
            chains = {
                name_of(each): {
                    **asdict(report[place]),
                    "accuracy": float(own[number][place]),
                    "loss": dict(zip(("value", "lo", "hi"), losses[number][place], strict=True)),
                    "unit": units(each.x) if each.chained else "",
                }
                for number, (each, report) in enumerate(zip(members, reports, strict=True))
            }
            found.append(
                Prediction(
                    task.name,
                    n,
                    d,
                    *((None, None, None) if first is None else losses[first][place]),
                    "" if first is None else units(members[first].x),
                    float(point[place]),
                    float(lo[place]),
                    float(hi[place]),
                    level,
                    parts,
                    self.calibration is not None,
                    {
                        "distance": away,
                        "flags": list(flags[place]),
                        "reach": math.exp(self.calibration.reach) if self.calibration else None,
                        "beyond": beyond,
                        "untold": bool(untold[place]),
                        "line": None if line is None else float(line[place]),
                        "chains": chains,
                    },
                )
            )
        return found

    def _line(self, x_3Q: np.ndarray[Any, Any]) -> np.ndarray[Any, Any] | None:
        """Accuracies by the line in log compute, [T]; None where another figure is predicted than the runs have, as
        answers by letter from a large run's curve.
        """
        first = self.ensemble.chains[0]
        if first.points.separate and first.settings.variant != "rc":
            return None
        return fit_chain(self.table, self.tasks, line_of(first.settings)).accuracy(x_3Q)[0, :, 0]

    def beyond(self, x_3: np.ndarray[Any, Any]) -> float:
        """How many times farther than any backtest a target is, at least 1 (`times_beyond`)."""
        compute = self.ensemble.chains[0].points.x_3R[2]
        # Backtests go upwards; of a target far below the ladder they say no more than of one far above.
        away = float(max(x_3[2] - compute.max(), compute.min() - x_3[2]))
        return times_beyond(away, self.calibration.reach if self.calibration else 0.0, float(np.ptp(compute)))

    def factor(self, level: float, beyond: float = 1.0) -> np.ndarray[Any, Any]:
        """What the standard deviations of accuracies are multiplied by so that a share `level` lies inside, [T].

        Arguments:
            beyond: how many times farther than any backtest the target is.
        """
        normal = normal_quantile(level)
        calibrated = self.calibration.factor(level) if self.calibration else normal
        calibrated = self.ensemble.reaching(calibrated, level, beyond if self.calibration else math.inf)
        # backtests at chance are too easy
        return np.where(at_chance(self.ensemble.chains[0]), max(calibrated, normal), calibrated)

    def loss_factor(self, member: int, level: float, beyond: float = 1.0) -> float:
        """The same for the logarithm of one chain's quantity."""
        calibration = self.calibration.losses.get(member) if self.calibration else None
        found = calibration.factor(level) if calibration else normal_quantile(level)
        found *= self.ensemble.few_runs(member, level)
        return self.ensemble.reaching(found, level, beyond if calibration else math.inf)

    def _loss(
        self, member: int, x_3Q: np.ndarray[Any, Any], level: float, beyond: float
    ) -> list[tuple[float | None, float | None, float | None]]:
        """One chain's quantity for each task, with the limits of its interval."""
        if not self.ensemble.settings.members[member].chained:
            return [(None, None, None)] * len(self.tasks)
        point, sd = (each[:, 0] for each in self.ensemble.log_loss(member, x_3Q, beyond))
        reach = sd * self.loss_factor(member, level, beyond)
        high = point + reach
        points = self.ensemble.chains[member].points
        if (x_3Q[:2, 0] >= points.x_3R[:2].min(1)).all():  # no larger and longer run is expected to lose against all
            worst = np.log(points.target(True)).max(1) + points.loss_offset_T
            high = np.maximum(point, np.minimum(high, worst))
        ends = np.exp(np.stack([point, point - reach, high], axis=1))
        return [tuple(map(float, row)) for row in ends]  # type: ignore[misc]

    def step_reports(self, x_3Q: np.ndarray[Any, Any] | None = None) -> list[list[StepReport]]:
        """Parameters, fit errors and flags: chains x tasks."""
        return [report_step(chain, x_3Q) for chain in self.ensemble.chains]

    def parameter_limits(self, member: int, level: float) -> dict[str, dict[str, dict[str, tuple[float, float]]]]:
        """Intervals of one chain's parameters over the replicates: task -> `first` and `second` step -> parameter."""
        found: dict[str, dict[str, dict[str, tuple[float, float]]]] = {
            task.name: {"first": {}, "second": {}} for task in self.tasks
        }
        if not self.ensemble.replicates:
            return found
        chain = self.ensemble.replicates[member]
        steps = {"first": (chain.first, FORMS[chain.settings.law].names)}
        if chain.second is not None:
            steps["second"] = (chain.second, NAMES[chain.settings.accuracy_law])
        for step, (fit, names) in steps.items():
            values = fit.parameters_BP.reshape(-1, len(self.tasks), len(names))
            low, high = percentiles(values, level)
            for t, task in enumerate(self.tasks):
                found[task.name][step] = {name: (float(low[t, p]), float(high[t, p])) for p, name in enumerate(names)}
        return found

    def flops_per_token(self, n: float) -> float:
        """Training FLOPs of a token at a size, by the ladder's own ratio to 6 N, which falls with the size."""
        known = sorted(
            (run.n, run.flops_per_token / (6 * run.n))
            for run in self.table
            if run.flops_per_token and math.isfinite(run.n)
        )
        if not known:
            return 6 * n
        return (
            6 * n * float(np.interp(math.log(n), [math.log(size) for size, _ in known], [ratio for _, ratio in known]))
        )

    def to_json(self) -> dict[str, Any]:
        """The fit with everything that is needed to judge it and to make it again."""
        members = self.ensemble.settings.members
        limits = [self.parameter_limits(number, 0.9) for number in range(len(members))]
        return {
            "lmlab": lmlab.__version__,
            "data": self.table.ladder.digest,
            "runs": sorted(self.fitted_runs),
            "left_out": dict(self.table.left_out),
            "warnings": self.warnings,
            "seed": self.seed,
            "estimator": self.ensemble.settings.model_dump(mode="json"),
            "calibrated": self.calibration is not None,
            "tasks": {
                task.name: {
                    name_of(each): asdict(report[place]) | {"intervals_90": limits[number][task.name]}
                    for number, (each, report) in enumerate(zip(members, self.step_reports(), strict=True))
                }
                for place, task in enumerate(self.tasks)
            },
        }


def bootstrap(
    table: RunTable,
    task: Task,
    estimator: str | EstimatorSettings,
    n: float,
    d: float,
    replicates: int = 200,
    seed: int = 0,
) -> np.ndarray[Any, Any]:
    """Replicates of a predicted accuracy, [replicates]; the interval's part `fit` alone."""
    forecaster = TwoStep(estimator, replicates, seed).fit(table, task, calibrated=False)
    x_3Q = logs(n, d, forecaster.flops_per_token(n))[:, None]
    return np.asarray(forecaster.ensemble.accuracy(x_3Q, forecaster.ensemble.replicates)[:, 0, 0])
