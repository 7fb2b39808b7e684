"""Scores from comparisons against an independent maximum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lmlab.judging import Disconnected, fit_bradley_terry


def test_bradley_terry_scores_are_the_maximum_of_the_likelihood() -> None:
    from scipy.optimize import minimize
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    count = 200
    u = 1.5 * rng.standard_normal(count)
    wins = np.zeros((count, count))
    for i in range(count):
        for j in rng.choice(np.delete(np.arange(count), i), 20, replace=False):
            won = rng.random() < 1 / (1 + np.exp(u[j] - u[i]))
            wins[(i, j) if won else (j, i)] += 1
    scores = fit_bradley_terry(wins)
    assert spearmanr(scores, u)[0] >= 0.95
    rows, columns = np.nonzero(wins)
    weight = wins[rows, columns]

    def loss(x: Any) -> Any:
        return (weight * np.logaddexp(0, x[columns] - x[rows])).sum()

    def slope(x: Any) -> Any:
        p = weight / (1 + np.exp(x[rows] - x[columns]))
        return np.bincount(columns, p, count) - np.bincount(rows, p, count)

    other = minimize(loss, np.zeros(count), jac=slope, method="BFGS", options={"gtol": 1e-7, "maxiter": 5000}).x
    np.testing.assert_allclose(scores, other - other.mean(), atol=1e-6)


def test_scores_need_a_connected_graph_or_a_prior() -> None:
    apart = np.zeros((4, 4))
    apart[0, 1] = apart[1, 0] = apart[2, 3] = apart[3, 2] = 1
    with pytest.raises(Disconnected, match="2 sets"):
        fit_bradley_terry(apart)
    beaten = np.array([[0, 1, 1], [0, 0, 1], [0, 1, 0]], float)
    with pytest.raises(Disconnected, match="infinite"):
        fit_bradley_terry(beaten)
    assert fit_bradley_terry(beaten, ridge=0.1)[0] > 0
