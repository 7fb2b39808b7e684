"""From runs to the points that the laws are fitted to (Bhagia et al. 2024, section 3).

Legend: T tasks, R configurations (a run, or the repeats of one), K checkpoints of all runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.config import TwoStepSettings, Variant
from lmlab.methods.ladder.fitting.logits import logit
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable, model_as_run
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import short

_PARTS = (
    7  # a mean over checkpoints spans at most this part of a run: over more it would mix what is far apart on the curve
)
_GRID = 1.5  # sizes times lengths over the runs: a grid has 1, and some of its runs may be missing
LengthsAre = Literal["multiples", "tokens", "nothing"]
LEAST_ACCURACY = 1e-3  # of a run, where its logarithm is taken: hard questions may all be answered wrong


@dataclass(frozen=True)
class Points:
    """What both steps are fitted to.

    Attributes:
        x_3R: ln N, ln D and ln C of each configuration at its end.
        y_TR: the quantity between the steps, mean over the last checkpoints of each run, and over its repeats.
        accuracy_TR: accuracy of the task in the same way.
        pooled_TR: accuracy over all splits that the law is fitted to.
        offset_T: mean difference of the two in logits, which leads from all splits to the one that is predicted.
        loss_offset_T: the same for the quantity between the steps, as a difference of logarithms.
        loss_TK, accuracy_TK: smoothed checkpoints for the second step, of all runs one after the other.
        run_K: to which configuration each belongs; external models have numbers of their own from R on.
        members: names of the runs of each configuration.
        separate: whether the second step's checkpoints are of other runs than the first step's points.
        share_R: how much each run of a configuration weighs.
    """

    x_3R: Floats
    y_TR: Floats
    accuracy_TR: Floats
    pooled_TR: Floats
    offset_T: Floats
    loss_offset_T: Floats
    loss_TK: Floats
    accuracy_TK: Floats
    run_K: NDArray[np.int64]
    members: tuple[tuple[str, ...], ...]
    separate: bool
    share_R: Floats

    @property
    def names(self) -> tuple[str, ...]:
        """Of all runs that are fitted."""
        return tuple(name for group in self.members for name in group)

    @property
    def repeats_R(self) -> Floats:
        """How many runs are behind each point."""
        return np.array([len(group) for group in self.members], dtype=float)

    @property
    def weight_R(self) -> Floats:
        """Of the first step's points: a mean of k runs weighs k times."""
        return self.share_R * self.repeats_R

    @property
    def num_groups(self) -> int:
        """Configurations and external models."""
        return max(int(self.run_K.max()) + 1, len(self.members))

    def target(self, chained: bool) -> Floats:
        """What the first step is fitted to, [T, R]: the quantity between the steps, or the accuracy where there is
        none.
        """
        return self.y_TR if chained else np.maximum(self.pooled_TR, LEAST_ACCURACY)


def thin(points: Points, bins: int = 8) -> tuple[Points, Floats]:
    """The same with the checkpoints of each run averaged in at most `bins` groups of neighbors, and how many each
    group holds, [K].
    """
    losses, accuracies, owners, counts = [], [], [], []
    for group in np.unique(points.run_K):
        places = np.flatnonzero(points.run_K == group)
        for part in np.array_split(places, min(bins, len(places))):
            losses.append(points.loss_TK[:, part].mean(1))
            accuracies.append(points.accuracy_TK[:, part].mean(1))
            owners.append(int(group))
            counts.append(len(part))
    thinned = replace(
        points, loss_TK=np.stack(losses, 1), accuracy_TK=np.stack(accuracies, 1), run_K=np.array(owners, dtype=np.int64)
    )
    return thinned, np.array(counts, dtype=float)


def levels(log_x: Floats) -> int:
    """How many values are there that differ by more than 2 %."""
    return 1 + int((np.diff(np.sort(log_x)) > 0.02).sum())  # of one size counted in two ways, or one length rounded


def lengths_are(log_n: Sequence[float] | Floats, log_d: Sequence[float] | Floats) -> LengthsAre:
    """What makes a grid of runs: few lengths, each of several sizes. Lengths are multiples of 20 N tokens, tokens where
    all sizes were planned by these, or nothing at all.
    """
    n, d = np.round(np.asarray(log_n), 6), np.asarray(log_d)
    sizes, runs = len(set(n.tolist())), len(n)
    multiples, tokens = (len({f"{each:.2g}" for each in np.exp(values)}) for values in (d - n, d))
    if multiples * sizes <= _GRID * runs or sizes == 1:
        return "multiples"
    return "tokens" if tokens * sizes <= _GRID * runs else "nothing"


def length_kind(runs: Sequence[Run]) -> LengthsAre:
    """What makes a grid of these runs: `lengths_are` of their sizes and last checkpoints."""
    return lengths_are([math.log(run.n) for run in runs], [math.log(run.final_tokens) for run in runs])


def length_of(run: Run, by: LengthsAre) -> float:
    """A run's length, rounded to two digits: tokens where all sizes were planned by these, else multiples of 20 N."""
    return float(f"{run.final_tokens:.2g}") if by == "tokens" else run.multiple


def length_name(length: float, by: LengthsAre) -> str:
    """A length as splits and parts of a ladder are named by it."""
    return f"{short(length)} tokens" if by == "tokens" else f"{length:g}xC"


def logs(n: float, d: float, flops_per_token: float | None) -> Floats:
    """ln N, ln D, ln C; [3]."""
    return np.log(np.array([n, d, (flops_per_token or 6.0 * n) * d], dtype=float))


