"""lmlab's own run table: one row a checkpoint, with what is known of its run."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError, did_you_mean, missing_extra
from lmlab.files import atomic_file
from lmlab.methods.ladder.tables.cells import Cells, number_in, numbers, text_of
from lmlab.methods.ladder.tables.csv_runs import highest, in_order
from lmlab.methods.ladder.tables.spreadsheets import unguarded, write_csv
from lmlab.methods.ladder.tables.table import Floats, Run, RunTable

_OWN = ("run", "size", "n", "flops_per_token", "tokens", "step", "lr", "lr_peak", "seed", "mode", "planned_tokens")
_METADATA = "meta/"  # columns with facts of a run


def from_own_table(columns: Cells, path: Path) -> RunTable:
    for key in ("run", "n", "tokens"):
        if key not in columns:
            raise UserError(f"'{path}': the column '{key}' is missing. {did_you_mean(key, columns)}")
    places: dict[str, list[int]] = {}
    for place, cell in enumerate(columns["run"]):
        # One name in two spellings, of which nobody sees the difference, would be two runs, and so repeats.
        name = unicodedata.normalize("NFC", unguarded(cell.strip()))
        if not name:
            raise UserError(f"'{path}', row {columns.rows[place]}: the column 'run' is empty.", "Name the run.")
        places.setdefault(name, []).append(place)
    metrics = {
        key: numbers(values) for key, values in columns.items() if key not in _OWN and not key.startswith(_METADATA)
    }
    runs = tuple(_own_run(name, rows, columns, metrics, path) for name, rows in places.items())
    return RunTable(runs, files=(path,))


def _own_run(name: str, rows: list[int], columns: Cells, metrics: Mapping[str, Floats], path: Path) -> Run:
    def one(key: str) -> str:
        values = {text_of(columns[key][row].strip()) for row in rows} if key in columns else {""}
        if len(values) > 1 and key != "mode":
            values.discard("")  # logs have rows that do not tell all
        amounts = {number_in(each) for each in values}
        if len(values) > 1 and len(amounts) == 1 and not math.isnan(min(amounts)):
            values = {min(values)}  # one number in several spellings
        if len(values) > 1:
            raise UserError(f"'{path}': run '{name}' has several values of '{key}': {', '.join(sorted(values)[:3])}.")
        return values.pop()

    def many(key: str) -> Floats | None:
        values = numbers([columns[key][row] for row in rows]) if key in columns else None
        return None if values is None or np.isnan(values).all() else values

    def number(key: str) -> float | None:
        text = one(key)
        value = number_in(text)
        if text and not math.isfinite(value) and key != "n":
            raise UserError(f"'{path}': run '{name}': {key} is '{text}', which is no number.", "Mend the file.")
        return None if math.isnan(value) else value

    def told(key: str) -> bool:  # texts that are no numbers are bad values, not a column that is missing
        return any(text_of(columns[key][row].strip()) for row in rows)

    def rates(key: str) -> Floats | None:
        for row in rows if key in columns else ():
            text = text_of(columns[key][row].strip())
            if text and not 0 <= number_in(text) < math.inf:
                raise UserError(f"'{path}', row {columns.rows[row]}: {key} is '{text}', which is no learning rate.")
        return many(key)

    mode = one("mode") or "train"
    if mode not in ("train", "eval"):
        raise UserError(f"'{path}': run '{name}': the mode '{mode}' is neither train nor eval.")
    seed, n = number("seed"), number("n")
    if (mode == "train" and n is None) or (n is not None and not 0 < n < math.inf):
        given = one("n")
        raise UserError(
            f"'{path}': run '{name}' has no positive n, the number of parameters"
            + (f", but '{given}'." if given else "."),
            "Write it out, as in 190354176 or 1.9e8.",
        )
    own = {key: values[rows] for key, values in metrics.items()}
    tokens = many("tokens")
    return in_order(
        Run(
            name=name,
            n=math.nan if n is None else n,
            flops_per_token=number("flops_per_token"),
            tokens=np.full(len(rows), math.nan) if tokens is None else tokens,
            metrics={key: values for key, values in own.items() if not np.isnan(values).all() or told(key)},
            mode=mode,  # type: ignore[arg-type]
            size=unguarded(one("size")),
            step=many("step"),
            planned_tokens=number("planned_tokens"),
            lr=rates("lr"),
            lr_peak=highest(rates("lr_peak")),
            seed=None if seed is None else int(seed),
            source=f"{path}, run {name}",
            rows=tuple(columns.rows[row] for row in rows),
            metadata={key.removeprefix(_METADATA): unguarded(one(key)) for key in columns if key.startswith(_METADATA)},
        )
    )


def write_table(table: RunTable, path: str | Path) -> Path:
    """Write a run table, one row a checkpoint: CSV, or Parquet by the suffix."""
    path = Path(path)
    keys = list(dict.fromkeys(key for run in table for key in run.metrics))
    facts = sorted({key for run in table for key in run.metadata})
    rows = [row for run in table for row in _rows_of(run, keys, facts)]
    if path.suffix == ".parquet":
        try:
            import pyarrow
            import pyarrow.parquet as parquet
        except ImportError:
            raise missing_extra("pyarrow", f"Writing '{path}'") from None
        with atomic_file(path) as file:
            parquet.write_table(pyarrow.Table.from_pylist(rows), file)
        return path
    return write_csv(
        path, [*_OWN, *(f"{_METADATA}{key}" for key in facts), *keys], [list(row.values()) for row in rows]
    )


def _rows_of(run: Run, keys: Sequence[str], facts: Sequence[str]) -> Iterable[dict[str, Any]]:
    for place in range(len(run)):
        yield {
            "run": run.name,
            "size": run.size,
            "n": run.n if math.isfinite(run.n) else None,
            "flops_per_token": run.flops_per_token,
            "tokens": float(run.tokens[place]),
            "step": None if run.step is None else float(run.step[place]),
            "lr": None if run.lr is None else float(run.lr[place]),
            "lr_peak": run.lr_peak,
            "seed": run.seed,
            "mode": run.mode,
            "planned_tokens": run.planned_tokens,
            **{f"{_METADATA}{key}": str(run.metadata.get(key, "")) for key in facts},
            **{key: _cell(run, key, place) for key in keys},
        }


def _cell(run: Run, key: str, place: int) -> float | None:
    value = float(run.metrics[key][place]) if key in run.metrics else math.nan
    return None if math.isnan(value) else value
