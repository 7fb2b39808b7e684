"""From runs to the points that the laws are fitted to (Bhagia et al. 2024, section 3).

Legend: T tasks, R runs, K checkpoints of all runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.fitting.settings import TwoStepSettings
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import console

_PARTS = (
    7  # a mean over checkpoints spans at most this part of a run: over more it would mix what is far apart on the curve
)


@dataclass(frozen=True)
class Points:
    """What both steps are fitted to.

    Attributes:
        x_3R: ln N, ln D and ln C of each run at its end.
        y_TR: the quantity between the steps, mean over the last checkpoints of each run.
        accuracy_TR: accuracy in the same way.
        loss_TK, accuracy_TK: smoothed checkpoints for the second step, of all runs one after the other.
        run_K: to which run each belongs; external models have numbers of their own from R on.
        names: of the runs.
    """

    x_3R: Floats
    y_TR: Floats
    accuracy_TR: Floats
    loss_TK: Floats
    accuracy_TK: Floats
    run_K: NDArray[np.int64]
    names: tuple[str, ...]

    @property
    def num_groups(self) -> int:
        """Runs and external models."""
        return max(int(self.run_K.max()) + 1, len(self.names))


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


def logs(n: float, d: float, flops_per_token: float | None) -> Floats:
    """ln N, ln D, ln C; [3]."""
    return np.log(np.array([n, d, (flops_per_token or 6.0 * n) * d], dtype=float))


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
    variant = _variant(settings)
    curve_runs = runs if table.second is None else table.second.ladder.runs
    others = _external(table, tasks, settings)
    kept = [math.ceil(settings.skip * len(run)) for run in curve_runs]
    widths = [min(settings.moving_average, max(1, len(run) // _PARTS)) for run in curve_runs]
    y, accuracy, losses, accuracies = [], [], [], []
    for task in tasks:
        y.append([run.final_value(run.intermediate(task, settings.x), settings.last) for run in runs])
        accuracy.append(
            [
                run.final_value(run.accuracy(task, variant if table.second is None else "rc"), settings.last)
                for run in runs
            ]
        )
        pairs = [
            (run.intermediate(task, settings.x)[k:], run.accuracy(task, variant)[k:])
            for run, k in zip(curve_runs, kept, strict=True)
        ]
        extra = np.array(
            [(float(run.intermediate(task, settings.x)[0]), float(run.accuracy(task)[0])) for run in others]
        ).reshape(-1, 2)
        losses.append(
            np.concatenate(
                [*(moving_average(loss, width) for (loss, _), width in zip(pairs, widths, strict=True)), extra[:, 0]]
            )
        )
        accuracies.append(
            np.concatenate(
                [*(moving_average(value, width) for (_, value), width in zip(pairs, widths, strict=True)), extra[:, 1]]
            )
        )
    first = 0 if table.second is None else len(runs)
    owners = [
        first + place for place, (run, k) in enumerate(zip(curve_runs, kept, strict=True)) for _ in range(len(run) - k)
    ]
    owners += range(first + len(curve_runs), first + len(curve_runs) + len(others))
    x_3R = np.stack([logs(run.n, run.final_tokens, run.flops_per_token) for run in runs], axis=1)
    names = tuple(run.name for run in runs)
    return Points(
        x_3R,
        np.array(y),
        np.array(accuracy),
        np.stack(losses),
        np.stack(accuracies),
        np.array(owners, dtype=np.int64),
        names,
    )


def _variant(settings: TwoStepSettings) -> Literal["rc", "mc"]:
    return "mc" if settings.accuracy_law == "mc" else "rc"


def _external(table: RunTable, tasks: Sequence[Task], settings: TwoStepSettings) -> list[Run]:
    """Other models as runs of one checkpoint; those without the columns of another quantity than the task loss are left
    out.
    """
    found = []
    for name, metrics in table.external.items():
        run = Run(name, 1, None, np.ones(1), {key: np.array([value]) for key, value in metrics.items()}, source=name)
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
        run.accuracy(task, _variant(settings)), settings.last
    )


def check(
    table: RunTable,
    tasks: Sequence[Task],
    x: Sequence[str] = ("bpb",),
    drop_bad_rows: bool = False,
    allow_unfinished: bool = False,
) -> RunTable:
    """The table without rows and runs that must not be fitted.

    Arguments:
        x: quantities that will be read.
        drop_bad_rows: drop rows with a value that is no number or out of its range, and say how many; otherwise they
            are an error.
        allow_unfinished: keep runs that have not come to their end.

    Raises:
        UserError: a bad value, with file and row; a run that is both fitted and a target.
    """
    targets = {(run.n, run.final_tokens) for run in table.targets}
    for run in table.ladder:
        if (run.n, run.final_tokens) in targets:
            raise UserError(f"The run '{run.name}' is fitted, and is a target too.", "Leave it out of one of them.")
    runs = []
    for run in table:
        kept = _without_bad_rows(run, tasks, x, drop_bad_rows)
        reason = kept.unfinished
        if run.mode == "train" and reason and not allow_unfinished:
            console.print(f"'{run.name}' is left out: {reason}. --allow-unfinished keeps it.", style="yellow")
            continue
        runs.append(kept)
    checked = replace(table, runs=tuple(runs))
    for warning in mismatches(checked):
        console.print(f"Warning: {warning}", style="yellow")
    return checked


def _without_bad_rows(run: Run, tasks: Sequence[Task], x: Sequence[str], drop: bool) -> Run:
    bad = np.zeros(len(run), dtype=bool)
    for task in tasks:
        columns = [(key, run.column(key, task), False) for key in task.accuracy_keys]
        if "bpb" in x:
            columns += [(key, run.column(key, task), True) for key in task.loss_keys]
        columns += [(each, run.intermediate(task, each), True) for each in x if each != "bpb"]
        for name, values, is_loss in columns:
            wrong = ~np.isfinite(values) | ((values <= 0) if is_loss else (values < 0) | (values > 1))
            if wrong.any() and not drop:
                place = int(np.flatnonzero(wrong)[0])
                rule = "a loss must be above 0" if is_loss else "an accuracy lies between 0 and 1"
                value = "empty or not a number" if not np.isfinite(values[place]) else f"{values[place]:g}, but {rule}"
                row = f", row {run.rows[place]}" if run.rows else f", checkpoint {place + 1}"
                raise UserError(
                    f"'{run.source or run.name}'{row}: '{name}' is {value}.", "Mend the file, or add --drop-bad-rows."
                )
            bad |= wrong
    if not bad.any():
        return run
    if bad.all():
        raise UserError(f"'{run.source or run.name}': no usable row is left.")
    console.print(f"'{run.source or run.name}': {bad.sum()} of {len(run)} rows were dropped.", style="yellow")
    return run.keep(~bad)


def mismatches(table: RunTable) -> list[str]:
    """What makes runs of a ladder hard to compare: several tokenizers, contexts, corpora or counts of N, and repeated
    data.
    """
    found = []
    meaning = {
        "tokenizer": "bits per byte can be compared, nats a token cannot",
        "context": "losses depend on the context",
        "n_definition": "N must be counted in one way",
        "corpus": "the law assumes one mix of data",
    }
    for key, why in meaning.items():
        values = {str(run.metadata[key]) for run in table if run.metadata.get(key) not in (None, "")}
        if len(values) > 1:
            found.append(f"the runs differ in {key.replace('_', ' ')} ({', '.join(sorted(values))}): {why}.")
    repeated = [run.name for run in table if float(run.metadata.get("epochs") or 0) > 1]
    if repeated:
        found.append(
            f"data are repeated in {', '.join(repeated)}: repeats are worth less than new text, and bend the law."
        )
    return found
