"""Forecast of a run under way: the ladder's forecast, moved by what the run has shown so far.

The ladder's laws are those of finished runs; a run whose learning rate has not decayed lies above them. How far, its
finished runs tell: at the same share of their tokens they lay above the law by some excess, at their end they lie
beside it by their own luck. So a run under way shows its own luck, and any error of the law at its size, as its excess
over what is usual at this share. That is an observation with the spread of the ladder's runs among themselves; the
ladder's forecast is the prior with the spread of its interval; the forecast is the mean of both, weighted by their
precision (a normal prior and a normal observation). Where the run's accuracies lie beside the second step's curve is
used in the same way; a law that leads straight to the accuracy is moved by the run's accuracies alone.

Legend: T tasks, R runs of the ladder, M chains.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.analysis.diagnose import units
from lmlab.methods.ladder.checking.alike import mismatches
from lmlab.methods.ladder.checking.slips import oddities
from lmlab.methods.ladder.checking.values import check_values, usable_rows
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.fitting.intervals import Ensemble
from lmlab.methods.ladder.fitting.logits import inverse_logit, logit
from lmlab.methods.ladder.presenting.digits import share_text
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable
from lmlab.progress import console

_WINDOW = 0.15  # of a run's tokens: its newest checkpoints, which are averaged
_EARLIEST = 0.2  # the share before which warm-up and the first fall say nothing of the end
_FEWEST = 4  # runs of the ladder, to know what is usual and how it varies
_SAME_RATE = 0.1  # of the peak


@dataclass(frozen=True)
class Followed:
    """The forecast of one task at the end of a run.

    Attributes:
        seen: the share of its tokens that it has seen.
        accuracy, lo, hi: of the end, 0 to 1, with an interval.
        ladder_accuracy, ladder_lo, ladder_hi: by the ladder alone, without the run.
        loss, loss_lo, loss_hi: the quantity of the first chain that has one, in `unit`; None without such a chain.
        own_curve: the same by the run's own points alone, B / D^beta + E, with its learning rate where it is known.
        weight: of the run against the ladder, 0 to 1: mean over the chains.
    """

    task: str
    seen: float
    accuracy: float
    lo: float
    hi: float
    ladder_accuracy: float
    ladder_lo: float
    ladder_hi: float
    loss: float | None
    loss_lo: float | None
    loss_hi: float | None
    unit: str
    own_curve: float | None
    weight: float


def follow(forecaster: Forecaster, run: Run, d: float | None = None, level: float = 0.9) -> list[Followed]:
    """Forecast the end of a run from the ladder and from what it has shown.

    Arguments:
        forecaster: of a ladder without this run, whose runs have the same schedule.
        run: its checkpoints so far.
        d: tokens at its end; by default what is planned.

    Raises:
        UserError: nobody knows its end, it is finished, it has hardly begun, its learning rate goes another way than
            those of the ladder's runs, or it is one of them.
    """
    end = d or run.planned_tokens
    if not end:
        raise UserError(f"Where the run '{run.name}' is to end is not known.", "Give its tokens with -d.")
    if not (math.isfinite(run.n) and run.n > 0):
        raise UserError(f"The number of parameters of '{run.name}' is not known.", "Add the column n to the table.")
    if run.name in forecaster.fitted_runs:
        raise UserError(f"The run '{run.name}' is part of the ladder that is to forecast it.")
    seen = run.final_tokens / end
    if seen >= 1 - 1e-9:
        raise UserError(f"The run '{run.name}' has seen {run.final_tokens:.4g} of {end:.4g} tokens: it is finished.")
    if seen < _EARLIEST:
        raise UserError(
            f"The run '{run.name}' has seen {seen:.1%} of its tokens; before {_EARLIEST:.0%} it says nothing of its"
            " end.",
            "Take lmlab ladder predict, which goes by the ladder alone.",
        )
    ensemble = forecaster.ensemble
    run = replace(run, mode="train", flops_per_token=run.flops_per_token or forecaster.flops_per_token(run.n))
    check_values(RunTable((run,)), forecaster.tasks, ensemble.settings.members)
    ladder = _comparable(forecaster, run, seen)
    epochs = max(1.0, end / run.unique_tokens)
    x_3Q = forecaster.target(run.n, end, level, run.flops_per_token, epochs)[:, None]
    before = forecaster.predict_all(run.n, end, level, run.flops_per_token, epochs)
    beyond = forecaster.beyond(x_3Q[:, 0])
    moved: list[Floats] = []
    weights_MT, left_MT = [], []
    loss_rows = None
    for member, settings in enumerate(ensemble.settings.members):
        if not settings.chained:
            continue
        point_T, sd_T = (each[:, 0] for each in ensemble.log_loss(member, x_3Q, beyond))
        usual_T, spread_T = _usual(ensemble, member, ladder, seen)
        own_T = _excess(ensemble, member, run, seen, end) - usual_T
        weight_T = sd_T**2 / (sd_T**2 + spread_T**2)
        weights_MT.append(weight_T)
        left_MT.append(np.sqrt(1 - weight_T))
        shift_T = weight_T * own_T
        chain = ensemble.chains[member]
        plain = chain.loss(x_3Q)
        moved.append(
            logit(chain.accuracy_of(plain * np.exp(shift_T)[None, :, None])[0, :, 0])
            - logit(chain.accuracy_of(plain)[0, :, 0])
        )
        if loss_rows is None:
            reach = forecaster.loss_factor(member, level, beyond)
            middle = point_T + shift_T
            width = reach * sd_T * left_MT[-1]
            loss_rows = (np.exp(middle), np.exp(middle - width), np.exp(middle + width), units(settings.x), settings.x)
    if not moved:
        raise UserError("The estimator has no quantity between its steps, which a run under way could show.")
    aside_T, aside_left_T = _beside_the_curve(ensemble, ladder, run, seen, end)
    law_left_T = np.mean(left_MT, axis=0)
    spread = ensemble.spread(x_3Q, beyond)
    prior_T = np.mean([side[:, 0] for side in spread.total], axis=0)
    by_curve, shifts = iter(moved), []
    for member, settings in enumerate(ensemble.settings.members):
        if settings.chained:
            shifts.append(next(by_curve) + aside_T)
            continue
        usual_T, spread_T = _usual(ensemble, member, ladder, seen)
        weight_T = prior_T**2 / (prior_T**2 + spread_T**2)
        shifts.append(weight_T * (_excess(ensemble, member, run, seen, end) - usual_T))
    middle_T = logit(np.array([each.accuracy for each in before])) + np.average(
        shifts, axis=0, weights=ensemble.settings.weights or None
    )
    below, above = (
        np.sqrt(
            sum(
                (part[side][:, 0] * (aside_left_T if name == "curve" else law_left_T)) ** 2
                for name, part in spread.parts.items()
            )
        )
        for side in (0, 1)
    )
    whole = spread.total
    rows = []
    for t, (task, each) in enumerate(zip(forecaster.tasks, before, strict=True)):
        # The printed interval of the ladder's forecast, narrowed by as much as its standard deviation.
        down = (logit(np.array(each.accuracy)) - logit(np.array(each.lo))) * below[t] / whole[0][t, 0]
        up = (logit(np.array(each.hi)) - logit(np.array(each.accuracy))) * above[t] / whole[1][t, 0]
        value, lo, hi = map(float, inverse_logit(middle_T[t] + np.array([0.0, -float(down), float(up)])))
        loss, loss_lo, loss_hi = (None if loss_rows is None else float(loss_rows[side][t]) for side in range(3))
        rows.append(
            Followed(
                task.name,
                seen,
                value,
                lo,
                hi,
                each.accuracy,
                each.lo,
                each.hi,
                loss,
                loss_lo,
                loss_hi,
                "" if loss_rows is None else loss_rows[3],
                None if loss_rows is None else own_curve(run, run.intermediate(task, loss_rows[4]), end),
                float(np.mean([weight[t] for weight in weights_MT])),
            )
        )
    return rows


def checked_run(forecaster: Forecaster, run: Run, drop_bad_rows: bool = False) -> Run:
    """A run under way without rows that must not be read, and with warnings of what looks wrong about it, as the runs
    of a ladder have them.

    Raises:
        UserError: a value that cannot be, with file and row.
    """
    run = replace(run, mode="train")
    found, _ = usable_rows(run, forecaster.tasks, forecaster.ensemble.settings.members, drop_bad_rows)
    # As a target: nobody expects it to have the length of its name.
    ladder, alone = forecaster.table, RunTable((replace(found, mode="eval"),))
    together = [each for each in mismatches(replace(ladder, runs=(*ladder, found))) if each not in mismatches(ladder)]
    for warning in [*together, *oddities(alone, forecaster.tasks)]:
        console.print(f"Warning: {warning}", style="yellow")
    return found


def without_run(table: RunTable, name: str) -> RunTable:
    """The ladder without a run that it is to forecast, and without runs of its size that are as long or longer: they
    would not be there yet.
    """
    run = table[name]
    # lengths that differ by less are the same
    later = [each.name for each in table if each.n == run.n and each.final_tokens >= 0.98 * run.final_tokens]
    return table.where(without=[name, *later])


def cut_off(run: Run, share: float) -> Run:
    """The run as it was when it had seen a share of its tokens.

    Raises:
        UserError: the share is not between 0 and 1, or nothing was measured before it.
    """
    if not 0 < share < 1:
        raise UserError(f"The share --at lies between 0 and 1, not at {share}.")
    keep = run.tokens <= share * run.final_tokens
    if not keep.any():
        raise UserError(f"The run '{run.name}' was not measured before {share:.0%} of its tokens.")
    cut = run.keep(keep)
    if math.isfinite(run.unique_tokens):  # the same data, gone through less often so far
        cut = replace(cut, metadata={**run.metadata, "epochs": cut.final_tokens / run.unique_tokens})
    return cut


def own_curve(run: Run, values: Floats, d: float) -> float | None:
    """A loss at the end of a run by its own points alone: B / D^beta + E - F (1 - h), h the learning rate over its peak
    (Bhagia et al.'s code and others use such a term); without known rates F is 0. None of fewer than six points.

    Arguments:
        values: [K] the loss at each checkpoint.
        d: tokens at the end, where the rate is taken to be a tenth of its peak.
    """
    from scipy.optimize import least_squares

    keep = run.tokens > 0.05 * d  # before, the loss falls by other rules: warmup, and what is learned first
    y, x = values[keep], run.tokens[keep] / d
    if len(y) < 6 or not (np.isfinite(y) & (y > 0)).all():
        return None
    known = run.lr is not None and bool(run.lr_peak) and bool(np.isfinite(run.lr[keep]).all())
    rate = run.lr[keep] / run.lr_peak if known and run.lr is not None and run.lr_peak else np.ones(len(y))

    def law(p: Floats, x: Floats, h: Floats) -> Floats:
        return np.maximum(p[0] + np.exp(p[1]) * x ** -p[2] - p[3] * (1 - h), 1e-6)

    most = 1.0 if known else 1e-12
    found = least_squares(
        lambda p: np.log(law(p, x, rate)) - np.log(y),
        [0.7 * y[-1], math.log(0.2 * y[-1]), 0.3, min(0.02, most / 2)],  # floor, B, beta, F: of usual curves
        bounds=([0.0, -12.0, 0.02, 0.0], [np.inf, 12.0, 1.5, most]),  # what a training can have, with room
    )
    return float(law(found.x, np.ones(1), np.full(1, 0.1 if known else 1.0))[0])


def _comparable(forecaster: Forecaster, run: Run, seen: float) -> list[Run]:
    """The fitted runs of the ladder that show what is usual at this share.

    Raises:
        UserError: too few, or their learning rates go another way.
    """
    found = [each for each in forecaster.table.ladder if each.name in forecaster.fitted_runs]
    found = [each for each in found if _window(each, seen, each.final_tokens).any()]
    if len(found) < _FEWEST:
        raise UserError(
            f"Only {len(found)} runs of the ladder were measured at {seen:.0%} of their tokens; {_FEWEST} are needed to"
            " know what is usual there.",
            "Measure runs more often, or take lmlab ladder predict.",
        )
    rates = [_rate(each, seen, each.final_tokens) for each in found]
    known = [rate for rate in rates if rate is not None]
    own = _rate(run, seen, run.final_tokens / seen)
    usual = float(np.median(known)) if known else math.nan
    if own is not None and abs(own - usual) > _SAME_RATE:
        raise UserError(
            f"The learning rate of '{run.name}' stands at {share_text(own)} of its peak, those of the ladder's runs"
            f" stood at {share_text(usual)} at the same share of their tokens: their schedules differ.",
            "Correct -d if the run is to end elsewhere.",
        )
    return found


def _window(run: Run, seen: float, end: float) -> NDArray[np.bool_]:
    """Which checkpoints lie in the window that ends at a share of the run, [K]."""
    share = run.tokens / end
    return np.asarray((share > seen - _WINDOW) & (share <= seen * (1 + 1e-9)))


def _rate(run: Run, seen: float, end: float) -> float | None:
    """Mean learning rate in the window over its peak, of the rows that tell it; None where none does. The highest that
    was logged stands for a peak that is not known.
    """
    if run.lr is None or not np.isfinite(run.lr).any():
        return None
    peak = run.lr_peak or float(np.nanmax(run.lr))
    known = run.lr[_window(run, seen, end) & np.isfinite(run.lr)]
    return float(known.mean() / peak) if len(known) and peak > 0 else None


def schedule_doubt(forecaster: Forecaster, run: Run, seen: float) -> str | None:
    """What is said where rates do not tell whether a run and the ladder have one schedule; None where they do."""
    ladder = [each for each in forecaster.table.ladder if each.name in forecaster.fitted_runs]
    if _rate(run, seen, run.final_tokens / seen) is None:
        return (
            f"The learning rate of '{run.name}' is not known: it is taken to decay as those of the ladder's runs did."
        )
    if all(_rate(each, seen, each.final_tokens) is None for each in ladder):
        return (
            f"The learning rates of the ladder's runs are not known: they are taken to decay as that of '{run.name}'."
        )
    return None


def _law(ensemble: Ensemble, member: int, run: Run, tokens: Floats) -> Floats:
    """What a law says at some lengths of a run, [T, K]: the logarithm of its quantity, or the logit of an accuracy."""
    ratio = run.flops_per_token or 6 * run.n
    worth = [run.worth_at(float(each)) for each in tokens]
    x_3K = np.log(np.stack([np.full(len(tokens), run.n), worth, ratio * tokens]))
    chain = ensemble.chains[member]
    if not chain.settings.chained:
        return logit(chain.accuracy(x_3K)[0])
    return np.asarray(np.log(chain.loss(x_3K)[0]) + chain.points.loss_offset_T[:, None])


def _measured(ensemble: Ensemble, member: int, run: Run, read: Callable[[Floats], Floats | float]) -> Floats:
    """The same of a run's own figures, [T, ...]; `read` takes some of all checkpoints."""
    settings = ensemble.settings.members[member]
    if settings.chained:
        return np.log(np.array([read(run.intermediate(task, settings.x)) for task in ensemble.tasks]))
    values = np.array([read(run.accuracy(task, settings.variant)) for task in ensemble.tasks])
    return logit(np.clip(values, 1e-4, 1 - 1e-4))  # the logit of 0 or 1 is infinite


def _excess(ensemble: Ensemble, member: int, run: Run, seen: float, end: float) -> Floats:
    """Mean excess of a run over the law in the window, [T]."""
    window = _window(run, seen, end)
    values = _measured(ensemble, member, run, lambda column: column[window])
    return np.asarray((values - _law(ensemble, member, run, run.tokens[window])).mean(1))


def _usual(ensemble: Ensemble, member: int, ladder: list[Run], seen: float) -> tuple[Floats, Floats]:
    """The excess in the window over that at the end, mean over the ladder's runs, and the standard deviation of a
    further run's; [T] both.

    The run under way is of another size. So its deviation from the mean is at least as large as that of a size's runs
    from the mean of the other sizes.
    """
    settings = ensemble.settings.members[member]
    above_RT = []
    for run in ladder:
        final = (
            _measured(ensemble, member, run, partial(run.final_value, last=settings.last))
            - _law(ensemble, member, run, run.tokens[-1:])[:, 0]
        )
        above_RT.append(_excess(ensemble, member, run, seen, run.final_tokens) - final)
    values_RT = np.array(above_RT)
    count = len(values_RT)
    spread_T = values_RT.std(0, ddof=1) * math.sqrt(1 + 1 / count)
    sizes = np.array([run.n for run in ladder])
    if len(set(sizes)) > 1:
        left = [values_RT[sizes == n] - values_RT[sizes != n].mean(0) for n in sorted(set(sizes))]
        spread_T = np.maximum(spread_T, np.sqrt(np.mean(np.square(np.concatenate(left)), axis=0)))
    return values_RT.mean(0), np.maximum(spread_T, 1e-6)


def _beside_the_curve(
    ensemble: Ensemble, ladder: list[Run], run: Run, seen: float, end: float
) -> tuple[Floats, Floats]:
    """How far the run's accuracies will lie beside the curve at its end, in logits, and the share of the standard
    deviation that is left of it; [T] both.

    A run that lies beside the curve now will do so at its end, as far as those of the ladder did.
    """
    now_T = _aside(ensemble, run, _window(run, seen, end))
    change_RT = np.array(
        [
            _aside(ensemble, each, each.tokens > (1 - _WINDOW / 3) * each.final_tokens)
            - _aside(ensemble, each, _window(each, seen, each.final_tokens))
            for each in ladder
        ]
    )
    spread_T = np.sqrt(np.square(change_RT).mean(0)) * math.sqrt(1 + 1 / len(ladder))
    prior_T = ensemble.beside_curve_T
    weight_T = prior_T**2 / (prior_T**2 + np.maximum(spread_T, 1e-6) ** 2)
    return weight_T * now_T, np.sqrt(1 - weight_T)


def _aside(ensemble: Ensemble, run: Run, window: NDArray[np.bool_]) -> Floats:
    """Mean distance of a run's accuracies from the curves at its own losses in some checkpoints, in logits, [T]."""
    found = []
    for chain, settings in zip(ensemble.chains, ensemble.settings.members, strict=True):
        if not settings.chained:
            continue
        losses_TK = np.array([run.intermediate(task, settings.x)[window] for task in ensemble.tasks])
        curve_TK = chain.accuracy_of((losses_TK * np.exp(-chain.points.loss_offset_T)[:, None])[None])[0]
        actual_TK = np.array([run.accuracy(task, settings.variant)[window] for task in ensemble.tasks])
        found.append((logit(np.clip(actual_TK, 1e-4, 1 - 1e-4)) - logit(curve_TK)).mean(1))
    return np.asarray(np.mean(found, axis=0))
