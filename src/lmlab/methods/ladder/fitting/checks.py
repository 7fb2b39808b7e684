"""What must not be fitted: values that cannot be right, unfinished runs, runs that do not belong together."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.tables.table import (
    C4,
    DECAYED,
    FINISHED,
    TOKENS_PER_PARAMETER,
    Run,
    RunTable,
    model_as_run,
    validation_columns,
)
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import console

_LEAST_RATIO, _MOST_RATIO = 0.1, 1e5  # tokens a parameter: 20 is usual, 573 is much, and beyond these is another unit
_OFF = 1e5  # times the runs' median: no ladder spans that, a slip of units does
_LEAST_N = 1000.0
_LEAST_FLOPS, _MOST_FLOPS = 0.3, 100.0  # a token, over 6 N: embeddings and attention add to it, experts take from it
_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_OTHER_COUNT = 1.25  # times the label's length: beyond that N or D is counted in another way
_FEW_LABELS = 3
_MOST_AGREE = 0.5  # more than this share of the labels must be right, or they are no lengths
_RISE = 0.10  # of its lowest value: a loss that ends higher than that has diverged
_TASK_LOSSES = ("bpb", "bits_per_byte")
_LOSSES = ("/CrossEntropyLoss", "heldout_loss", *_TASK_LOSSES)
_FEW_COLUMNS = 2
_FEW = 5  # checkpoints, of which nothing can be said


def check(
    table: RunTable,
    tasks: Sequence[Task],
    settings: Sequence[TwoStepSettings] = (),
    drop_bad_rows: bool = False,
    allow_unfinished: bool = False,
) -> RunTable:
    """The table without rows and runs that must not be fitted.

    Arguments:
        settings: the chains that will be fitted: every column that one of them reads is checked. Without any, the task
            losses and accuracies are.
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
    require_one_unit(table)
    table = consistent(table)
    runs = []
    for run in table:
        separate = table.second is not None and run.mode == "train"
        kept = _without_bad_rows(run, tasks, settings or (TwoStepSettings(),), drop_bad_rows, separate)
        runs.append(kept)
    checked = finished(replace(table, runs=tuple(runs)), allow_unfinished)
    for warning in [*unmeasured(checked, tasks), *mismatches(checked), *oddities(checked)]:
        console.print(f"Warning: {warning}", style="yellow")
    return checked


def check_values(table: RunTable, tasks: Sequence[Task], settings: Sequence[TwoStepSettings]) -> None:
    """Refuse values that a fit of these chains would read and that cannot be right.

    Raises:
        UserError: a value that is no number or out of its range, with file, row and column.
    """
    for run in table:
        _without_bad_rows(run, tasks, settings, drop=False, separate=table.second is not None)
    if table.second is not None:
        for run in table.second:
            _without_bad_rows(run, tasks, settings, drop=False)
    for name, metrics in table.external.items():
        read = _columns_read(model_as_run(name, metrics), tasks, settings, False)
        for key in sorted(set(read) & {*metrics}):
            low, high, _ = read[key]
            if not (math.isfinite(metrics[key]) and low <= metrics[key] <= high):
                raise UserError(
                    f"The external model '{name}': '{key}' is {metrics[key]:g}, which cannot be.", "Mend the file."
                )


def _columns_read(
    run: Run, tasks: Sequence[Task], settings: Sequence[TwoStepSettings], separate: bool
) -> dict[str, tuple[float, float, Task]]:
    """The columns that chains read of a run, with the limits of their values."""
    found: dict[str, tuple[float, float, Task]] = {}
    for task in tasks:
        above_zero, share, below_zero = (0.0, math.inf, task), (0.0, 1.0, task), (-math.inf, 0.0, task)
        for each in settings:
            whole = task.pooled(run.metrics) if each.pool else task
            keys = whole.accuracy_columns("rc" if separate else each.variant)
            found |= dict.fromkeys(keys, share)
            match each.x if each.chained else "":
                case "":
                    pass
                case "bpb":
                    found |= dict.fromkeys(whole.loss_keys, above_zero)
                case "taskce":
                    found |= dict.fromkeys(whole.soft_log_keys, below_zero)
                case "c4":
                    found[C4] = above_zero
                case "validation":
                    found |= dict.fromkeys(validation_columns(run), above_zero)
                case column:
                    found[column] = above_zero
    return found


def unmeasured(table: RunTable, tasks: Sequence[Task]) -> list[str]:
    """Targets of which some tasks were measured and others hold no number, which may be a fault of the file: what is
    said of their errors leaves these out.
    """
    found = []
    for run in table.targets:
        lacking = {task.name: [key for key in task.accuracy_keys if key not in run.metrics] for task in tasks}
        missing = [key for keys in lacking.values() for key in keys]
        if missing and not all(lacking.values()):
            found.append(
                f"the target '{run.name}' has no number in {', '.join(map(repr, missing))}: it is forecast there, and"
                " compared with nothing."
            )
    return found


