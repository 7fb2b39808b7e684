"""The table of runs: for each run its size, its tokens, and what was measured at every checkpoint."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.ladder.config import Variant
from lmlab.methods.ladder.presenting.digits import share_text
from lmlab.methods.ladder.tables.tasks import Task

Floats = NDArray[np.float64]
Mode = Literal["train", "eval"]

C4 = "eval/c4_en-validation/CrossEntropyLoss"
TOKENS_PER_PARAMETER = 20  # of one Chinchilla multiple, 1xC
_REPEATS_WORTH = 15.387756  # fitted by Muennighoff et al. to 400 runs
_END = 0.1  # of a run: earlier checkpoints are not those of its end
_RERUN = "-rerun"  # how the published ladder names a repeat
_FEWEST_TO_LEND = 6  # runs of a family: fewer say little of its exponents
DECAYED = 0.15  # a last learning rate above this share of the peak is that of an unfinished run
FINISHED = 0.98  # of the planned tokens
_ONE_LENGTH = 1.2  # lengths whose ratio is smaller are one: they are known to two digits


@dataclass(frozen=True)
class Run:
    """One training run; K checkpoints in the order of their tokens.

    Attributes:
        name: its label.
        n: parameters without the input embedding, with the head.
        flops_per_token: training FLOPs of a token; None where unknown.
        tokens: [K] tokens seen.
        metrics: column -> [K] values.
        mode: `train` for runs that are fitted, `eval` for targets.
        planned_tokens: where the run was to end; None where unknown.
        lr, lr_peak: [K] the learning rate, and its highest value.
        source: the file, for messages; `rows` are the lines of its checkpoints.
        metadata: what else is known (tokenizer, context, corpus, epochs), to notice runs that do not belong together.
    """

    name: str
    n: float
    flops_per_token: float | None
    tokens: Floats
    metrics: Mapping[str, Floats]
    mode: Mode = "train"
    size: str = ""
    step: Floats | None = None
    planned_tokens: float | None = None
    lr: Floats | None = None
    lr_peak: float | None = None
    seed: int | None = None
    source: str = ""
    rows: tuple[int, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def final_tokens(self) -> float:
        """Tokens of the last checkpoint, D."""
        return float(self.tokens[-1])

    @property
    def multiple(self) -> float:
        """D over 20 N, rounded to two digits."""
        return float(f"{self.final_tokens / (TOKENS_PER_PARAMETER * self.n):.2g}")

    @property
    def configuration(self) -> tuple[float, float, float]:
        """What repeated runs have in common: size, length, and how often they go through their data."""
        return self.n, self.multiple, round(self.epochs, 1)

    @property
    def unique_tokens(self) -> float:
        """Tokens of its data, by the epochs at its last checkpoint; infinite where these are not known.

        Raises:
            UserError: the epochs are no positive number.
        """
        told = self.metadata.get("epochs")
        if told is None or told == "":
            return math.inf
        try:
            epochs = float(told)
        except (TypeError, ValueError):
            epochs = math.nan
        if not 0 < epochs < math.inf:
            raise UserError(f"'{self.source or self.name}': '{told}' is no number of epochs.")
        return self.final_tokens / epochs

    @property
    def epochs(self) -> float:
        """How often it went through its data; 1 where that is not known, or less."""
        return max(1.0, self.final_tokens / self.unique_tokens)

    @property
    def worth_tokens(self) -> float:
        """Its tokens, of repeated data as many as fresh ones are worth."""
        return self.worth_at(self.final_tokens)

    def worth_at(self, tokens: float) -> float:
        """So many of its tokens, of repeated data as many as fresh ones are worth."""
        return worth_of(tokens, tokens / self.unique_tokens)

    @property
    def flops(self) -> float:
        """Training FLOPs of the whole run, 6 N D where the FLOPs of a token are not known."""
        return (self.flops_per_token or 6 * self.n) * self.final_tokens

    @property
    def unfinished(self) -> str | None:
        """Why the run is not finished, or None."""
        if self.planned_tokens and self.final_tokens < FINISHED * self.planned_tokens:
            return f"it has seen {self.final_tokens:.4g} of {self.planned_tokens:.4g} planned tokens"
        rate = self.last_rate
        if rate is not None and self.lr_peak and not rate <= DECAYED * self.lr_peak:
            ratio = rate / self.lr_peak
            return (
                f"its learning rate has decayed to {ratio:.0%} of the peak only"
                if ratio <= 1
                else f"its learning rate ends above the peak, at {share_text(ratio)} of it"
            )
        return None

    @property
    def last_rate(self) -> float | None:
        """The learning rate at its end; None where none is known. Logs have rows without one, so the last that was
        written over the last fiftieth of the tokens stands for the end.
        """
        if self.lr is None:
            return None
        known = np.flatnonzero(np.isfinite(self.lr) & (self.tokens >= FINISHED * self.tokens[-1:]))
        return float(self.lr[known[-1]]) if len(known) else None

    def final_value(self, values: Floats, last: int) -> float:
        """The mean of the last values (`ends`).

        Arguments:
            values: [K], one for each checkpoint.
        """
        return float(self.ends(values, last).mean())

    def ends(self, values: Floats, last: int) -> Floats:
        """The last values, though none before the last tenth of the run: earlier ones are not those of a finished run.

        Arguments:
            values: [K], one for each checkpoint.
        """
        at_the_end = int((self.tokens >= (1 - _END) * self.final_tokens).sum())
        return values[-min(last, at_the_end) :]

    def column(self, name: str, task: Task | None = None) -> Floats:
        """One column, [K].

        Raises:
            UserError: there is none of this name; the message names file, task and the nearest names.
        """
        if name not in self.metrics:
            # more, such as the columns of many tasks, are no list to read
            near = did_you_mean(name, self.metrics) if len(self.metrics) < 30 else _nearest(name, self.metrics)
            of = f" of task '{task.name}'" if task else ""
            raise UserError(f"'{self.source or self.name}': the column '{name}'{of} is missing. {near}")
        return self.metrics[name]

    def weighted(self, keys: Sequence[str], task: Task) -> Floats:
        """The weighted sum of several columns, [K]."""
        return np.asarray(
            sum(share * self.column(key, task) for key, share in zip(keys, task.shares, strict=True)), dtype=float
        )

    def accuracy(self, task: Task, variant: Variant = "rc") -> Floats:
        """[K] accuracy, 0 to 1: of full answers, of letters (`mc`), or the probability of the right answer (`soft`).

        Raises:
            UserError: the task has no such columns.
        """
        keys = task.accuracy_columns(variant)
        if not keys:
            raise UserError(f"Task '{task.name}' has no {variant}_{'accuracy_' if variant == 'mc' else ''}keys.")
        return self.weighted(keys, task)

    def intermediate(self, task: Task, x: str) -> Floats:
        """[K] the quantity between the two steps: `bpb`, `c4`, `taskce`, or any column."""
        match x:
            case "bpb":
                return self.weighted(task.loss_keys, task)
            case "c4":
                return self.column(C4, task)
            case "taskce":
                if not task.soft_log_keys:
                    raise UserError(f"Task '{task.name}' has no soft_log_keys, which x = taskce needs.")
                return -self.weighted(task.soft_log_keys, task)
            case "validation":
                return np.asarray(np.mean([self.metrics[key] for key in validation_columns(self)], axis=0))
            case _:
                return self.column(x, task)

    def keep(self, chosen: NDArray[np.bool_] | NDArray[np.int64] | slice) -> Run:
        """The same run with some of its checkpoints, in the order of `chosen`."""
        places = np.arange(len(self))[chosen]
        return replace(
            self,
            tokens=self.tokens[places],
            metrics={key: values[places] for key, values in self.metrics.items()},
            step=None if self.step is None else self.step[places],
            lr=None if self.lr is None else self.lr[places],
            rows=tuple(self.rows[place] for place in places) if self.rows else (),
        )


def model_as_run(name: str, metrics: Mapping[str, float]) -> Run:
    """Another model, a point of the accuracy curve only, as a run of one checkpoint."""
    return Run(name, 1, None, np.ones(1), {key: np.array([value]) for key, value in metrics.items()}, source=name)


def worth_of(tokens: float, epochs: float) -> float:
    """How many fresh tokens are worth as much as so many of data that are gone through `epochs` times (Muennighoff et
    al. 2023, arXiv 2305.16264, equation 5): U + U R (1 - exp(-(epochs - 1) / R)), with U unique tokens and their R =
    15.39. Small ladders cannot fit R themselves.
    """
    if epochs <= 1:
        return tokens
    unique = tokens / epochs
    return unique * (1 + _REPEATS_WORTH * (1 - math.exp(-(epochs - 1) / _REPEATS_WORTH)))


def is_validation(column: str) -> bool:
    """Whether a column holds the cross-entropy of a validation set."""
    return column.startswith("eval/") and column.endswith("/CrossEntropyLoss")


def validation_columns(run: Run) -> list[str]:
    """The columns with cross-entropies of validation sets."""
    found = sorted(filter(is_validation, run.metrics))
    if not found:
        raise UserError(f"'{run.source or run.name}' has no columns eval/SET/CrossEntropyLoss.")
    return found


@dataclass(frozen=True)
class RunTable:
    """All runs of a ladder, its targets, and models that are points of the accuracy curve only.

    Attributes:
        runs: runs and targets, by size, length and name.
        external: metrics of other models, by name, for the second step.
        second: runs of the second step, where they are not those of the first, as for answers by letter.
        lenders: runs of other families of models, one table each, which lend their exponents.
        left_out: names of runs that were in the table and must not be fitted, with the reason.
        notes: what else was left out of it, one sentence each.
        files: what it was read from, which no command writes over.

    Raises:
        UserError: two runs have one name.
    """

    runs: tuple[Run, ...]
    external: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    second: RunTable | None = None
    lenders: tuple[RunTable, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        # Splits and parts of a ladder name their runs: of two with one name the second would never be looked at.
        twice = [name for name, count in Counter(run.name for run in self.runs).items() if count > 1]
        if twice:
            raise UserError(f"Two runs are called '{twice[0]}'.", "Rename one of them.")
        # One order, whatever that of a file: replicates draw noise run by run, and it must not move an interval.
        object.__setattr__(self, "runs", tuple(sorted(self.runs, key=_place)))

    def __iter__(self) -> Iterator[Run]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    def __getitem__(self, name: str) -> Run:
        for run in self.runs:
            if run.name == name:
                return run
        raise UserError(f"There is no run '{name}'. {did_you_mean(name, [run.name for run in self.runs])}")

    @property
    def ladder(self) -> RunTable:
        """The runs that are fitted."""
        return replace(self, runs=tuple(run for run in self.runs if run.mode == "train"))

    @property
    def targets(self) -> tuple[Run, ...]:
        """The runs that are predicted."""
        return tuple(run for run in self.runs if run.mode == "eval")

    def where(
        self,
        max_n: float = np.inf,
        max_multiple: float = np.inf,
        min_multiple: float = 0.0,
        names: Sequence[str] | None = None,
        without: Sequence[str] = (),
    ) -> RunTable:
        """The table with the runs up to a size and between two lengths."""
        chosen = tuple(
            run
            for run in self.runs
            if run.n <= max_n * 1.0001  # sizes that are typed are rounded
            and min_multiple <= run.multiple <= max_multiple
            and (names is None or run.name in names)
            and run.name not in without
        )
        return replace(self, runs=chosen)

    @property
    def paper(self) -> RunTable:
        """The runs of 1xC and longer, where every size has such runs, without repeated ones: those that the paper fits.

        Targets are kept.
        """
        short, seen, chosen = {run.name for run in self.short_runs}, set(), []
        first = {run.configuration for run in self.ladder if not run.name.endswith(_RERUN)}
        for run in self.runs:
            key = run.configuration
            again = key in seen or (key in first and run.name.endswith(_RERUN))
            if run.mode == "train" and (run.name in short or again):
                continue
            seen.add(key)
            chosen.append(run)
        return replace(self, runs=tuple(chosen))

    def of_family(self, name: str) -> RunTable:
        """The runs of one family (a fact of runs, the column `meta/family`) with its targets and those of none; the
        ladders of the others lend their exponents.

        Raises:
            UserError: no run is of this family.
        """
        told = {run.name: str(run.metadata.get("family") or "") for run in self.runs}
        known = sorted({told[run.name] for run in self.ladder} - {""})
        if name not in known:
            remedy = did_you_mean(name, known) or "The column meta/family of a table names the families of its runs."
            raise UserError(f"There is no run of the family '{name}'.", remedy)
        own = [run for run in self.runs if told[run.name] == name or (run.mode == "eval" and not told[run.name])]
        others = (RunTable(tuple(run for run in self.ladder if told[run.name] == each)) for each in known)
        lenders = [each for each in others if len(each) >= _FEWEST_TO_LEND and told[each.runs[0].name] != name]
        return replace(self, runs=tuple(own), lenders=tuple(lenders))

    @property
    def short_runs(self) -> tuple[Run, ...]:
        """Runs below 1xC, where every size has longer ones too, and these alone are a ladder: of two lengths."""
        runs = self.ladder.runs
        long = [run for run in runs if run.multiple >= 1]
        if not long or {run.n for run in long} != {run.n for run in runs}:
            return ()
        lengths = [run.multiple for run in long]
        return tuple(run for run in runs if run.multiple < 1) if max(lengths) > _ONE_LENGTH * min(lengths) else ()

    @property
    def digest(self) -> str:
        """SHA-256 of all figures, whatever the order of runs and columns."""
        total = hashlib.sha256()
        for run in sorted(self.runs, key=lambda each: each.name):
            total.update(f"{run.name} {run.n} {run.flops_per_token} {run.mode}".encode())
            for key in sorted(run.metrics):
                total.update(key.encode() + np.ascontiguousarray(run.metrics[key]).tobytes())
            total.update(np.ascontiguousarray(run.tokens).tobytes())
        total.update(repr(sorted((name, sorted(metrics.items())) for name, metrics in self.external.items())).encode())
        return total.hexdigest()

    @classmethod
    def read(cls, path: str | Path) -> RunTable:
        """Read a run table (CSV, TSV, JSON lines or Parquet), or a reference configuration (JSON)."""
        from lmlab.methods.ladder.tables.read import read_table

        path = Path(path)

        return read_table(path)

    @classmethod
    def from_frame(cls, frame: Any) -> RunTable:
        """The run table of a data frame: a row for each checkpoint, columns as those of a CSV file."""
        from lmlab.methods.ladder.tables.read import table_from_frame

        return table_from_frame(frame)

    @classmethod
    def from_reference_config(cls, path: str | Path) -> RunTable:
        """Read the configuration of the reference implementation and the CSV files that it lists."""
        from lmlab.methods.ladder.tables.reference_config import read_reference_config

        path = Path(path)

        return read_reference_config(path)


def _place(run: Run) -> tuple[float, float, str]:
    """Where a run stands in a table; one whose size is not known comes last."""
    return run.n if math.isfinite(run.n) else math.inf, run.final_tokens if len(run) else 0.0, run.name


def _nearest(name: str, known: Mapping[str, Any]) -> str:
    import difflib

    # names of columns are long and alike in most of their letters
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.3)
    return f"The nearest: {', '.join(near)}." if near else f"The file has {len(known)} other columns."
