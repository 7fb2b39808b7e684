"""Which run to add next, and how a budget is best spent, from the fitted law."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.ladder.fitting.chain import Chain
from lmlab.methods.ladder.fitting.laws import FORMS, log_residuals, shift_units
from lmlab.methods.ladder.fitting.points import logs
from lmlab.methods.ladder.tables.table import TOKENS_PER_PARAMETER, Floats

_PRIOR = 1e-4  # of the parameters in scaled units, so that undetermined ones stay finite


@dataclass(frozen=True)
class NextRun:
    """A run that could be added: its cost, the variance of the predicted log-loss that it leaves (mean over tasks), and
    the drop for its cost.
    """

    n: float
    multiple: float
    flops: float
    variance_left: float
    drop_per_share: float

    @property
    def d(self) -> float:
        """Its tokens."""
        return TOKENS_PER_PARAMETER * self.multiple * self.n


def next_runs(
    chain: Chain,
    n: float,
    d: float,
    flops_per_token: float | None = None,
    sizes: Sequence[float] = (),
    multiples: Sequence[float] = (),
    ladder_flops: float = 0.0,
) -> list[NextRun]:
    """Rank runs by how much they would lower the variance of the first step's prediction, for each share of the
    ladder's cost that they add.

    The law is linearized at its parameters (a c-optimal design); all runs are taken to be equally noisy.

    Arguments:
        sizes, multiples: of the candidates; by default those of the ladder, half the smallest, and twice the largest.
        ladder_flops: cost of the ladder so far.
    """
    if chain.settings.law not in ("nd", "flops"):
        raise UserError(
            "The next run is chosen for a law of the loss; this estimator has none.", "Take the law nd or flops."
        )
    x_3R = chain.points.x_3R
    offset = x_3R.mean(1)
    known = np.unique(np.round(np.exp(x_3R[0]), -3 if x_3R[0].max() > 16 else 0))
    sizes = list(sizes) or [float(known[0]) / 2, *map(float, known), float(known[-1]) * 2]
    lengths = list(multiples) or [0.5, 1, 2, 5, 10, 20]
    ratio = float(np.median(np.exp(x_3R[2] - x_3R[0] - x_3R[1])))
    candidates = [
        (size, length, ratio * size * TOKENS_PER_PARAMETER * length * size) for size in sizes for length in lengths
    ]
    p_TP = shift_units(chain.settings.law, chain.first.parameters_BP, offset, 1)
    have = _gradients(chain, p_TP, x_3R - offset[:, None])
    target = _gradients(chain, p_TP, logs(n, d, flops_per_token)[:, None] - offset[:, None])[:, 0]
    scale = np.sqrt((have**2).sum(1)) + 1e-12
    have, target = have / scale[:, None], target / scale
    normal = np.einsum("tkp,tkq->tpq", have, have) + _PRIOR * np.eye(have.shape[2])
    before = np.einsum("tp,tp->t", target, np.linalg.solve(normal, target[:, :, None])[:, :, 0])
    found = []
    for size, length, flops in candidates:
        x = logs(size, TOKENS_PER_PARAMETER * length * size, ratio * size)[:, None] - offset[:, None]
        g = _gradients(chain, p_TP, x)[:, 0] / scale
        after = np.einsum(
            "tp,tp->t", target, np.linalg.solve(normal + g[:, :, None] * g[:, None, :], target[:, :, None])[:, :, 0]
        )
        left = float((after / before).mean())
        found.append(
            NextRun(size, length, flops, left, (1 - left) / max(flops / ladder_flops if ladder_flops else 1.0, 1e-12))
        )
    return sorted(found, key=lambda each: -each.drop_per_share)


def _gradients(chain: Chain, p_TP: Floats, x_3K: Floats) -> Floats:
    return log_residuals(chain.settings.law, p_TP, x_3K, np.zeros((1, x_3K.shape[1])))[1]


def compute_optimal(first: dict[str, float], flops: float, inference_tokens: float = 0.0) -> tuple[float, float]:
    """The N and D with the lowest loss for a budget of training (6 N D) and inference (2 N a token) (Hoffmann et al.
    2022, equation 4).

    Raises:
        UserError: the law is not one of N and D.
    """
    if set(first) != set(FORMS["nd"].names):
        raise UserError("Only a law of N and D tells how a budget is best spent.")
    grid = np.linspace(math.log(flops) * 0.2, math.log(flops) * 0.75, 4001)
    tokens = (flops / np.exp(grid) - 2 * inference_tokens) / 6
    allowed = tokens > 1
    if not allowed.any():
        raise UserError("The budget does not cover the inference alone.")
    loss = np.full(len(grid), np.inf)
    log_d = np.log(tokens[allowed])
    loss[allowed] = np.exp(first["log_A"] - first["alpha"] * grid[allowed]) + np.exp(
        first["log_B"] - first["beta"] * log_d
    )
    best = int(loss.argmin())
    return float(np.exp(grid[best])), float(tokens[best])