def _measured(run: Run, columns: Sequence[NDArray[np.float64]]) -> Run:
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


def _without_bad_rows(
    run: Run, tasks: Sequence[Task], settings: Sequence[TwoStepSettings], drop: bool, separate: bool = False
) -> Run:
    columns = _columns_read(run, tasks, settings, separate)
    run = _measured(run, [run.metrics[name] for name in columns if name in run.metrics])
    bad = np.zeros(len(run), dtype=bool)
    for name, (low, high, task) in columns.items():
        if run.mode == "eval" and name not in run.metrics:
            continue  # of a target it is enough to know what was measured
        values = run.column(name, task)
        # A loss of 0 has no logarithm; an accuracy of 0 is a bad model.
        wrong = ~np.isfinite(values) | (values < low) | (values > high) | ((values == low) & (high == math.inf))
        if wrong.any() and not drop:
            place = int(np.flatnonzero(wrong)[0])
            rule = {
                (0.0, math.inf): "a loss must be above 0",
                (0.0, 1.0): "an accuracy lies between 0 and 1",
            }.get((low, high), "the logarithm of a probability is at most 0")
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


def _label(run: Run) -> tuple[str, float] | None:
    """How long a run is to be by its name, `5xC` or `100B` at its end: the unit and the number; None where it does not
    tell.
    """
    multiple = re.search(r"(?:^|[-_/ ])(\d+(?:\.\d+)?)xC(?![a-z0-9])", run.name, re.IGNORECASE)
    if multiple:
        return ("xC", float(multiple[1])) if float(multiple[1]) > 0 else None
    tokens = re.search(r"[-_/ ](\d+(?:\.\d+)?)([KMBT])$", run.name, re.IGNORECASE)
    return ("tokens", float(tokens[1]) * _UNITS[tokens[2].upper()]) if tokens and float(tokens[1]) > 0 else None


def _progress(run: Run, label: tuple[str, float]) -> float:
    """A run's length over that of its label."""
    unit, wanted = label
    return run.final_tokens / (wanted * (TOKENS_PER_PARAMETER * run.n if unit == "xC" else 1.0))


def cut_short(table: RunTable) -> dict[str, str]:
    """Runs that end before the length in their name, or with a high learning rate, with what is said of each. If all
    runs of a ladder lie off their labels by one factor, N or D is counted in another way, and none is cut short.
    """
    found: dict[str, str] = {}
    for unit in ("xC", "tokens"):
        shares = {
            run.name: _progress(run, label)
            for run in table.ladder
            if (label := _label(run)) and label[0] == unit and run.n > 0 and not run.planned_tokens
        }
        usual = float(np.median(list(shares.values()))) if len(shares) >= _FEW_LABELS else 1.0
        agree = [FINISHED <= share / usual <= 1 / FINISHED for share in shares.values()]
        if np.mean(agree or [False]) <= _MOST_AGREE:
            continue  # names that mean something else
        for name, share in shares.items():
            if share < FINISHED * usual:
                found[name] = f"it ends at {share / usual:.0%} of the length in its name"
    # Without a known peak the highest rate that was logged stands for it; if most runs end above it, that is their way.
    rates = {
        run.name: rate / highest
        for run in table.ladder
        if run.lr is not None and not run.lr_peak
        if (rate := run.last_rate) is not None and (highest := float(np.nanmax(run.lr))) > 0
    }
    if rates and np.median(list(rates.values())) <= DECAYED:
        found |= {
            name: f"its learning rate has decayed to {rate:.0%} of its highest only"
            for name, rate in rates.items()
            if rate > DECAYED
        }
    return found


def finished(table: RunTable, allow_unfinished: bool = False) -> RunTable:
    """The table without the runs that have not come to their end, each of which is told."""
    shortened, kept = cut_short(table), []
    for run in table:
        reason = (run.unfinished or shortened.get(run.name)) if run.mode == "train" and not allow_unfinished else None
        if reason:
            console.print(f"'{run.name}' is left out: {reason}. --allow-unfinished keeps it.", style="yellow")
        else:
            kept.append(run)
    return replace(table, runs=tuple(kept))


def require_one_unit(table: RunTable) -> None:
    """Refuse a ladder of which single runs count N or D in another unit than the others.

    Raises:
        UserError: a run's N or D is a hundred thousand times off those of most runs.
    """
    runs = [run for run in table.ladder if run.n > 0 and run.final_tokens > 0]
    if not runs:
        return
    for name, values in (("N", [run.n for run in runs]), ("D", [run.final_tokens for run in runs])):
        away = np.log(values) - np.median(np.log(values))
        worst = int(np.abs(away).argmax())
        if abs(away[worst]) > math.log(_OFF):
            raise UserError(
                f"'{runs[worst].name}' has {name} = {values[worst]:.3g}, {np.exp(abs(away[worst])):.1g} times off those"
                " of the other runs.",
                "Count all in the same unit, in ones rather than in millions or billions.",
            )


