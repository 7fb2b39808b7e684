"""The first step's laws: how a loss (or an accuracy) falls with parameters N and tokens D. Values, gradients, starts
and bounds.

Legend: B problems, K points, P parameters. N and D enter through their logarithms; powers are exp(log A - alpha ln N),
which cannot overflow.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from lmlab.methods.ladder.config import LossForm

Floats = NDArray[np.float64]

FLOOR = 1e-6  # least value of a law whose logarithm is taken
_MAX_EXPONENT = 60.0  # exp(60) is beyond any loss, and squares of it still fit a float


@dataclass(frozen=True)
class Form:
    """A law y = f(N, D; p).

    Attributes:
        names: its parameters.
        start: the single start of the reference; `lower` and `upper` are its bounds.
        units: for each parameter that is a logarithm of a coefficient, the exponent and the variable (0: ln N, 1: ln D,
            2: ln C) that it goes with.
        formula: for people.
    """

    names: tuple[str, ...]
    start: tuple[float, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    units: tuple[tuple[int, int, int], ...]
    formula: str
    free_lower: tuple[float, ...] = field(default=())


INF = np.inf
FORMS: dict[str, Form] = {
    # Bhagia et al. 2024, equation 1
    "nd": Form(
        ("log_A", "log_B", "alpha", "beta", "E"),
        (3.0, 6.0, 0.1, 0.2, 1.0),
        (0.0,) * 5,
        (INF,) * 5,
        ((0, 2, 0), (1, 3, 1)),
        "L(N, D) = A / N^alpha + B / D^beta + E",
    ),
    # Videau et al. 2026, arXiv 2608.07222: parameters and tokens interact by one more exponent; k = 1 is the law above.
    "coupled": Form(
        ("log_A", "log_B", "alpha", "beta", "E", "k"),
        (3.0, 6.0, 0.1, 0.2, 1.0, 1.0),
        (-INF, -INF, 0.0, 0.0, 0.0, 0.1),
        (INF, INF, INF, INF, INF, 3.0),
        ((0, 2, 0), (1, 3, 1)),
        "L(N, D) = (A / N^alpha + B / D^beta)^k + E",
    ),
    # One exponent for both, as in Muennighoff et al. 2023 (arXiv 2305.16264): four parameters, for few runs.
    "tied": Form(
        ("log_A", "log_B", "alpha", "E"),
        (3.0, 3.0, 0.2, 1.0),
        (-INF, -INF, 0.0, 0.0),
        (INF, INF, INF, INF),
        ((0, 2, 0), (1, 2, 1)),
        "L(N, D) = A / N^alpha + B / D^alpha + E",
    ),
    "flops": Form(
        ("log_A", "alpha", "E"), (3.0, 0.1, 1.0), (0.0,) * 3, (INF, 1.0, INF), ((0, 1, 2),), "L(C) = A / C^alpha + E"
    ),
    "single": Form(
        ("log_A", "log_B", "alpha", "beta", "E", "p", "q"),
        (3.0, 5.0, 0.2, 0.3, 0.0, -0.75, 1.0),
        (0.0, 0.0, 0.0, 0.0, -INF, -1.0, 0.0),
        (INF, INF, INF, INF, INF, 0.0, 1.0),
        ((0, 2, 0), (1, 3, 1)),
        "Acc(N, D) = p sigmoid(A / N^alpha + B / D^beta + E) + q",
    ),
    "power": Form(
        ("log_A", "log_B", "alpha", "beta", "E"),
        (2.0, 2.0, 0.2, 0.2, 1.0),
        (0.0, 0.0, 0.0, -INF, -INF),
        (INF,) * 5,
        ((0, 2, 0), (1, 3, 1)),
        "Acc(N, D) = E - A / N^alpha - B / D^beta",
    ),
    # The simplest law of accuracy, as a baseline: its logit is a line in the logarithm of compute.
    "line": Form(
        ("log_A", "alpha"),
        (6.0, 0.2),
        (-INF, 0.0),
        (INF, INF),
        ((0, 1, 2),),
        "Acc(C) = 1 / (1 + A / C^alpha)",
    ),
    # Krajewski et al. 2025, arXiv 2512.08894: minus the logarithm of the accuracy above chance is a sum of powers.
    # `chance` is that of the task, and is not fitted.
    "direct": Form(
        ("log_A", "log_B", "alpha", "beta", "chance"),
        (3.0, 6.0, 0.1, 0.2, 0.25),
        (-INF, -INF, 0.0, 0.0, 0.0),
        (INF, INF, INF, INF, 1.0),
        ((0, 2, 0), (1, 3, 1)),
        "Acc(N, D) = chance + (1 - chance) exp(-A / N^alpha - B / D^beta)",
    ),
}


def start_of(form: LossForm, chance: float) -> Floats:
    """The reference's start value, [P]."""
    start = np.array(FORMS[form].start)
    if form == "single":
        start[5] = chance - 1
    if form == "direct":
        start[4] = chance
    return start


