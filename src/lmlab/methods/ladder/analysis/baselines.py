"""Forecasts without a law, to set beside it."""

from __future__ import annotations

import numpy as np

from lmlab.methods.ladder.config import TwoStepSettings
from lmlab.methods.ladder.tables.table import RunTable


def line_of(settings: TwoStepSettings) -> TwoStepSettings:
    """The line in logit accuracy on log compute, through the runs that a chain is fitted to: what a law must beat."""
    return settings.model_copy(update={"law": "line", "delta": None, "shrink": 0.0, "starts": "grid"})


def carry_forward(table: RunTable, column: str, lowest: bool) -> float:
    """The best last value of any run: what one has when no law is believed."""
    values = [float(run.column(column)[-1]) for run in table.ladder]
    return min(values) if lowest else max(values)


def log_linear(table: RunTable, column: str, flops: float) -> float:
    """A straight line in the logarithm of compute through the last values."""
    runs = table.ladder.runs
    slope, level = np.polyfit(np.log([run.flops for run in runs]), [float(run.column(column)[-1]) for run in runs], 1)
    return float(level + slope * np.log(flops))
