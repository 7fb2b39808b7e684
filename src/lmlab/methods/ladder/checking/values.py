"""Values that cannot be: a loss of nothing, an accuracy above one, a measure that is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.tables.table import C4, Floats, Run, RunTable, is_validation, model_as_run, validation_columns
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import console
from lmlab.words import counted

TASK_LOSSES = ("bpb", "bits_per_byte")
LOSSES = ("/CrossEntropyLoss", "heldout_loss", *TASK_LOSSES)
_FEW_COLUMNS = 2  # where one alone is read, rows without it cannot be told from a fault
_HIGHEST_LOSS = 1e3  # nats a token, bits per byte: an untrained model has about ten


@dataclass(frozen=True)
class Limits:
    """What values of a column can be: from `low` to `high`, and how the rule is told; the task that it belongs to."""

    low: float
    high: float
    rule: str
    task: Task

    def wrong(self, values: Floats) -> NDArray[np.bool_]:
        """Which values cannot be."""
        return np.asarray(~np.isfinite(values) | (values < self.low) | (values > self.high))


_LEAST = math.ulp(0.0)  # a figure of 0 has no logarithm; an accuracy of 0 is a bad model
_LOWEST_LOSS = 1e-6  # a right answer of probability 0.999999: less is an empty figure, and its logarithm rules a fit
_LOSS = (_LOWEST_LOSS, _HIGHEST_LOSS, f"a loss lies between {_LOWEST_LOSS:g} and {_HIGHEST_LOSS:g}")
_SHARE = (0.0, 1.0, "an accuracy lies between 0 and 1")
_LOG_SHARE = (-_HIGHEST_LOSS, 0.0, "the logarithm of a probability is at most 0, and not that low")
_POSITIVE = (_LEAST, math.inf, "it must be above 0")


def check_values(table: RunTable, tasks: Sequence[Task], settings: Sequence[TwoStepSettings]) -> None:
    """Refuse values that a fit of these chains would read and that cannot be right.

    Raises:
        UserError: a value that is no number or out of its range, with file, row and column.
    """
    usable(table, tasks, settings, drop=False)
    for name, metrics in table.external.items():
        read = _columns_read(model_as_run(name, metrics), tasks, settings, False)
        for key in sorted(set(read) & {*metrics}):
            if read[key].wrong(np.array([metrics[key]]))[0]:
                raise UserError(
                    f"The external model '{name}': '{key}' is {metrics[key]:g}, but {read[key].rule}.", "Mend the file."
                )


def _columns_read(
    run: Run, tasks: Sequence[Task], settings: Sequence[TwoStepSettings], separate: bool
) -> dict[str, Limits]:
    """The columns that chains read of a run, with the limits of their values."""
    found: dict[str, Limits] = {}
    for task in tasks:
        loss = Limits(*_LOSS, task)
        for each in settings:
            whole = task.pooled(run.metrics) if each.pool else task
            keys = whole.accuracy_columns("rc" if separate else each.variant)
            found |= dict.fromkeys(keys, Limits(*_SHARE, task))
            match each.x if each.chained else "":
                case "":
                    pass
                case "bpb":
                    found |= dict.fromkeys(whole.loss_keys, loss)
                case "taskce":
                    found |= dict.fromkeys(whole.soft_log_keys, Limits(*_LOG_SHARE, task))
                case "c4":
                    found[C4] = loss
                case "validation":
                    found |= dict.fromkeys(validation_columns(run), loss)
                case column:
                    found[column] = loss if column.endswith(LOSSES) else Limits(*_POSITIVE, task)
    return found


def unmeasured(table: RunTable, tasks: Sequence[Task], settings: Sequence[TwoStepSettings] = ()) -> list[str]:
    """Targets of which some figures were measured and others hold no number, which may be a fault of the file: what is
    said of their errors leaves these out.

    Arguments:
        settings: the chains whose figures are set beside what was measured.
    """
    found = []
    chains = [each.model_copy(update={"pool": False}) for each in settings or (TwoStepSettings(),)]
    for run in table.targets:
        # Of a target without validation sets nothing is known that could be missing.
        known = [each for each in chains if each.x != "validation" or any(map(is_validation, run.metrics))]
        wanted = _columns_read(run, tasks, known, False)
        missing = [name for name in wanted if name not in run.metrics]
        if missing and len(missing) < len(wanted):
            found.append(
                f"the target '{run.name}' has no number in {', '.join(map(repr, missing))}: it is forecast there, and"
                " compared with nothing."
            )
    return found


def _measured(run: Run, columns: Sequence[Floats]) -> Run:
    """The run without the rows that hold none of the figures that are read: exports of a training's log have a row for
    every logged step, and only some of them were measured.
    """
    if len(columns) < _FEW_COLUMNS:
        return run  # of so few figures a gap may be a fault
    empty = np.all([np.isnan(values) for values in columns], axis=0)
    if not empty.any() or empty.all():
        return run
    console.print(f"'{run.source or run.name}': {empty.sum()} of {len(run)} rows hold no measurement.")
    return run.keep(~empty)


def usable_rows(
    run: Run,
    tasks: Sequence[Task],
    settings: Sequence[TwoStepSettings],
    drop: bool = False,
    separate: bool = False,
) -> tuple[Run, int]:
    """A run without the rows that hold no measurement, and without those with a value that cannot be in a column that
    these chains read; and how many of the latter there were.

    Arguments:
        drop: leave such rows out; otherwise they are an error.
        separate: whether the second step is fitted to other runs.

    Raises:
        UserError: a bad value, with file, row and column; or no row is left.
    """
    columns = _columns_read(run, tasks, settings, separate)
    run = _measured(run, [run.metrics[name] for name in columns if name in run.metrics])
    bad = np.zeros(len(run), dtype=bool)
    for name, limits in columns.items():
        if run.mode == "eval" and name not in run.metrics:
            continue  # of a target it is enough to know what was measured
        values = run.column(name, limits.task)
        wrong = limits.wrong(values)
        if wrong.any() and not drop:
            place = int(np.flatnonzero(wrong)[0])
            value = f"{values[place]:g}, but {limits.rule}" if np.isfinite(values[place]) else "empty or not a number"
            row = f", row {run.rows[place]}" if run.rows else f", checkpoint {place + 1}"
            raise UserError(
                f"'{run.source or run.name}'{row}: '{name}' is {value}.", "Mend the file, or add --drop-bad-rows."
            )
        bad |= wrong
    if not bad.any():
        return run, 0
    if bad.all():
        raise UserError(f"'{run.source or run.name}': no usable row is left.")
    count = int(bad.sum())
    console.print(f"'{run.source or run.name}': {count} of {len(run)} rows were dropped.", style="yellow")
    return run.keep(~bad), count


def usable(table: RunTable, tasks: Sequence[Task], settings: Sequence[TwoStepSettings], drop: bool) -> RunTable:
    """The table, the runs of its second step, and those of other families, without rows that cannot be."""
    notes = list(table.notes)

    def kept(runs: Iterable[Run], separate: bool = False) -> tuple[Run, ...]:
        found = []
        for run in runs:
            usable, count = usable_rows(run, tasks, settings, drop, separate and run.mode == "train")
            if count:
                notes.append(f"'{run.name}' is fitted without {counted(count, 'rows')} of values that cannot be.")
            found.append(usable)
        return tuple(found)

    return replace(
        table,
        runs=kept(table, table.second is not None),
        second=None if table.second is None else replace(table.second, runs=kept(table.second)),
        lenders=tuple(replace(each, runs=kept(each)) for each in table.lenders),
        notes=tuple(notes),
    )