def consistent(table: RunTable) -> RunTable:
    """The table with the FLOPs of a token of every run, where some tell theirs and others do not: a law of compute must
    count all runs in one way. Missing ones are those of the next size by the ratio to 6 N.
    """
    known = sorted((run.n, run.flops_per_token / (6 * run.n)) for run in table if run.flops_per_token and run.n > 0)
    missing = {run.name for run in table if not run.flops_per_token and run.n > 0}
    if not known or not missing:
        return table
    sizes, ratios = (np.array(each) for each in zip(*known, strict=True))

    def filled(run: Run) -> Run:
        ratio = float(np.interp(math.log(run.n), np.log(sizes), ratios))
        return replace(run, flops_per_token=ratio * 6 * run.n)

    return replace(table, runs=tuple(filled(run) if run.name in missing else run for run in table))


def oddities(table: RunTable) -> list[str]:
    """What looks like a slip: units of N or D, lengths that are not those of the label, ends that rise."""
    found = []
    for run in table:
        ratio = run.final_tokens / run.n if math.isfinite(run.n) and run.n > 0 else TOKENS_PER_PARAMETER
        if run.n < _LEAST_N:
            found.append(f"'{run.name}' has N = {run.n:.3g} parameters: is it in millions or billions?")
        if not _LEAST_RATIO <= ratio <= _MOST_RATIO:
            found.append(
                f"'{run.name}' has N = {run.n:.3g} and D = {run.final_tokens:.3g}, {ratio:.2g} tokens a parameter: is"
                " one of them in millions or billions?"
            )
        per_token = run.flops_per_token / (6 * run.n) if run.flops_per_token and run.n > 0 else 1.0
        if not _LEAST_FLOPS <= per_token <= _MOST_FLOPS:
            found.append(
                f"'{run.name}' has N = {run.n:.3g} and {run.flops_per_token:.3g} FLOPs a token, {per_token:.2g} times"
                " 6 N: is one of them in another unit?"
            )
        labelled = _label(run)
        if run.mode == "train" and labelled and not 1 / _OTHER_COUNT <= _progress(run, labelled) <= _OTHER_COUNT:
            found.append(
                f"'{run.name}' ends at {run.multiple:g}xC: is it unfinished, or are N or D counted in another way?"
            )
        found += [f"'{run.name}' ends badly: {each}." for each in _rising(run)]
    return [*found, *_copies(table)]


def _copies(table: RunTable) -> list[str]:
    """Runs that hold the figures of another one: as repeats they would speak of noise that is not there."""
    first: dict[tuple[float, bytes, tuple[tuple[str, bytes], ...]], str] = {}
    found = []
    for run in table.ladder:
        figures = tuple(sorted((key, values.tobytes()) for key, values in run.metrics.items()))
        other = first.setdefault((run.n, run.tokens.tobytes(), figures), run.name)
        if other != run.name:
            found.append(f"'{run.name}' holds the figures of '{other}': is it a copy, which is no repeat of a run?")
    return found


def _rising(run: Run) -> list[str]:
    """Losses that end far above the lowest that they had: one over a validation set, or most of the tasks', of which
    single ones are noisy.
    """
    rises: dict[str, float] = {}
    for name, values in run.metrics.items():
        finite = values[np.isfinite(values)]
        if name.endswith(_LOSSES) and len(finite) >= _FEW and finite.min() > 0:
            rises[name] = float(finite[-1] / finite.min())
    tasks = [rise for name, rise in rises.items() if name.endswith(_TASK_LOSSES)]
    if tasks and np.median(tasks) > 1 + _RISE:
        return [f"task losses are {np.median(tasks) - 1:.0%} above their lowest (median)"]
    worst = max((name for name in rises if not name.endswith(_TASK_LOSSES)), key=lambda name: rises[name], default=None)
    return [f"'{worst}' is {rises[worst] - 1:.0%} above its lowest"] if worst and rises[worst] > 1 + _RISE else []


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
        "family": "each has a law of its own, which --family NAME fits with exponents that the others lend",
    }
    for key, why in meaning.items():
        values = {str(run.metadata[key]) for run in table if run.metadata.get(key) not in (None, "")}
        if len(values) > 1:
            found.append(f"the runs differ in {key.replace('_', ' ')} ({', '.join(sorted(values))}): {why}.")
    repeated = [run.name for run in table if run.epochs > 1]
    if repeated:
        found.append(
            f"data are repeated in {', '.join(repeated)}: repeats are worth less than new text, and count so in the"
            " law (Muennighoff et al. 2023)."
        )
    return found
