"""What must not be fitted: values that cannot be right, unfinished runs, runs that do not belong together."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.tables.table import (
    C4,
    DECAYED,
    FINISHED,
    TOKENS_PER_PARAMETER,
    Floats,
    Run,
    RunTable,
    is_validation,
    model_as_run,
    validation_columns,
)
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.progress import console

_LEAST_RATIO, _MOST_RATIO = 0.1, 1e5  # tokens a parameter: 20 is usual, 573 is much, and beyond these is another unit
_OFF = 1e5  # times the runs' median: no ladder spans that, a slip of units does
_UNLIKE = 300.0  # times the runs' median of tokens a parameter: no plan of a ladder spans that
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
_HIGHEST_LOSS = 1e3  # nats a token, bits per byte: an untrained model has about ten
_NEIGHBORS = 7  # checkpoints, the median of which tells what is usual there
_BEGINNING = 0.1  # of a run
_TINY = 1e-6
_JUMP, _STRAY = 0.25, 10.0  # as a logarithm, and times the usual distance from the neighbors' median
_MOST_TOLD = 3  # columns of a run
_PLAIN = 10.0  # ratios up to this are told in percent


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


_LEAST = math.ulp(0.0)  # a loss of 0 has no logarithm; an accuracy of 0 is a bad model
_LOSS = (_LEAST, _HIGHEST_LOSS, f"a loss must be above 0, and no more than {_HIGHEST_LOSS:g}")
_SHARE = (0.0, 1.0, "an accuracy lies between 0 and 1")
_LOG_SHARE = (-_HIGHEST_LOSS, 0.0, "the logarithm of a probability is at most 0, and not that low")
_POSITIVE = (_LEAST, math.inf, "it must be above 0")


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
    require_possible(table)
    chains = settings or (TwoStepSettings(),)
    table = consistent(finished(table, allow_unfinished), chains)
    # Again, since a run whose last rows were dropped has not come to its end either.
    checked = finished(_usable(table, tasks, chains, drop_bad_rows), allow_unfinished)
    for warning in [*unmeasured(checked, tasks, chains[:1]), *warnings(checked, tasks)]:
        console.print(f"Warning: {warning}", style="yellow")
    return checked


def warnings(table: RunTable, tasks: Sequence[Task] = ()) -> list[str]:
    """What looks wrong about the runs that are left: what was dropped, slips of units, ends that rise, runs that do not
    belong together.
    """
    return [*table.notes, *mismatches(table), *oddities(table, tasks), *_unpooled(table, tasks)]


def _unpooled(table: RunTable, tasks: Sequence[Task]) -> list[str]:
    """Splits of a benchmark that some runs of the ladder lack, so that no law is fitted to them."""
    found = []
    for task in tasks:
        for part in task.pool:
            columns = {*part.loss_keys, *part.accuracy_keys}
            lacking = [run.name for run in table.ladder if not columns <= {*run.metrics}]
            if 0 < len(lacking) < len(table.ladder):
                found.append(
                    f"'{part.name}' was not measured in {', '.join(lacking)}: the law of '{task.name}' is fitted"
                    " without its questions."
                )
    return found


def _usable(table: RunTable, tasks: Sequence[Task], settings: Sequence[TwoStepSettings], drop: bool) -> RunTable:
    """The table, the runs of its second step, and those of other families, without rows that cannot be."""
    notes = list(table.notes)

    def kept(runs: Iterable[Run], separate: bool = False) -> tuple[Run, ...]:
        found = []
        for run in runs:
            usable, count = usable_rows(run, tasks, settings, drop, separate and run.mode == "train")
            if count:
                notes.append(f"{count} rows of '{run.name}' were dropped, as they hold values that cannot be.")
            found.append(usable)
        return tuple(found)

    return replace(
        table,
        runs=kept(table, table.second is not None),
        second=None if table.second is None else replace(table.second, runs=kept(table.second)),
        lenders=tuple(replace(each, runs=kept(each)) for each in table.lenders),
        notes=tuple(notes),
    )


def check_values(table: RunTable, tasks: Sequence[Task], settings: Sequence[TwoStepSettings]) -> None:
    """Refuse values that a fit of these chains would read and that cannot be right.

    Raises:
        UserError: a value that is no number or out of its range, with file, row and column.
    """
    _usable(table, tasks, settings, drop=False)
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
                    found[column] = loss if column.endswith(_LOSSES) else Limits(*_POSITIVE, task)
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
    if allow_unfinished:
        return table
    shortened, kept, left = cut_short(table), [], dict(table.left_out)
    for run in table:
        reason = (run.unfinished or shortened.get(run.name)) if run.mode == "train" else None
        if reason:
            console.print(f"'{run.name}' is left out: {reason}. --allow-unfinished keeps it.", style="yellow")
            left[run.name] = reason
        else:
            kept.append(run)
    lenders = tuple(finished(each) for each in table.lenders)
    return replace(table, runs=tuple(kept), left_out=left, lenders=tuple(each for each in lenders if len(each)))


def require_possible(table: RunTable) -> None:
    """Refuse a ladder with an N, D or number of FLOPs that no run has, or of which single runs count them in another
    unit than the others.

    Raises:
        UserError: one of them is not positive and finite, or a run's N or D is a hundred thousand times off those of
            most runs.
    """
    for run in (*table, *(table.second or ()), *(run for each in table.lenders for run in each)):
        target = run.mode == "eval"  # of which less need be known
        facts = {
            "n, the number of parameters,": None if target and math.isnan(run.n) else run.n,
            "the number of tokens at its end": run.final_tokens if len(run) else math.nan,
            "flops_per_token": run.flops_per_token,
            "planned_tokens": run.planned_tokens,
            "lr_peak": run.lr_peak,
            "meta/epochs": run.epochs,
        }
        for fact, value in facts.items():
            if value is not None and not 0 < value < math.inf:
                raise UserError(
                    f"'{run.source or run.name}': {fact} is {value:g}, but it is a positive number.", "Mend the file."
                )
    runs = table.ladder.runs
    if not runs:
        return
    for name, values in (("N", [run.n for run in runs]), ("D", [run.final_tokens for run in runs])):
        away = np.log(values) - np.median(np.log(values))
        worst = int(np.abs(away).argmax())
        if abs(away[worst]) > math.log(_OFF):
            raise UserError(
                f"'{runs[worst].name}' has {name} = {values[worst]:.3g}, 1e{round(away[worst] / math.log(10)):d} times"
                " those of the other runs.",
                "Count all in the same unit, in ones rather than in millions or billions.",
            )


def consistent(table: RunTable, settings: Sequence[TwoStepSettings] = ()) -> RunTable:
    """The table with figures that can be compared between its runs: the same validation sets, whose mean is one
    quantity, and the FLOPs of a token of every run, where some tell theirs and others do not.

    Arguments:
        settings: the chains that will be fitted; what one of them reads by its name stays.
    """
    return _with_flops(_with_same_sets(table, {C4 if each.x == "c4" else each.x for each in settings}))


def _with_same_sets(table: RunTable, named: Collection[str]) -> RunTable:
    """The table without the losses of validation sets on which some runs of the ladder were not measured: a mean over
    other sets is another quantity. A target that lacks one of the others has no such mean.
    """
    ladders = [table.ladder, *table.lenders]
    sets = [{name for name in run.metrics if is_validation(name)} for each in ladders for run in each.ladder]
    if not sets:
        return table
    common, every = set.intersection(*sets), set.union(*sets)
    lost = sorted(every - common - {*named})

    def kept(run: Run) -> Run:
        compared = {*common, *named} if run.mode == "train" or common <= {*run.metrics} else {C4, *named}
        metrics = {name: values for name, values in run.metrics.items() if not is_validation(name) or name in compared}
        return replace(run, metrics=metrics)

    def matched(each: RunTable) -> RunTable:
        return replace(each, runs=tuple(kept(run) for run in each))

    notes = table.notes
    if lost:
        lacking = [run.name for each in ladders for run in each.ladder if not {*lost} <= {*run.metrics}]
        notes += (f"not all runs were measured on {', '.join(lost)} (not {', '.join(lacking)}): no chain goes by it.",)
    return replace(matched(table), lenders=tuple(matched(each) for each in table.lenders), notes=notes)


def _with_flops(table: RunTable) -> RunTable:
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


def oddities(table: RunTable, tasks: Sequence[Task] = ()) -> list[str]:
    """What looks like a slip: units of N or D, lengths that are not those of the label, ends that rise.

    Arguments:
        tasks: whose losses are looked at too, whatever their columns are called.
    """
    found = []
    ratios = [run.final_tokens / run.n for run in table.ladder if run.n > 0]
    usual = float(np.median(ratios)) if ratios else float(TOKENS_PER_PARAMETER)
    for run in table:
        ratio = run.final_tokens / run.n if math.isfinite(run.n) and run.n > 0 else usual
        if run.n < _LEAST_N:
            found.append(f"'{run.name}' has N = {run.n:.3g} parameters: is it in millions or billions?")
        far = run.mode == "train" and not 1 / _UNLIKE < ratio / usual < _UNLIKE
        if far or not _LEAST_RATIO <= ratio <= _MOST_RATIO:
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
        found += [f"'{run.name}' ends badly: {each}." for each in _rising(run, tasks)]
        found += [f"'{run.name}' {each}" for each in _outliers(run, tasks)]
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


def _rising(run: Run, tasks: Sequence[Task]) -> list[str]:
    """Losses that end far above the lowest that they had: one over a validation set, or most of the tasks', of which
    single ones are noisy.
    """
    of_tasks = {key for task in tasks for key in task.loss_keys}
    rises: dict[str, float] = {}
    for name, values in run.metrics.items():
        finite = values[np.isfinite(values) & (values > 0)]
        if (name.endswith(_LOSSES) or name in of_tasks) and len(finite) >= _FEW:
            rises[name] = float(finite[-1] / finite.min())
    single = {name: rise for name, rise in rises.items() if name.endswith(_TASK_LOSSES) or name in of_tasks}
    median = float(np.median(list(single.values()) or [1.0]))
    if median > 1 + _RISE:
        return [f"task losses are {above(median)} their lowest (median)"]
    worst = max((name for name in rises if name not in single), key=lambda name: rises[name], default=None)
    return [f"'{worst}' is {above(rises[worst])} its lowest"] if worst and rises[worst] > 1 + _RISE else []


def _outliers(run: Run, tasks: Sequence[Task]) -> list[str]:
    """Single values that lie far off those of the neighboring checkpoints, which no training does: the worst of each
    column.
    """
    count = len(run)
    if count < _NEIGHBORS:
        return []
    splits = [part for task in tasks for part in (task, *task.pool)]
    names = {key for part in splits for key in (*part.loss_keys, *part.accuracy_keys, *part.soft_log_keys)}
    first = np.clip(np.arange(count) - _NEIGHBORS // 2, 0, count - _NEIGHBORS)
    near = first[:, None] + np.arange(_NEIGHBORS)[None]
    found = []
    for name in sorted(key for key in run.metrics if key in names or is_validation(key)):
        size = np.abs(run.metrics[name])
        if not np.isfinite(size).all():
            continue
        middle = np.median(size[near], axis=1)
        away = np.abs(np.log(np.maximum(size, _TINY) / np.maximum(middle, _TINY)))
        away[: math.ceil(_BEGINNING * count)] = 0.0  # there a run falls fast
        usual = 1.4826 * float(np.median(away[away > 0])) if (away > 0).any() else 0.0
        worst = int(away.argmax())
        if away[worst] > max(_JUMP, _STRAY * usual):
            row = f"row {run.rows[worst]}" if run.rows else f"checkpoint {worst + 1}"
            found.append(
                f"has {run.metrics[name][worst]:.4g} in '{name}', {row}, where its neighbors have about"
                f" {np.sign(run.metrics[name][near[worst, 0]]) * middle[worst]:.4g}: is it a slip"
            )
    return [f"{each}?" for each in found[:_MOST_TOLD]]


def above(ratio: float) -> str:
    """How far one figure is above another, by their ratio, in few digits whatever it is: `35% above`, `2e+30 times`."""
    return f"{ratio - 1:.0%} above" if ratio < _PLAIN else f"{ratio:.3g} times"


_MUST_AGREE = ("tokenizer", "context", "n_definition")  # also of recipes that are compared


def between(tables: Mapping[str, RunTable]) -> list[str]:
    """What makes the ladders of several recipes hard to compare, beyond what each one's own runs do."""
    found = []
    for key in _MUST_AGREE:
        told = {name: {str(r.metadata[key]) for r in each if r.metadata.get(key)} for name, each in tables.items()}
        values = set().union(*told.values())
        if len(values) > 1 and any(len(of_one) < 2 for of_one in told.values()):
            found.append(f"the recipes differ in {key.replace('_', ' ')} ({', '.join(sorted(values))}).")
    return found


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
