"""Weights of criteria from small training runs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.files import read_yaml
from lmlab.methods.qurating import fit_weights, propose_weights

NAMES = ["education", "style", "facts"]


def losses_of(weights: np.ndarray, best: np.ndarray, noise: float, seed: int = 0) -> np.ndarray:
    loss: np.ndarray = (
        3 + 0.5 * ((weights - best) ** 2).sum(1) + np.random.default_rng(seed).normal(0, noise, len(weights))
    )
    return loss


@pytest.mark.parametrize("seed", range(3))
def test_the_best_weights_are_found_among_noise(seed: int) -> None:
    best = np.random.default_rng(seed).dirichlet(np.full(3, 2.0))
    weights = propose_weights(3, 24, seed)
    loss = losses_of(weights, best, 0.005, seed)
    found = fit_weights(weights, loss, NAMES)
    assert found.reliable and found.model == "quadratic"
    assert np.abs(np.array(found.weights) - best).max() < 0.06 and sum(found.weights) == pytest.approx(1)
    assert found.loss < found.equal_loss and found.rank_correlation > 0.9
    assert found.errors["quadratic"] < 0.2 * found.errors["mean"]
    scaled = fit_weights(weights * np.arange(1, 25)[:, None], loss, NAMES)
    assert scaled.weights == pytest.approx(found.weights)


def test_a_useless_criterion_gets_no_weight() -> None:
    weights = propose_weights(3, 24)
    found = fit_weights(weights, 3 - 0.2 * weights[:, 0] + np.random.default_rng(0).normal(0, 0.01, 24), NAMES)
    assert found.weights[0] > 0.9


@pytest.mark.parametrize("seed", range(4))
def test_runs_that_say_nothing_give_equal_weights_or_no_better_than_chance(seed: int) -> None:
    weights = propose_weights(3, 24)
    found = fit_weights(weights, np.random.default_rng(seed).normal(3, 0.01, 24), NAMES)
    if not found.reliable:
        assert found.weights == pytest.approx([1 / 3] * 3) and found.model == "mean" and found.loss == found.equal_loss
    assert found.errors[found.model] > 0.8 * found.errors["mean"]


def test_pure_chance_is_called_so() -> None:
    weights = propose_weights(3, 24)
    assert not fit_weights(weights, np.random.default_rng(0).normal(3, 0.01, 24), NAMES).reliable


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda w, y: (w[:4], y[:4]), "say nothing about 3"),
        (lambda w, y: (w - 1, y), "Run 1: weights must be 0 or more"),
        (lambda w, y: (w, np.where(np.arange(len(y)) == 2, np.nan, y)), "Run 3: the loss"),
        (lambda w, y: (w, np.full(len(y), 3.0)), "same loss"),
        (lambda w, y: (w[:, :2], y), "3 names"),
    ],
)
def test_wrong_runs_are_refused(change: Any, expected: str) -> None:
    weights = propose_weights(3, 12)
    with pytest.raises(UserError, match=expected):
        fit_weights(*change(weights, losses_of(weights, np.full(3, 1 / 3), 0.01)), NAMES)


def test_proposals_begin_with_equal_weights_and_each_name_alone() -> None:
    found = propose_weights(3, 10)
    assert found[:4].tolist() == [[pytest.approx(1 / 3)] * 3, [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    assert found.sum(1) == pytest.approx(1) and (found >= 0).all() and (found == propose_weights(3, 10)).all()
    assert len(propose_weights(5, 2)) == 2


def test_the_commands_from_proposal_to_weights(lmlab: Any, tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    assert lmlab("quality", "propose-weights", *NAMES, "--runs", "20", "--out", path).code == 0
    assert lmlab("quality", "propose-weights", *NAMES, "--out", path).code == 2  # losses may be in it
    with path.open() as file:
        rows = list(csv.DictReader(file))
    weights = np.array([[float(row[name]) for name in NAMES] for row in rows])
    losses = losses_of(weights, np.array([0.6, 0.1, 0.3]), 0.003)
    for row, loss in zip(rows[:-1], losses, strict=False):
        row["loss"] = str(loss)
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*NAMES, "loss"])
        writer.writeheader()
        writer.writerows(rows)
    shown = lmlab("quality", "fit-weights", path, "--out", tmp_path / "weights.yaml")
    assert (
        shown.code == 0
        and "1 of 20 runs have no 'loss' yet" in shown.out + shown.err
        and "--weights education=" in shown.out
    )
    found = read_yaml(tmp_path / "weights.yaml")
    assert [found[name] for name in NAMES] == pytest.approx([0.6, 0.1, 0.3], abs=0.05)
    assert lmlab("quality", "fit-weights", tmp_path / "runs.jsonl").out.splitlines()[-1] == shown.out.splitlines()[-2]


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("a,b,loss\n1,0,x\n", (), "run 1: every column must hold a number"),
        ("a,b,loss\n1,0,3\n", ("--target", "perplexity"), "no column 'perplexity'"),
        ("", (), "no column 'loss'"),
    ],
)
def test_wrong_tables_are_refused(
    lmlab: Any, tmp_path: Path, text: str, options: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "runs.csv").write_text(text)
    shown = lmlab("quality", "fit-weights", tmp_path / "runs.csv", *options)
    assert shown.code == 2 and expected in shown.err
    assert lmlab("quality", "fit-weights", tmp_path / "none.csv").code == 2
