"""Runs that are under way, as rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmlab.methods.ladder.analysis.follow import Followed
from lmlab.methods.ladder.fitting.forecast import Forecaster
from lmlab.methods.ladder.presenting.digits import four_digits

FOLLOWED_COLUMNS = [
    "task",
    "accuracy at its end, %",
    "from, %",
    "to, %",
    "by the ladder alone, %",
    "ladder from, %",
    "ladder to, %",
    "loss",
    "loss from",
    "loss to",
    "by its own curve",
    "unit",
    "weight of the run",
]


def followed_rows(forecaster: Forecaster, found: Sequence[Followed]) -> list[list[Any]]:
    """Rows for `FOLLOWED_COLUMNS`, and the means."""
    rows: list[list[Any]] = [
        [
            task.title,
            *(round(100 * value, 1) for value in (each.accuracy, each.lo, each.hi)),
            *(round(100 * value, 1) for value in (each.ladder_accuracy, each.ladder_lo, each.ladder_hi)),
            *(four_digits(value) for value in (each.loss, each.loss_lo, each.loss_hi, each.own_curve)),
            each.unit or None,
            round(each.weight, 2),
        ]
        for task, each in zip(forecaster.tasks, found, strict=True)
    ]
    if len(found) > 1:
        own, alone = (
            float(np.mean([getattr(each, name) for each in found])) for name in ("accuracy", "ladder_accuracy")
        )
        rows.append(["mean", round(100 * own, 1), None, None, round(100 * alone, 1), *(None,) * 8])
    return rows
