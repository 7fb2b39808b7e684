"""The second step's laws: accuracy as a function of a loss. Values, gradients, starts and bounds (Bhagia et al. 2024,
equation 2).

Legend: B problems, K points, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit

from lmlab.methods.ladder.config import AccuracyForm

Floats = NDArray[np.float64]

NAMES: dict[str, tuple[str, ...]] = {
    "sigmoid": ("a", "x0", "k", "b"),
    "logistic": ("a", "x0", "k", "b"),
    "mc": ("a", "x0", "k", "b"),
    "log_sigmoid": ("a", "x0", "k"),
    "soft": ("a", "b"),
}
FORMULAS = {
    "sigmoid": "Acc(L) = a / (1 + exp(-k (L - x0))) + b",
    "logistic": "Acc(L) = a / (1 + exp(-k (L - x0))) + b, b = 1, a = chance - 1",
    "mc": "Acc(L) = a / (1 + exp(-k (L - x0))) + b, b near 1, a near chance - 1",
    "log_sigmoid": "Acc(L) = 1 - a ln(1 - sigmoid(k (L - x0)))",
    # Of the mean probability of the right answer, by minus the mean of its logarithm, TaskCE: both are 1 and 0 for a
    # model that knows everything, so that the curve needs no anchor; b is what the questions' spread makes of the mean.
    "soft": "P(L) = exp(-a L - b L^2)",
}


@dataclass(frozen=True)
class Bounds:
    """[P] start of the reference, lower and upper bounds."""

    start: Floats
    lower: Floats
    upper: Floats


def bounds(form: AccuracyForm, chance: float) -> Bounds:
    """Start and bounds of the reference."""
    infinite = np.inf
    if form == "soft":
        return Bounds(np.array([1.0, 0.0]), np.array([0.0, -infinite]), np.array([infinite, infinite]))
    if form == "log_sigmoid":
        return Bounds(np.array([-0.1, 0.9, 3.0]), np.array([-infinite, 0.0, 0.0]), np.array([0.0, infinite, infinite]))
    fixed = form in ("mc", "logistic")  # both ends
    low, high = (chance - 1, chance - 0.999) if fixed else (-1.0, 0.0)
    return Bounds(
        np.array([chance - 1, 0.9, 3.0, 1.0]),
        np.array([low, 0.0, 0.0, 0.999 if fixed else 0.0]),
        np.array([high, infinite, infinite, 1.0]),
    )


def value_and_gradient(form: AccuracyForm, p_BP: Floats, x_BK: Floats) -> tuple[Floats, Floats]:
    """Accuracy [B, K] and its derivatives by the parameters [B, K, P]; x broadcasts to [B, K]."""
    if form == "soft":
        value = np.exp(np.minimum(-(p_BP[:, :1] * x_BK + p_BP[:, 1:] * x_BK**2), 1.0))
        return value, np.stack([-value * x_BK, -value * x_BK**2], axis=-1)
    a, x0, k = (p_BP[:, place, None] for place in range(3))
    z = k * (x_BK - x0)
    gradient = np.empty((*z.shape, p_BP.shape[1]))
    share = expit(z)
    if form == "log_sigmoid":
        log_rest = log_expit(-z)
        gradient[:, :, 0] = -log_rest
        gradient[:, :, 1] = -a * share * k
        gradient[:, :, 2] = a * share * (x_BK - x0)
        return 1 - a * log_rest, gradient
    slope = a * share * (1 - share)
    gradient[:, :, 0] = share
    gradient[:, :, 1] = -slope * k
    gradient[:, :, 2] = slope * (x_BK - x0)
    gradient[:, :, 3] = 1.0
    return a * share + p_BP[:, 3, None], gradient


def slope(form: AccuracyForm, p_BP: Floats, x_BK: Floats) -> Floats:
    """dAcc/dL, [B, K]."""
    if form == "soft":
        return np.asarray(-(p_BP[:, :1] + 2 * p_BP[:, 1:] * x_BK) * value_and_gradient(form, p_BP, x_BK)[0])
    a, x0, k = (p_BP[:, place, None] for place in range(3))
    share = expit(k * (x_BK - x0))
    return np.asarray(a * k * share * (1.0 if form == "log_sigmoid" else (1 - share)))