def place_of(run: Run) -> Floats:
    """ln N, ln D and ln C of a run at its end, [3]; D counts repeated data as what they are worth, C all of them."""
    return np.log(np.array([run.n, run.worth_tokens, run.flops], dtype=float))


def moving_average(values: Floats, width: int) -> Floats:
    """Trailing means over `width` values; the first ones are means of what is there. Over the last axis."""
    total = np.cumsum(np.concatenate([np.zeros((*values.shape[:-1], 1)), values], axis=-1), axis=-1)
    end = np.arange(1, values.shape[-1] + 1)
    begin = np.maximum(0, end - width)
    return np.asarray((total[..., end] - total[..., begin]) / (end - begin))


def collect_points(table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings) -> Points:
    """The points of a ladder.

    Raises:
        UserError: no run is left, or a column is missing.
    """
    runs = table.ladder.runs
    if not runs:
        raise UserError("There is no run to fit.", "A table needs runs of the mode 'train'.")
    short = {run.name for run in table.short_runs} if settings.runs == "all" else set()
    if settings.short_weight == 0:
        runs = tuple(run for run in runs if run.name not in short)
    groups = _repeats(runs) if settings.runs == "all" else [[run] for run in runs]
    curve_groups = groups if table.second is None else [[run] for run in table.second.ladder.runs]
    variant, external = settings.variant, _external(table, tasks, settings)
    first_variant: Variant = variant if table.second is None else "rc"

    def finals(task: Task, read: Callable[[Run, Task], Floats]) -> list[float]:
        return [float(np.mean([run.final_value(read(run, task), settings.last) for run in group])) for group in groups]

    # Of the runs that are fitted alone: what a target was measured on must not change its forecast.
    fitted = [*runs, *(() if table.second is None else table.second.ladder)]
    columns = set.intersection(*(set(run.metrics) for run in fitted))
    y, own_y, accuracy, pooled_accuracy, curves = [], [], [], [], []
    for task in tasks:
        whole = task.pooled(columns) if settings.pool else task
        y.append(finals(whole, lambda run, task: run.intermediate(task, settings.x)))
        own_y.append(finals(task, lambda run, task: run.intermediate(task, settings.x)) if whole is not task else y[-1])
        accuracy.append(finals(task, lambda run, task: run.accuracy(task, first_variant)))
        pooled_accuracy.append(finals(whole, lambda run, task: run.accuracy(task, first_variant)))
        curves.append(_checkpoints([run for group in curve_groups for run in group], external, whole, settings))
    begin = 0 if table.second is None else len(groups)
    owners = [
        begin + place
        for place, group in enumerate(curve_groups)
        for run in group
        for _ in range(len(run) - _skipped(run, settings))
    ]
    owners += range(begin + len(curve_groups), begin + len(curve_groups) + len(external))
    x_3R = np.stack(
        [np.mean([place_of(run) for run in group], axis=0) for group in groups],
        axis=1,
    )
    separate = table.second is not None
    own, whole_TR = np.array(accuracy), np.array(pooled_accuracy)
    return Points(
        x_3R,
        np.array(y),
        own,
        whole_TR,
        (logit(own) - logit(whole_TR)).mean(1),
        (np.log(np.array(own_y)) - np.log(np.array(y))).mean(1),
        np.stack([loss for loss, _ in curves]),
        np.stack([value for _, value in curves]),
        np.array(owners, dtype=np.int64),
        tuple(tuple(run.name for run in group) for group in groups),
        separate,
        np.array([settings.short_weight if group[0].name in short else 1.0 for group in groups]),
    )


def _repeats(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of the same configuration together."""
    groups: dict[tuple[float, float, float], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.configuration, []).append(run)
    return list(groups.values())


def _skipped(run: Run, settings: TwoStepSettings) -> int:
    """Checkpoints at a run's beginning that are left out; its last one stays, also where it is the only one."""
    return min(math.ceil(settings.skip * len(run)), len(run) - 1)


def _checkpoints(
    runs: Sequence[Run], external: Sequence[Run], task: Task, settings: TwoStepSettings
) -> tuple[Floats, Floats]:
    """Losses and accuracies of the second step, [K] both: smoothed checkpoints of the runs, then the other models."""
    losses, accuracies = [], []
    for run in runs:
        first, width = _skipped(run, settings), min(settings.moving_average, max(1, len(run) // _PARTS))
        losses.append(moving_average(run.intermediate(task, settings.x)[first:], width))
        accuracies.append(moving_average(run.accuracy(task, settings.variant)[first:], width))
    for run in external:
        losses.append(run.intermediate(task, settings.x)[:1])
        accuracies.append(run.accuracy(task)[:1])
    return np.concatenate(losses), np.concatenate(accuracies)


def _external(table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings) -> list[Run]:
    """Other models as runs of one checkpoint; those without the columns of another quantity than the task loss are left
    out.
    """
    found = []
    for name, metrics in table.external.items():
        run = model_as_run(name, metrics)
        try:
            for task in tasks:
                run.intermediate(task, settings.x)
        except UserError:
            if settings.x == "bpb":
                raise
            continue
        found.append(run)
    return found


def target_values(run: Run, task: Task, settings: TwoStepSettings) -> tuple[float, float]:
    """What was measured on a target: the last of its averaged values."""
    return run.final_value(run.intermediate(task, settings.x), settings.last), run.final_value(
        run.accuracy(task, settings.variant), settings.last
    )
