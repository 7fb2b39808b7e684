"""CSV files that Weights & Biases writes: the history of one run, a row for each logged step; and what its pages export
of a chart, a column `RUN - METRIC` for each run.

Neither tells N, and most do not tell tokens: both are given by the name of the run.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.tables.cells import numbers, read_csv_columns
from lmlab.methods.ladder.tables.csv_runs import BATCH, RATE, STEP, TOKENS, run_of_columns
from lmlab.methods.ladder.tables.table import Floats, Run
from lmlab.progress import console

# The first that is there counts: where a log has several, its own number of a row is not the optimizer's step.
_STEPS = ("trainer/global_step", "train/global_step", STEP, "Step", "step")
_SEPARATOR = " - "
_BOUNDS = ("__MIN", "__MAX")


@dataclass
class Exports:
    """What exports do not tell.

    Attributes:
        sizes: N by the name of a run, or by its part before a hyphen.
        batches: tokens of a step in the same way.
        targets: runs whose N may be told later.
    """

    sizes: Mapping[str, float]
    batches: Mapping[str, float]
    targets: Sequence[str] = ()
    charts: dict[str, dict[str, dict[float, float]]] = field(default_factory=dict)

    def read(self, path: Path) -> list[Run]:
        """The run of a history; the columns of a chart are kept until `assembled`.

        Raises:
            UserError: N or the tokens of a run are not known.
        """
        cells = read_csv_columns(path)
        columns = dict(cells)
        charted = [name for name in columns if _SEPARATOR in name]
        if not charted:
            steps = [name for name in _STEPS if name in columns]
            if len(steps) > 1 and TOKENS not in columns:
                console.print(f"'{path}': steps are those of '{steps[0]}', not of {', '.join(map(repr, steps[1:]))}.")
            for name in steps[1:]:
                del columns[name]
            columns = {(STEP if name in steps else name): values for name, values in columns.items()}
            if TOKENS not in columns and BATCH not in columns:
                batch = _named(self.batches, path.stem)
                if batch is not None:
                    columns[BATCH] = [str(batch)] * len(next(iter(columns.values())))
            return [run_of_columns(columns, cells.rows, path, self._size(path.stem, str(path)), None)]
        axis = next((name for name in (TOKENS, *_STEPS) if name in columns), None)
        if axis is None:
            raise UserError(f"'{path}' has neither a column of steps nor of tokens.", f"Export it over '{TOKENS}'.")
        places = numbers(columns[axis])
        for name in charted:
            run, _, metric = name.rpartition(_SEPARATOR)
            if metric.endswith(_BOUNDS) or metric in _STEPS:
                continue
            found = self.charts.setdefault(run, {}).setdefault(metric, {})
            tokens = self._tokens(places, axis, run, path)
            for row, place, cell, value in zip(cells.rows, tokens, columns[name], numbers(columns[name]), strict=True):
                if not cell.strip():
                    continue  # other runs were measured at this step
                if not 0 <= place < math.inf:
                    raise UserError(f"'{path}', row {row}: '{axis}' is empty, not a number, or negative.")
                if found.setdefault(float(place), float(value)) != float(value):
                    raise UserError(
                        f"'{path}', row {row}: the exports have two values of '{metric}' of the run '{run}' there,"
                        f" {found[float(place)]:g} and {value:g}.",
                        "Leave one of them out.",
                    )
        return []

    def assembled(self) -> list[Run]:
        """The runs of all charts that were read, with every metric over all of its checkpoints."""
        runs = []
        for name, metrics in self.charts.items():
            tokens = sorted({place for values in metrics.values() for place in values})
            if not tokens:
                raise UserError(f"The export of the run '{name}' holds no value.")
            columns = {key: np.array([values.get(at, math.nan) for at in tokens]) for key, values in metrics.items()}
            source = f"exported charts, run {name}"
            rows = tuple(range(1, len(tokens) + 1))
            n, rates = self._size(name, source), columns.pop(RATE, None)
            at = np.array(tokens)
            runs.append(Run(name, n, None, at, columns, lr=rates, source=source, rows=rows))
        return runs

    def _tokens(self, places: Floats, axis: str, run: str, path: Path) -> Floats:
        if axis == TOKENS:
            return places
        batch = _named(self.batches, run)
        if batch is None:
            raise UserError(
                f"'{path}' tells the steps of '{run}', not its tokens.",
                f"Add --batch {run.partition('-')[0]}=TOKENS, those of a step, for all runs whose names begin so.",
            )
        return np.asarray(places * batch)

    def _size(self, name: str, where: str) -> float:
        n = _named(self.sizes, name)
        if n is None and name not in self.targets:  # of a target it can be told later
            raise UserError(
                f"'{where}' does not tell N, the number of parameters of '{name}'.",
                f"Add --size {name.partition('-')[0]}=N for all runs whose names begin so, or list it in a"
                " configuration with its n.",
            )
        return math.nan if n is None else n


def is_export(path: Path) -> bool:
    """Whether a CSV file is an export of Weights & Biases rather than a run table."""
    with open(path, encoding="utf-8-sig", errors="replace", newline="") as file:
        try:
            names = [name.strip() for name in next(csv.reader(file), [])]
        except csv.Error:
            return False
    return "run" not in names and any(name in (TOKENS, *_STEPS) or _SEPARATOR in name for name in names)


def names_of(name: str) -> list[str]:
    """What a run may be called where something is given for it: its name, and its beginnings before a hyphen, the
    longest first.
    """
    parts = name.split("-")
    return ["-".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _named(values: Mapping[str, float], name: str) -> float | None:
    return next((values[each] for each in names_of(name) if each in values), None)
