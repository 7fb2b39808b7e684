"""How well differences of scores predict judgments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.judging import MISSING
from lmlab.stats import calibration_error

Floats = NDArray[np.float64]
THRESHOLDS = (0.0, 0.5, 0.8)  # all pairs, those that are learned from by default, and those that are hardly in doubt
_SLACK = 1e-9  # rounding must not decide at the boundary


def pair_metrics(difference_PC: Floats, labels_PC: Floats, criteria: Sequence[str], votes: int = 0) -> dict[str, Any]:
    """For each criterion and over all: figures by confidence of the label.

    Arguments:
        difference_PC: score of the second text less that of the first.
        labels_PC: P(the second is better), -100 where missing.
        votes: behind each label, for the accuracy that the best rater could reach against such noisy labels
            (`ceiling`).

    Returns:
        name -> `at` (by threshold m: `pairs`, `accuracy`, `cross_entropy`, `ceiling`) and `calibration_error` of
        sigmoid(difference).
    """
    columns = {name: slice(number, number + 1) for number, name in enumerate(criteria)} | {"overall": slice(None)}
    found = {}
    for name, column in columns.items():
        d, y = difference_PC[:, column].ravel(), labels_PC[:, column].ravel()
        known = y != MISSING
        d, y = d[known], y[known]
        at = {f"{m:g}": _figures(d, y, m, votes) for m in THRESHOLDS}
        found[name] = {"at": at, "calibration_error": calibration_error(_sigmoid(d), y) if len(d) else None}
    return found


def _figures(d: Floats, y: Floats, threshold: float, votes: int) -> dict[str, Any]:
    kept = np.abs(y - 0.5) >= threshold / 2 - _SLACK
    d, y = d[kept], y[kept]
    if not len(d):
        return {"pairs": 0, "accuracy": None, "cross_entropy": None, "ceiling": None}
    entropy = np.logaddexp(0, d) - y * d
    ceiling = None
    if votes:
        from scipy.stats import norm

        spread = np.sqrt(np.maximum(y * (1 - y), 0.25 / votes) / votes)  # votes that all agree leave some doubt too
        ceiling = float(norm.cdf(np.abs(y - 0.5) / spread).mean())
    return {
        "pairs": len(d),
        "accuracy": float(((d >= 0) == (y >= 0.5)).mean()),
        "cross_entropy": float(entropy.mean()),
        "ceiling": ceiling,
    }


def _sigmoid(d: Floats) -> Floats:
    return np.asarray(1 / (1 + np.exp(-np.clip(d, -500, 500))))
