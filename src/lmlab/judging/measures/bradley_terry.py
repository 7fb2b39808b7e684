"""Scores of items from comparisons alone, without a look at the texts: the maximum of the Bradley-Terry likelihood, by
Newton's method.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError

_STEPS = 200  # Newton needs about ten; the rest is for matrices close to having no maximum


class Disconnected(UserError):
    """Items that were never compared, even through others, have no common scale."""


def fit_bradley_terry(wins: ArrayLike, ridge: float = 0.0, tolerance: float = 1e-12) -> NDArray[np.float64]:
    """Scores u with P(j beats i) = sigmoid(u_j - u_i) that make the comparisons likeliest; their mean is 0.

    Arguments:
        wins: [N, N], how often (or with what total probability) the row's item beat the column's.
        ridge: strength of a normal prior around 0; above 0 it makes any comparisons fit.

    Raises:
        Disconnected: without a prior, some items were never compared with the rest, or won or lost all comparisons with
            it: no finite scores fit.
        UserError: the matrix is not square, or holds negative numbers.
    """
    w = np.array(wins, np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or not np.isfinite(w).all() or (w < 0).any():
        raise UserError("Wins must be a square matrix of numbers that are 0 or more.")
    np.fill_diagonal(w, 0)
    count = len(w)
    if ridge == 0:
        _check_connected(w)
    n, won, u = w + w.T, w.sum(1), np.zeros(count)
    for _ in range(_STEPS):
        p = _sigmoid(u[:, None] - u[None, :])  # p[i, j] = P(i beats j)
        gradient = won - (n * p).sum(1) - ridge * u
        curvature = n * p * (1 - p)
        hessian = (
            np.diag(curvature.sum(1) + ridge) - curvature + (0 if ridge else 1 / count)
        )  # the constant direction is free without a prior
        step = np.linalg.solve(hessian, gradient)
        # logits: from far away a full Newton step can overshoot
        u = u + step * min(1.0, 4.0 / max(1e-300, float(np.abs(step).max())))
        u -= u.mean()
        if np.abs(step).max() < tolerance * max(1.0, float(np.abs(u).max())):
            break
    return u


def wins_of(preferences: Any, groups: Any, count: int) -> NDArray[np.float64]:
    """A matrix of wins from soft labels: P[i, j] is a share of a win for j, 1 - P[i, j] one for i.

    Arguments:
        preferences: for each group its matrix of soft labels, -100 where missing.
        groups: for each group the numbers of its items.
        count: of items.
    """
    wins = np.zeros((count, count))
    for labels, items in zip(preferences, groups, strict=True):
        for i, j in zip(*np.triu_indices(len(items), 1), strict=True):
            if labels[i][j] >= 0:
                wins[items[j], items[i]] += labels[i][j]
                wins[items[i], items[j]] += 1 - labels[i][j]
    return wins


def components(groups: Sequence[Sequence[str]]) -> int:
    """The number of sets of items that are connected by comparisons; a common scale of all items needs one."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    names = {name: number for number, name in enumerate(sorted({name for group in groups for name in group}))}
    edges = [(names[group[0]], names[name]) for group in groups for name in group[1:]]
    if not edges:
        return len(names)
    rows, columns = np.array(edges).T
    return int(
        connected_components(coo_matrix((np.ones(len(rows)), (rows, columns)), (len(names),) * 2), directed=False)[0]
    )


def _check_connected(w: NDArray[np.float64]) -> None:
    from scipy.sparse.csgraph import connected_components

    weak = int(connected_components(w + w.T > 0, directed=False)[0])
    strong = int(connected_components(w > 0, directed=True, connection="strong")[0])
    if weak > 1:
        raise Disconnected(
            f"The comparisons fall into {weak} sets of items that were never compared.",
            "Compare across them, or give a ridge.",
        )
    if strong > 1:
        raise Disconnected(
            "Some items won or lost all their comparisons with the others, so that their scores are infinite.",
            "Give a ridge.",
        )


def _sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(x >= 0, 1 / (1 + np.exp(-np.abs(x))), 1 - 1 / (1 + np.exp(-np.abs(x))))
