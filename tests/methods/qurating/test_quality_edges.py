"""Choices at their edges: ties, many domains, clusters without labels, temperatures near 0, long ids."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.methods.qurating import select
from lmlab.methods.qurating.selecting.drawing.inclusion import exact_inclusion, inclusion_probability
from lmlab.methods.qurating.selecting.plan import plan_selection
from lmlab.methods.qurating.selecting.problems import DuplicateIds, ZeroVariance
from lmlab.methods.qurating.selecting.settings import SelectionConfig


@pytest.mark.parametrize("z", [[40, 0, 0, 0], [800, 0, -800, 5], [0.3, -1, 2, 2], [1e5, 1e5, 0, -3]])
@pytest.mark.parametrize("tau", [1.0, 0.01, 1e-308, math.inf])
def test_exact_inclusion_is_that_of_exact_arithmetic(z: list[float], tau: float) -> None:
    found = exact_inclusion(z, 2, tau)
    assert (
        np.isfinite(found).all()
        and found.sum() == pytest.approx(2)
        and (found >= 0).all()
        and (found <= 1.000001).all()
    )
    if tau >= 1:
        from decimal import Decimal, getcontext

        getcontext().prec = 1200
        weights = [(Decimal(each) / Decimal(tau) if math.isfinite(tau) else Decimal(0)).exp() for each in z]
        exact = [Decimal(0)] * len(z)
        for a, b in itertools.permutations(range(len(z)), 2):
            p = weights[a] / sum(weights) * weights[b] / (sum(weights) - weights[a])
            exact[a], exact[b] = exact[a] + p, exact[b] + p
        assert found == pytest.approx([float(each) for each in exact], rel=1e-9, abs=1e-300)


def test_the_best_row_of_a_steep_field_leaves_the_others_an_equal_chance() -> None:
    assert exact_inclusion([40, 0, 0, 0], 2) == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])


@pytest.mark.parametrize("mode", ["top_k", "bottom_k"])
@pytest.mark.parametrize("ids", [[7, 3, 9, 1, 5], ["g", "c", "ii", "a", "e"]])
def test_of_equal_ratings_the_lower_id_wins(mode: Any, ids: list[Any]) -> None:
    table = {"id": ids, "length": [1] * 5, "r": [2.0] * 5}
    assert select(table, metric="r", mode=mode, tokens=3).ids == sorted(ids)[:3]
    assert select(table, metric="r", mode="sample", tau=0.0, tokens=2).ids == sorted(ids)[:2]
    with pytest.raises(ZeroVariance, match="'r'"):
        select(table, metric="r", mode="sample", tau=1.0, tokens=3)


def test_equal_ratings_at_a_domain_s_edge_and_under_a_cap_go_by_id_too() -> None:
    ids = [f"{number:02d}" for number in range(12)]
    shuffled = np.random.default_rng(1).permutation(12)
    table = {
        "id": [ids[n] for n in shuffled],
        "length": [1] * 12,
        "r": [[1.0, 2.0][n % 2] for n in shuffled],
        "d": ["ab"[n // 6] for n in shuffled],
    }
    assert select(table, metric="r", mode="top_k", tokens=4, domain="d").ids == ["01", "03", "07", "09"]
    capped = select(table, metric="r", mode="top_k", tokens=4, cap_duplicates={"d": 2})
    assert capped.ids == ["01", "03", "07", "09"]


@pytest.mark.parametrize("label", [None, "", -1, float("nan")])
def test_rows_without_a_cluster_are_no_duplicates(label: Any) -> None:
    named: list[Any] = [1, 1, 1] if isinstance(label, int | float) else ["x", "x", "x"]
    table = {"length": [1] * 8, "r": np.arange(8.0), "near": [label] * 5 + named}
    manifest = select(table, metric="r", mode="top_k", tokens=6, cap_duplicates={"near": 1})
    assert manifest.ids == [7, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("mode", ["sample", "uniform", "top_k"])
def test_thousands_of_domains_do_not_overshoot_together(mode: Any) -> None:
    rng = np.random.default_rng(0)
    count, domains = 40_000, 8_000
    lengths = rng.integers(50, 500, count)
    table = {"length": lengths, "r": rng.standard_normal(count), "d": rng.integers(0, domains, count)}
    options: dict[str, Any] = {"metric": "r", "mode": mode, "tau": 1.0, "domain": "d"}
    chosen = {}
    for share in (0.2, 0.3):
        budget = int(share * lengths.sum())
        found = select(table, tokens=budget, **options)
        assert 0 <= found.num_tokens - budget < 500
        assert found.report["budget"] == budget
        off = [each["tokens"] - each["budget"] for each in found.report["domains"].values()]
        assert max(map(abs, off)) <= 500
        chosen[share] = set(found.ids)
    assert chosen[0.2] <= chosen[0.3]


def test_few_domains_each_reach_their_budget() -> None:
    rng = np.random.default_rng(0)
    table = {"length": rng.integers(50, 500, 5000), "r": rng.standard_normal(5000), "d": rng.integers(0, 4, 5000)}
    found = select(table, metric="r", mode="sample", tokens="300k", domain="d").report["domains"]
    assert all(0 <= each["tokens"] - each["budget"] < 500 for each in found.values())


def test_ids_that_are_not_unique_give_way_to_row_numbers() -> None:
    table = {"id": ["a", "a", "b"], "length": [1, 1, 1], "r": [1.0, 3.0, 2.0]}
    with pytest.raises(DuplicateIds, match="--row-ids"):
        select(table, metric="r", mode="top_k", tokens=2)
    assert select(table, metric="r", mode="top_k", tokens=2, row_ids=True).ids == [1, 2]
    with pytest.raises(UserError, match="either id or row_ids"):
        select(table, metric="r", mode="top_k", tokens=2, row_ids=True, id="id")


@pytest.mark.parametrize("tau", [5e-324, 1e-308, 1e-250, 1e-30])
def test_a_temperature_near_zero_is_top_k(tau: float) -> None:
    table = {"length": [10] * 50, "r": np.random.default_rng(0).standard_normal(50)}
    best = select(table, metric="r", mode="top_k", tokens=100).ids
    assert select(table, metric="r", mode="sample", tau=tau, tokens=100).ids == best
    assert inclusion_probability(table["r"], table["length"], 100, tau).sum() == pytest.approx(10)
    config = SelectionConfig(metric="r", mode="sample", tokens=100, tau=tau)
    assert plan_selection(table, config, (tau,)).outlooks[0].mean_z == pytest.approx(
        plan_selection(table, config, (0.0,)).outlooks[0].mean_z, rel=1e-3
    )


def test_one_long_id_does_not_widen_the_others() -> None:
    count = 100_000
    ids = [f"{number:08d}" for number in range(count)]
    ids[17] = "x" * 100_000
    table = {"id": ids, "length": [1] * count, "r": np.arange(count, dtype=float)}
    tracemalloc.start()
    found = select(table, metric="r", mode="top_k", tokens=count)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == count and "x" * 100_000 in set(found.ids) and peak < 300e6  # as one array it takes 40 GB
