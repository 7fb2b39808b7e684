"""What looks like a slip: units of N and D, lengths that are not those of the label, losses that end higher."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.checking.lengths import label_of, progress_of
from lmlab.methods.ladder.checking.values import LOSSES, TASK_LOSSES
from lmlab.methods.ladder.tables.table import TOKENS_PER_PARAMETER, Run, RunTable, is_validation
from lmlab.methods.ladder.tables.tasks import Task
from lmlab.words import counted

# Tokens a parameter: 20 is usual, 573 is much, 0.1 that of a quick trial, and beyond these is another unit.
_LEAST_RATIO, _MOST_RATIO = 0.01, 1e5
_OFF = 1e5  # times the runs' median: no ladder spans that, a slip of units does
_UNLIKE = 300.0  # times the runs' median of tokens a parameter: no plan of a ladder spans that
_LEAST_N = 1000.0  # no language model has fewer; 1B written as 1 or 190M as 190 does
_LEAST_FLOPS, _MOST_FLOPS = 0.3, 100.0  # a token, over 6 N: embeddings and attention add to it, experts take from it
_OTHER_COUNT = 1.25  # times the label's length: beyond that N or D is counted in another way
_RISE = 0.10  # of its lowest value: a loss that ends higher than that has diverged
_FEW = 5  # checkpoints, of which nothing can be said
_NEIGHBORS = 7  # checkpoints, the median of which tells what is usual there
_BEGINNING = 0.1  # of a run
_TINY = 1e-6  # a logarithm of zero is avoided
_JUMP, _STRAY = 0.25, 10.0  # as a logarithm, and times the usual distance from the neighbors' median
_MOST_TOLD = 3  # columns of a run, and runs of a kind
_PLAIN = 10.0  # ratios up to this are told in percent


def require_possible(table: RunTable) -> None:
    """Refuse a ladder with an N, D or number of FLOPs that no run has, or of which single runs count them in another
    unit than the others.

    Raises:
        UserError: one of them is not positive and finite, or what a law reads of a run (N, D, the FLOPs of a token, D
            as what repeated data are worth) is a hundred thousand times off that of most runs.
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
    read = {
        "N": [run.n for run in runs],
        "D": [run.final_tokens for run in runs],
        "FLOPs a token over 6 N": [(run.flops_per_token or 6 * run.n) / (6 * run.n) for run in runs],
        "D, as its repeated data count,": [run.worth_tokens for run in runs],
    }
    for name, values in read.items():
        away = np.log(values) - np.median(np.log(values))
        worst = int(np.abs(away).argmax())
        if abs(away[worst]) > math.log(_OFF):
            raise UserError(
                f"'{runs[worst].name}' has {name} = {values[worst]:.3g}, 1e{round(away[worst] / math.log(10)):d} times"
                " those of the other runs.",
                "Count all in the same unit, in ones rather than in millions or billions.",
            )
    for run in runs:
        if not math.isfinite(run.flops):
            raise UserError(f"'{run.name}' has {run.flops_per_token:g} FLOPs a token, more in all than numbers reach.")


def oddities(table: RunTable, tasks: Sequence[Task] = ()) -> list[str]:
    """What looks like a slip: units of N or D, lengths that are not those of the label, ends that rise.

    Arguments:
        tasks: whose losses are looked at too, whatever their columns are called.
    """
    ratios = [run.final_tokens / run.n for run in table.ladder if run.n > 0]
    usual = float(np.median(ratios)) if ratios else float(TOKENS_PER_PARAMETER)
    told: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)  # kind -> runs, with what is said of each
    for run in table:
        ratio = run.final_tokens / run.n if math.isfinite(run.n) and run.n > 0 else usual
        if run.n < _LEAST_N:
            told["N"].append((run.name, f"has N = {run.n:.3g} parameters: is it in millions or billions?"))
        far = run.mode == "train" and not 1 / _UNLIKE < ratio / usual < _UNLIKE
        if far or not _LEAST_RATIO <= ratio <= _MOST_RATIO:
            text = f"has N = {run.n:.3g} and D = {run.final_tokens:.3g}, {ratio:.2g} tokens a parameter: is one of them"
            told["ratio"].append((run.name, f"{text} in millions or billions?"))
        per_token = run.flops_per_token / (6 * run.n) if run.flops_per_token and run.n > 0 else 1.0
        if not _LEAST_FLOPS <= per_token <= _MOST_FLOPS:
            text = f"has N = {run.n:.3g} and {run.flops_per_token:.3g} FLOPs a token, {per_token:.2g} times 6 N: is one"
            told["FLOPs"].append((run.name, f"{text} of them in another unit?"))
        labeled = label_of(run)
        if run.mode == "train" and labeled and not 1 / _OTHER_COUNT <= progress_of(run, labeled) <= _OTHER_COUNT:
            text = f"ends at {run.multiple:g}xC: is it unfinished, or are N or D counted in another way?"
            told["length"].append((run.name, text))
    found = [sentence for each in told.values() for sentence in _of_kind(each)]
    for run in table:
        found += [f"'{run.name}' ends badly: {each}." for each in _rising(run, tasks)]
        found += [f"'{run.name}' {each}" for each in _outliers(run, tasks)]
    return [*found, *_copies(table)]


def _of_kind(told: Sequence[tuple[str, str]]) -> list[str]:
    """Sentences about runs; of many runs with the same fault the first, and how many others there are: in a whole table
    that counts in another unit the rest would not be read.
    """
    if len(told) <= _MOST_TOLD:
        return [f"'{name}' {text}" for name, text in told]
    name, text = told[0]
    return [f"'{name}' {text} {counted(len(told) - 1, 'other runs look')} like it."]


def _copies(table: RunTable) -> list[str]:
    """Runs that hold the figures of another one: as repeats they would speak of noise that is not there."""
    alike: defaultdict[tuple[float, bytes, tuple[tuple[str, bytes], ...]], list[str]] = defaultdict(list)
    for run in table.ladder:
        figures = tuple(sorted((key, values.tobytes()) for key, values in run.metrics.items()))
        alike[run.n, run.tokens.tobytes(), figures].append(f"'{run.name}'")
    found = []
    for first, *others in alike.values():
        if len(others) == 1:
            found.append(f"{others[0]} holds the figures of {first}: is it a copy, which is no repeat of a run?")
        elif others:
            listed = f"{', '.join(others[:-1])} and {others[-1]}"
            found.append(f"{listed} hold the figures of {first}: are they copies, which are no repeats of a run?")
    return found


def _rising(run: Run, tasks: Sequence[Task]) -> list[str]:
    """Losses that end far above the lowest that they had: one over a validation set, or most of the tasks', of which
    single ones are noisy.
    """
    of_tasks = {key for task in tasks for key in task.loss_keys}
    rises: dict[str, float] = {}
    for name, values in run.metrics.items():
        finite = values[np.isfinite(values) & (values > 0)]
        if (name.endswith(LOSSES) or name in of_tasks) and len(finite) >= _FEW:
            rises[name] = float(finite[-1] / finite.min())
    single = {name: rise for name, rise in rises.items() if name.endswith(TASK_LOSSES) or name in of_tasks}
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
        # the standard deviation, were they normal
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