def value_and_gradient(form: LossForm, p_BP: Floats, x_3K: Floats) -> tuple[Floats, Floats]:
    """The law and its derivatives.

    Arguments:
        p_BP: parameters.
        x_3K: ln N, ln D and ln C of each point; [3, K], or [B, 3, K] where they differ between problems.

    Returns:
        values [B, K], gradients [B, K, P].
    """
    x = x_3K if x_3K.ndim == 3 else x_3K[None]
    log_n, log_d, log_c = x[:, 0], x[:, 1], x[:, 2]
    p = p_BP[:, :, None]
    gradient = np.empty((len(p_BP), x.shape[2], p_BP.shape[1]))
    if form == "flops":
        term = np.exp(np.minimum(p[:, 0] - p[:, 1] * log_c, _MAX_EXPONENT))
        gradient[:, :, 0], gradient[:, :, 1], gradient[:, :, 2] = term, -term * log_c, 1.0
        return term + p[:, 2], gradient
    if form == "line":
        share = expit(p[:, 1] * log_c - p[:, 0])
        slope = share * (1 - share)
        gradient[:, :, 0], gradient[:, :, 1] = -slope, slope * log_c
        return share, gradient
    if form == "tied":
        n_term, d_term = (np.exp(np.minimum(p[:, i] - p[:, 2] * x[:, i], _MAX_EXPONENT)) for i in (0, 1))
        slope = -n_term * log_n - d_term * log_d
        gradient[:, :, 0], gradient[:, :, 1], gradient[:, :, 2], gradient[:, :, 3] = n_term, d_term, slope, 1.0
        return n_term + d_term + p[:, 3], gradient
    n_term = np.exp(np.minimum(p[:, 0] - p[:, 2] * log_n, _MAX_EXPONENT))
    d_term = np.exp(np.minimum(p[:, 1] - p[:, 3] * log_d, _MAX_EXPONENT))
    gradient[:, :, 0], gradient[:, :, 1], gradient[:, :, 2], gradient[:, :, 3] = (
        n_term,
        d_term,
        -n_term * log_n,
        -d_term * log_d,
    )
    gradient[:, :, 4] = 1.0
    if form == "coupled":
        total = np.maximum(n_term + d_term, 1e-300)
        bent = total ** p[:, 5]
        gradient[:, :, :4] *= (p[:, 5] * bent / total)[:, :, None]
        gradient[:, :, 5] = bent * np.log(total)
        return bent + p[:, 4], gradient
    if form == "power":
        gradient[:, :, :4] *= -1
        return p[:, 4] - n_term - d_term, gradient
    if form == "direct":
        above = (1 - p[:, 4]) * np.exp(-(n_term + d_term))
        gradient[:, :, :4] *= -above[:, :, None]
        gradient[:, :, 4] = 0.0  # the solver leaves a parameter alone that changes nothing
        return p[:, 4] + above, gradient
    inner = n_term + d_term + p[:, 4]
    if form == "nd":
        return inner, gradient
    share = expit(inner)
    gradient[:, :, :5] *= (p[:, 5] * share * (1 - share))[:, :, None]
    gradient[:, :, 5], gradient[:, :, 6] = share, 1.0
    return p[:, 5] * share + p[:, 6], gradient


def log_residuals(form: LossForm, p_BP: Floats, x_3K: Floats, log_y_BK: Floats) -> tuple[Floats, Floats]:
    """ln f - ln y and its derivatives, [B, K] and [B, K, P]; f is at least `FLOOR`, where its gradient vanishes."""
    value, gradient = value_and_gradient(form, p_BP, x_3K)
    low = value < FLOOR
    value = np.where(low, FLOOR, value)
    gradient = np.where(low[:, :, None], 0.0, gradient / value[:, :, None])
    return np.log(value) - log_y_BK, gradient


def shift_units(form: LossForm, p_BP: Floats, offset_3: Floats, sign: float) -> Floats:
    """Parameters for ln N, ln D, ln C that are measured from `offset_3` (sign 1), or back (sign -1): exp(log A - alpha
    ln N) stays the same.
    """
    moved = p_BP.copy()
    for coefficient, exponent, variable in FORMS[form].units:
        moved[:, coefficient] -= sign * moved[:, exponent] * offset_3[variable]
    return moved


def describe(form: LossForm, p_P: Floats) -> dict[str, Any]:
    """Parameters by name."""
    return dict(zip(FORMS[form].names, map(float, p_P), strict=True))
