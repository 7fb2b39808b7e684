"""Weights of criteria, or of domains, from small training runs (Meta-rater, Zhuang et al. 2025; for domains RegMix, Liu
et al. 2024).

Each run trains on text chosen with other weights. A regression of the runs' losses on their weights says which weights
would do best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError, missing_extra
from lmlab.words import counted

# The mean of the best of many draws is steadier than the best one. Of up to 40 runs each is left out once.
_CANDIDATES, _BEST, _ONE_OUT = 20_000, 100, 40

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FittedWeights:
    """What the runs say.

    Attributes:
        weights: the best ones by the chosen regression; equal ones if none is better than the mean of all runs.
        model: the regression with the lowest error.
        errors: root mean squared error of each regression on runs that it has not seen; `mean` predicts the mean of the
            others.
        rank_correlation: Spearman's, between losses and what the chosen regression predicted without seeing them.
        loss, equal_loss, best_run_loss: predicted for `weights`, predicted for equal weights, and the lowest that was
            measured.
        reliable: a regression beats the mean.
    """

    names: tuple[str, ...]
    weights: tuple[float, ...]
    model: str
    errors: dict[str, float]
    rank_correlation: float
    loss: float
    equal_loss: float
    best_run_loss: float
    reliable: bool


def propose_weights(count: int, runs: int, seed: int = 0) -> Floats:
    """Weights for runs to train, [runs, count]: equal ones, each name alone, and then a uniform draw of all weights
    that sum to 1.
    """
    if runs < 1 or count < 2:
        raise UserError("Weights are proposed for at least two names and one run.")
    fixed = np.concatenate([np.full((1, count), 1 / count), np.eye(count)])[:runs]
    return np.concatenate([fixed, np.random.default_rng(seed).dirichlet(np.ones(count), runs - len(fixed))])


def fit_weights(weights: ArrayLike, losses: ArrayLike, names: Sequence[str], seed: int = 0) -> FittedWeights:
    """Regress losses on weights and look for the weights with the lowest predicted loss.

    The regression is chosen by its error on left-out runs (each alone up to 40 runs, else ten groups): linear,
    quadratic, or boosted trees. The result is the mean of the 100 best of 20,000 uniform draws, of the runs' own
    weights and of equal ones.

    Arguments:
        weights: [runs, names], 0 or more; each run's are divided by their sum.
        losses: [runs], lower is better.

    Raises:
        UserError: too few runs, equal losses, or numbers that are no weights.
    """
    from scipy.stats import spearmanr

    w_RN, loss_R = np.asarray(weights, np.float64), np.asarray(losses, np.float64)
    _check(w_RN, loss_R, names)
    w_RN = w_RN / w_RN.sum(1, keepdims=True)
    folds = _folds(len(loss_R), seed)
    regressions = _regressions(seed)
    predicted = {name: _left_out(make, w_RN, loss_R, folds) for name, make in regressions.items()}
    errors = {name: float(np.sqrt(np.mean((found - loss_R) ** 2))) for name, found in predicted.items()}
    best = min(errors, key=lambda name: errors[name])
    equal_N = np.full(len(names), 1 / len(names))
    if best == "mean":
        mean = float(loss_R.mean())
        return FittedWeights(
            tuple(names), tuple(equal_N.tolist()), best, errors, 0.0, mean, mean, float(loss_R.min()), False
        )
    regression = regressions[best]().fit(w_RN, loss_R)
    draws = np.random.default_rng(seed).dirichlet(np.ones(len(names)), _CANDIDATES)
    candidates = np.concatenate([draws, w_RN, equal_N[None]])
    chosen_N = candidates[np.argsort(regression.predict(candidates), kind="stable")[:_BEST]].mean(0)
    loss, equal = (float(value) for value in regression.predict(np.stack([chosen_N, equal_N])))
    correlation = float(spearmanr(predicted[best], loss_R).statistic)
    return FittedWeights(
        tuple(names), tuple(chosen_N.tolist()), best, errors, correlation, loss, equal, float(loss_R.min()), True
    )


def _check(w_RN: Floats, loss_R: Floats, names: Sequence[str]) -> None:
    if w_RN.ndim != 2 or w_RN.shape != (len(loss_R), len(names)) or len(names) < 2:
        raise UserError(f"Weights of {len(names)} names, two at least, are needed for each of {len(loss_R)} runs.")
    usable_R = np.isfinite(w_RN).all(1) & (w_RN >= 0).all(1) & (w_RN.sum(1) > 0)
    if not usable_R.all():
        raise UserError(f"Run {int(usable_R.argmin()) + 1}: weights must be 0 or more, and one of them above 0.")
    if not np.isfinite(loss_R).all():
        raise UserError(
            f"Run {int(np.flatnonzero(~np.isfinite(loss_R))[0]) + 1}: the loss is not a finite number.",
            "Leave the run out.",
        )
    if len(loss_R) < len(names) + 2:
        raise UserError(
            f"{counted(len(loss_R), 'runs say')} nothing about {len(names)} weights.",
            f"Train {len(names) + 2} at least; several for each name are better.",
        )
    if np.ptp(loss_R) == 0:
        raise UserError("All runs have the same loss.", "Are the losses those of the runs?")


def _folds(runs: int, seed: int) -> list[NDArray[np.intp]]:
    order = np.random.default_rng(seed).permutation(runs)
    return np.array_split(order, runs if runs <= _ONE_OUT else 10)


def _left_out(make: Callable[[], Any], w_RN: Floats, loss_R: Floats, folds: Sequence[NDArray[np.intp]]) -> Floats:
    """Each loss as predicted from the runs of the other folds."""
    found = np.zeros(len(loss_R))
    for fold in folds:
        others = np.setdiff1d(np.arange(len(loss_R)), fold)
        found[fold] = make().fit(w_RN[others], loss_R[others]).predict(w_RN[fold])
    return found


def _regressions(seed: int) -> dict[str, Callable[[], Any]]:
    try:
        from sklearn.dummy import DummyRegressor
        from sklearn.ensemble import GradientBoostingRegressor
        from sklearn.linear_model import RidgeCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import PolynomialFeatures
    except ImportError:
        raise missing_extra("sklearn", "Fitting weights") from None
    strengths = np.logspace(-6, 2, 17)  # from hardly any pull to hardly any fit; runs that are left out choose
    return {
        "mean": DummyRegressor,
        "linear": lambda: RidgeCV(strengths),
        "quadratic": lambda: make_pipeline(PolynomialFeatures(2, include_bias=False), RidgeCV(strengths)),
        # shallow and slow: there are tens of runs, and each is left out in turn
        "boosted trees": lambda: GradientBoostingRegressor(
            max_depth=3, learning_rate=0.05, n_estimators=150, subsample=0.8, random_state=seed
        ),
    }
