"""A run of a CSV file, one checkpoint a row, as Weights & Biases exports it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.ladder.tables.cells import numbers, read_csv_columns
from lmlab.methods.ladder.tables.table import Floats, Run
from lmlab.progress import console

TOKENS, STEP, BATCH = "throughput/total_tokens", "_step", "batch_size_in_tokens"
RATE = "optim/learning_rate_group0"
GFLOPS = "throughput/total_training_Gflops"  # since the beginning


def read_csv_run(
    path: Path,
    n: float,
    flops_per_token: float | None,
    mode: Literal["train", "eval"] = "train",
    name: str | None = None,
    size: str = "",
) -> Run:
    """Read one run of a CSV file, one checkpoint a row, as Weights & Biases exports it.

    Raises:
        UserError: the file is missing or broken, tells no tokens, or two rows of one step differ.
    """
    cells = read_csv_columns(path)
    return run_of_columns(cells, cells.rows, path, n, flops_per_token, mode, name, size)


def run_of_columns(
    cells: Mapping[str, Sequence[str]],
    rows: Sequence[int],
    path: Path,
    n: float,
    flops_per_token: float | None,
    mode: Literal["train", "eval"] = "train",
    name: str | None = None,
    size: str = "",
) -> Run:
    """The run of such a file, from its cells by column; `rows` are their lines."""
    columns = {key: numbers(values) for key, values in cells.items()}
    tokens = _tokens(columns, path)
    seen = {TOKENS, STEP, BATCH}
    metrics = {key: values for key, values in columns.items() if key not in seen}
    run = Run(
        name=name or path.stem,
        n=n,
        flops_per_token=_flops_per_token(columns, tokens) if flops_per_token is None else flops_per_token,
        tokens=tokens,
        metrics=metrics,
        mode=mode,
        size=size,
        step=columns.get(STEP),
        lr=columns.get(RATE),
        lr_peak=highest(columns.get("learning_rate_peak")),
        source=str(path),
        rows=tuple(rows),
    )
    return in_order(run)


def highest(values: Floats | None) -> float | None:
    """The highest of the rates that are known, as a peak; None where none is."""
    known = np.zeros(0) if values is None else values[np.isfinite(values)]
    return float(known.max()) if len(known) and known.max() > 0 else None


def _flops_per_token(columns: Mapping[str, Floats], tokens: Floats) -> float | None:
    """By the last row that says what was computed until then."""
    if GFLOPS not in columns:
        return None
    each = 1e9 * columns[GFLOPS] / np.where(tokens > 0, tokens, np.nan)
    known = each[np.isfinite(each) & (each > 0)]
    return float(round(known[-1])) if len(known) else None  # whole, but for the division


def _tokens(columns: Mapping[str, Floats], path: Path) -> Floats:
    if TOKENS in columns:
        return columns[TOKENS]
    missing = [key for key in (STEP, BATCH) if key not in columns]
    if missing:
        raise UserError(
            f"'{path}' does not tell how many tokens were seen: the column '{TOKENS}' is missing, and so"
            f" {'is' if len(missing) == 1 else 'are'} " + " and ".join(f"'{key}'" for key in missing) + ".",
            f"Add '{TOKENS}', or both '{STEP}' and '{BATCH}'; lmlab ladder collect takes --batch NAME=TOKENS too.",
        )
    return columns[STEP] * columns[BATCH]


def in_order(run: Run) -> Run:
    """Sort by tokens and drop rows that are there twice, with a notice."""
    where = run.source or run.name
    bad = np.flatnonzero(~np.isfinite(run.tokens) | (run.tokens < 0))
    if len(bad):
        raise UserError(f"'{where}', row {run.rows[bad[0]]}: the number of tokens is not a number, or is negative.")
    order: NDArray[np.int64] = np.argsort(run.tokens, kind="stable")
    if (np.diff(order) < 0).any():
        console.print(f"'{where}': rows were sorted by tokens.")
    run = run.keep(order)
    return _merged(run, where)


def _merged(run: Run, where: str) -> Run:
    """One row for each number of tokens: rows of which one holds what the other lacks, as logs of training and of
    evaluation have them, are put together; two that differ are an error.
    """
    same = np.flatnonzero(np.diff(run.tokens) == 0)
    if not len(same):
        return run
    metrics = {key: values.copy() for key, values in run.metrics.items()}
    rates, steps = (None if each is None else each.copy() for each in (run.lr, run.step))
    for place in same:
        for values in (rates, steps):
            if values is not None and not math.isfinite(values[place + 1]):
                values[place + 1] = values[place]
        for key, values in metrics.items():
            first, second = values[place], values[place + 1]
            if math.isfinite(first) and math.isfinite(second) and first != second:
                rows = f"rows {run.rows[place]} and {run.rows[place + 1]}"
                raise UserError(
                    f"'{where}', {rows}: two checkpoints of {run.tokens[place]:.0f} tokens differ in '{key}'.",
                    "Remove one of them.",
                )
            if not math.isfinite(second):
                values[place + 1] = first
    console.print(f"'{where}': {len(same)} repeated rows were dropped.")
    return replace(run, metrics=metrics, lr=rates, step=steps).keep(np.setdiff1d(np.arange(len(run)), same))
