"""A quality whose true value is known: the rater finds it, false labels teach nothing or the opposite, and choosing by
it lowers held-out loss.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.slow

CONTROL_TOKENS = 96  # that raters of false labels read of each text: what they must not learn stands in any part


@pytest.fixture(scope="module")
def known(shared: Path) -> Any:
    path = Path(__file__).parents[3] / "benchmarks" / "qurating_known_answer.py"
    spec = importlib.util.spec_from_file_location("qurating_known_answer", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    module.SHARED = shared
    return module


@pytest.fixture(scope="module")
def world(known: Any) -> Any:
    pool, levels, held, tokenizer = known.prepare()
    return pool, levels, held, tokenizer, known.utilities(pool, levels)


def test_a_rater_finds_the_hidden_quality_and_choosing_by_it_lowers_the_loss(
    known: Any, world: Any, tmp_path: Path
) -> None:
    pool, levels, held, tokenizer, utility = world
    rater, figures = known.train(pool, utility, 1000, tmp_path / "rater", tokenizer)
    assert figures["clean"]["at"]["0.5"]["accuracy"] >= 0.93 and figures["clean"]["spearman"] >= 0.86
    assert figures["expertise"]["at"]["0.5"]["accuracy"] >= 0.90 and figures["expertise"]["spearman"] >= 0.78
    assert 0.88 < figures["clean"]["at"]["0"]["ceiling"] < 0.97 and figures["clean"]["at"]["0.5"]["ceiling"] > 0.99
    rating = rater.rate([each.text for each in pool])[:, 0]
    found = known.trigram_arms(
        pool, levels, rating, held, tokenizer, ["uniform", "tau=1", "tau=0.25", "top-k", "inverse tau=0.5"]
    )
    loss = {name: values["mean"] for name, values in found.items()}
    assert loss["tau=1"] <= loss["uniform"] - 0.12
    assert min(loss["tau=1"], loss["tau=0.25"]) < loss["top-k"] < loss["uniform"]
    assert loss["inverse tau=0.5"] > loss["uniform"] + 0.5


def test_opposite_labels_teach_the_opposite(known: Any, world: Any, tmp_path: Path) -> None:
    pool, _, _, tokenizer, utility = world
    _, figures = known.train(pool, utility, 250, tmp_path, tokenizer, "flipped", tokens=CONTROL_TOKENS)
    assert figures["clean"]["spearman"] < -0.7 and figures["expertise"]["spearman"] < -0.7


def test_shuffled_labels_teach_nothing(known: Any, world: Any, tmp_path: Path) -> None:
    pool, _, _, tokenizer, utility = world
    _, figures = known.train(pool, utility, 1000, tmp_path, tokenizer, "shuffled", tokens=CONTROL_TOKENS)
    assert figures["overall"]["at"]["0"]["accuracy"] == pytest.approx(0.5, abs=0.03)


def test_the_trigram_model_is_that_of_witten_and_bell(known: Any) -> None:
    rng = np.random.default_rng(0)
    documents = [rng.zipf(1.3, size).clip(0, 19).tolist() for size in (1, 2, 40, 300)]
    model = known.Trigram(documents, 24)
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for ids in documents:
        for place, token in enumerate(ids):
            for order in range(min(3, place + 1)):
                followers[tuple(ids[place - order : place])][token] += 1

    def p(context: tuple[int, ...], token: int) -> float:
        lower = p(context[1:], token) if context else 1 / 24
        seen = followers.get(context)
        return lower if seen is None else (seen[token] + len(seen) * lower) / (seen.total() + len(seen))

    for ids in ([], [3], [3, 1], rng.integers(0, 24, 200).tolist(), documents[3]):
        expected = -sum(math.log(p(tuple(ids[max(0, place - 2) : place]), token)) for place, token in enumerate(ids))
        assert model.loss(ids) == pytest.approx(expected, rel=1e-12)
