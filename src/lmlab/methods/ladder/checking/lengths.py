"""Which runs have come to the end of their training."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from lmlab.methods.ladder.tables.table import DECAYED, FINISHED, TOKENS_PER_PARAMETER, Run, RunTable
from lmlab.progress import console

_UNITS = {"K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}
_FEW_LABELS = 3  # names, of which a usual share can be told; of fewer the label is taken at its word
_MOST_AGREE = 0.5  # more than this share of the labels must be right, or they are no lengths


def label_of(run: Run) -> tuple[str, float] | None:
    """How long a run is to be by its name, `5xC` or `100B` at its end: the unit and the number; None where it does not
    tell.
    """
    multiple = re.search(r"(?:^|[-_/ ])(\d+(?:\.\d+)?)xC(?![a-z0-9])", run.name, re.IGNORECASE)
    if multiple:
        return ("xC", float(multiple[1])) if float(multiple[1]) > 0 else None
    tokens = re.search(r"[-_/ ](\d+(?:\.\d+)?)([KMBT])$", run.name, re.IGNORECASE)
    return ("tokens", float(tokens[1]) * _UNITS[tokens[2].upper()]) if tokens and float(tokens[1]) > 0 else None


def progress_of(run: Run, label: tuple[str, float]) -> float:
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
            run.name: progress_of(run, label)
            for run in table.ladder
            if (label := label_of(run)) and label[0] == unit and run.n > 0 and not run.planned_tokens
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
