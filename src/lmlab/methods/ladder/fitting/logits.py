"""Accuracies as logits, in which they are averaged and their errors add up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from lmlab.methods.ladder.tables.table import Floats


def logit(accuracy: Floats) -> Floats:
    """ln(p / (1 - p)), p kept away from 0 and 1."""
    p = np.clip(accuracy, 1e-6, 1 - 1e-6)  # farther than a million questions could tell
    return np.log(p) - np.log1p(-p)


def inverse_logit(value: Floats) -> Floats:
    """1 / (1 + exp(-x))."""
    return np.asarray(expit(value))


def mean_logit(values: Sequence[Floats], weights: Sequence[float] = ()) -> Floats:
    """The accuracy whose logit is the (weighted) mean of the logits."""
    if len(values) == 1:
        return values[0]
    return inverse_logit(np.average([logit(each) for each in values], axis=0, weights=weights or None))
