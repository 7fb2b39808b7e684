"""How a budget is best spent, from the fitted law."""

from __future__ import annotations

import math

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.fitting.chain import Chain
from lmlab.methods.ladder.fitting.intervals import Ensemble
from lmlab.methods.ladder.fitting.laws import FORMS
from lmlab.methods.ladder.tables.table import Floats
from lmlab.stats import percentiles

_OF_BOTH = ("nd", "coupled", "tied")  # laws of N and D: all grow with A / N^alpha + B / D^beta


def compute_optimal(first: dict[str, float], flops: float, inference_tokens: float = 0.0) -> tuple[float, float]:
    """The N and D with the lowest loss for a budget of training (6 N D) and inference (2 N a token) (Hoffmann et al.
    2022, equation 4).

    Raises:
        UserError: the law is not one of N and D.
    """
    if "log_A" not in first or "log_B" not in first or "E" not in first or "p" in first:
        raise UserError("Only a law of N and D tells how a budget is best spent.")
    # of log C, which the best N is far within; steps of less than 1 % of N up to 1e26 FLOPs
    grid = np.linspace(math.log(flops) * 0.2, math.log(flops) * 0.75, 4001)
    tokens = (flops / np.exp(grid) - 2 * inference_tokens) / 6
    allowed = tokens > 1
    if not allowed.any():
        raise UserError("The budget does not cover the inference alone.")
    loss = np.full(len(grid), np.inf)
    log_d = np.log(tokens[allowed])
    loss[allowed] = np.exp(first["log_A"] - first["alpha"] * grid[allowed]) + np.exp(
        first["log_B"] - first.get("beta", first["alpha"]) * log_d
    )
    best = int(loss.argmin())
    return float(np.exp(grid[best])), float(tokens[best])


def optimal_size(ensemble: Ensemble, flops: float, level: float) -> tuple[float, float, float] | None:
    """The size at which a budget of training gives the lowest losses, with an interval.

    The point is the median over chains and tasks. The interval holds `level` of all replicates of all chains and tasks:
    the quantities disagree, and a size that is good for one is not for another.

    Returns:
        N, and the limits of its interval; None where no chain has a law of N and D, or where the interval spans more
        than a factor of ten on either side, so that the ladder says nothing about it.
    """
    places = [place for place, chain in enumerate(ensemble.chains) if chain.settings.law in _OF_BOTH]
    if not places or not ensemble.replicates:
        return None
    point = np.median(np.concatenate([_optimal_log_n(ensemble.chains[place], flops) for place in places]))
    drawn = np.concatenate([_optimal_log_n(ensemble.replicates[place], flops) for place in places])
    low, high = percentiles(drawn, level)
    if max(high - point, point - low) > math.log(10):
        return None
    n, lo, hi = (float(np.exp(value)) for value in (point, low, high))
    return n, lo, hi


def _optimal_log_n(chain: Chain, flops: float) -> Floats:
    """ln N at which A / N^alpha + B / D^beta is lowest for 6 N D = flops, for each problem; [B].

    Setting the derivative to zero gives alpha A / N^alpha = beta B / D^beta.
    """
    (first, exponent, _), (second, other, _) = FORMS[chain.settings.law].units
    log_a, log_b, alpha, beta = (chain.first.parameters_BP[:, place] for place in (first, second, exponent, other))
    log_d = math.log(flops / 6)
    return np.asarray((np.log(alpha) + log_a - np.log(beta) - log_b + beta * log_d) / (alpha + beta))
