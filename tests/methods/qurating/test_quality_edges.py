"""Choices at their edges: ties, many domains, clusters without labels, temperatures near 0, long ids."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lmlab.errors import UserError
from lmlab.methods.qurating import select
from lmlab.methods.qurating.selecting.curriculum import order_rows
from lmlab.methods.qurating.selecting.drawing.inclusion import exact_inclusion, inclusion_probability
from lmlab.methods.qurating.selecting.materialize import materialize
from lmlab.methods.qurating.selecting.plan import plan_selection
from lmlab.methods.qurating.selecting.problems import (
    BudgetExceedsCorpus,
    DuplicateIds,
    NonFiniteRating,
    ZeroVariance,
)
from lmlab.methods.qurating.selecting.selection import select_mixture
from lmlab.methods.qurating.selecting.settings import SelectionConfig
from lmlab.methods.qurating.selecting.tables.lengths import budget_of


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


def rated(r: list[float], **options: Any) -> list[Any]:
    table = {"id": list(range(len(r))), "r": r, "length": [1] * len(r)}
    return select(table, SelectionConfig(**{"mode": "top_k", "metric": "r", "tokens": 2} | options)).ids


@pytest.mark.parametrize(
    "r", [[0.0, 5e-324, 1e-320], [-1.7e308, 0.0, 1.7e308], [1e308, 1.1e308, 1.7e308], [0.0, 1.0, 1e300]]
)
def test_the_best_of_ratings_at_the_ends_of_float64(r: list[float]) -> None:
    assert rated(r, normalize=False) == [2, 1]
    assert rated(r, normalize=False, mode="bottom_k") == [0, 1]
    order = order_rows({"id": [0, 1, 2], "r": r[::-1]}, "r", id="id")
    assert order.column("row").to_pylist() == [2, 1, 0]


def test_ratings_too_far_apart_to_be_normalized_are_refused_by_name() -> None:
    for options in ({}, {"mode": "sample"}):
        with pytest.raises(NonFiniteRating, match="'r'"):
            rated([1e200, -1e200, 3.0], **options)
    with pytest.raises(NonFiniteRating, match="'r'"):
        order_rows({"id": [0, 1], "r": [1e200, -1e200]}, "r", tau=1.0)


@pytest.mark.parametrize("z", [[math.inf, 0.0], [math.nan, 0.0], [-math.inf, 0.0]])
def test_chances_of_what_is_no_number_are_refused(z: list[float]) -> None:
    with pytest.raises(NonFiniteRating):
        exact_inclusion(z, 1)
    with pytest.raises(NonFiniteRating):
        inclusion_probability(z, [1, 1], 1)
    with pytest.raises(ValueError, match="not for -1 of 2"):
        exact_inclusion([1.0, 0.0], -1)


def test_a_table_without_rows_gives_none() -> None:
    assert rated([], tokens=0) == []


def test_numbers_in_one_file_and_texts_in_another_are_ids_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x", "r": 1.0, "length": 1}\n{"id": "y", "r": 1.0, "length": 1}\n')
    (tmp_path / "b.jsonl").write_text('{"id": 5, "r": 1.0, "length": 1}\n')
    assert select(tmp_path, SelectionConfig(mode="top_k", metric="r", tokens=2)).ids == ["5", "x"]
    assert order_rows(tmp_path, "r", id="id").column("row").to_pylist() == [2, 0, 1]


def test_a_mixture_of_thousands_of_domains_keeps_to_its_budget() -> None:
    rng = np.random.default_rng(0)
    count, domains = 8000, 2000
    table = {"id": np.arange(count), "a": rng.normal(size=count), "b": rng.normal(size=count)}
    table |= {"length": rng.integers(50, 150, count), "domain": [f"d{n % domains}" for n in range(count)]}
    tokens = int(table["length"].sum()) // 10
    config = SelectionConfig(mode="sample", weights={"a": 1, "b": 1}, tokens=tokens, domain="domain")
    chosen = select_mixture(table, config)
    assert tokens <= chosen.num_tokens < 1.01 * tokens and len(set(chosen.ids)) == len(chosen)
    assert sum(each["tokens"] for each in chosen.report["domains"].values()) == chosen.num_tokens
    lengths = dict(zip(table["id"].tolist(), table["length"].tolist(), strict=True))
    assert chosen.num_tokens == sum(lengths[id] for id in chosen.ids)
    assert sum(chosen.report["turns"].values()) == len(chosen)


def test_a_cap_holds_for_what_all_criteria_of_a_mixture_take_together() -> None:
    rng = np.random.default_rng(0)
    table = {"id": np.arange(300), "length": rng.integers(5, 15, 300), "near": np.arange(300) // 3}
    table |= {"a": rng.normal(size=300), "b": rng.normal(size=300)}
    config = SelectionConfig(mode="top_k", weights={"a": 1, "b": 1}, tokens=700, cap_duplicates={"near": 1})
    chosen = select_mixture(table, config)
    clusters = [id // 3 for id in chosen.ids]
    assert len(set(clusters)) == len(clusters) and 700 <= chosen.num_tokens < 715
    taken: set[int] = set()
    orders = [iter(np.argsort(-table[name], kind="stable").tolist()) for name in ("a", "b")]
    expected: list[int] = []
    while sum(table["length"][expected]) < 700:
        row = next(row for row in orders[len(expected) % 2] if row // 3 not in taken)
        taken.add(row // 3)
        expected.append(row)
    assert set(chosen.ids) == set(expected)
    with pytest.raises(BudgetExceedsCorpus, match=r"at most 1 row of each label in 'near'"):
        select_mixture(table, config.model_copy(update={"tokens": 2000}))
    with pytest.raises(BudgetExceedsCorpus, match=r"at most 1 row of each label in 'near'"):
        select(table, metric="a", mode="top_k", tokens=2000, cap_duplicates={"near": 1})


def test_more_labels_than_tokens_still_get_what_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    table = {"length": rng.integers(1, 20, 9000), "r": rng.normal(size=9000), "d": np.arange(9000) % 3000}
    for tokens in (100, 2500, 5000):
        found = select(table, metric="r", mode="sample", tau=1.0, tokens=tokens, domain="d")
        assert tokens - 20 < found.num_tokens < tokens + 0.01 * tokens + 20


def test_ids_of_all_64_bits_key_the_noise_and_come_back(tmp_path: Path) -> None:
    ids = [2**64 - 1 - number for number in range(6)]
    lines = [f'{{"id": {id}, "length": 1, "r": {number}}}\n' for number, id in enumerate([*ids, 7])]
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.jsonl").write_text("".join(lines[:6]))
    (corpus / "b.jsonl").write_text(lines[6])
    found = select(corpus, metric="r", mode="top_k", tokens=3)
    assert found.ids == [7, ids[5], ids[4]]
    written = materialize(corpus, found, tmp_path / "out")
    assert sorted(pq.read_table(written[0]).column("id").to_pylist()) == sorted(found.ids)
    (corpus / "b.jsonl").write_text(lines[6].replace("7,", f"{2**64},", 1))
    with pytest.raises(UserError, match="beyond 64 bits"):
        select(corpus, metric="r", mode="top_k", tokens=3)


def test_whole_numbers_beyond_float64_are_ratings_and_no_lengths() -> None:
    table = {"id": [1, 2, 3], "length": [1] * 3, "r": [2**60, 2**60 + 2**10, 2**60 - 2**10]}
    assert select(table, metric="r", mode="top_k", tokens=3).ids == [2, 1, 3]
    with pytest.raises(UserError, match=r"4,611,686,018,427,387,904 tokens by the column 'length'"):
        select(table | {"length": [1, 2**62, 1]}, metric="r", mode="top_k", tokens=3)


def test_a_share_is_of_the_tokens_that_are_counted() -> None:
    table = {"text": ["a b c", "a", "a b"], "r": [1.0, 2.0, 3.0]}
    measure = lambda texts: np.array([len(text.split()) for text in texts.to_pylist()])  # noqa: E731
    assert budget_of("50%", table, measure=measure) == 3
    assert budget_of("50%", {"input_ids": [[1, 2], [3, 4]]}) == 2
    with pytest.raises(UserError, match="neither a column 'length'"):
        budget_of("50%", table)
