"""Selection against enumeration, the law of large numbers, and a plain sort."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.errors import UserError
from lmlab.methods.qurating import (
    Moments,
    SelectionConfig,
    exact_inclusion,
    exact_moments,
    inclusion_probability,
    keyed_gumbel,
    keyed_uniform,
    select,
    select_mixture,
)
from lmlab.methods.qurating.selecting.drawing.keys import mix
from lmlab.methods.qurating.selecting.plan import SelectionPlan, plan_selection
from lmlab.methods.qurating.selecting.problems import (
    BadTemperature,
    BudgetExceedsCorpus,
    DuplicateIds,
    EmptyDocument,
    NonFiniteRating,
    ZeroVariance,
)

RATINGS = np.array([2, 1, 0.5, 0, -0.5, -1.5])
INCLUSION = {
    1.0: [0.9554, 0.7573, 0.5757, 0.3800, 0.2401, 0.0914],
    2.0: [0.8020, 0.6323, 0.5362, 0.4423, 0.3586, 0.2286],
}


@pytest.fixture(scope="module")
def corpus() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    count = 200_000
    return {
        "id": np.arange(count),
        "length": rng.integers(100, 1025, count),
        "r_average": rng.standard_normal(count),
        "domain": rng.choice(["a", "b", "c"], count, p=[0.6, 0.3, 0.1]),
    }


def test_noise_has_the_published_vectors() -> None:
    assert keyed_uniform([0, 1, 2], 42).tolist() == [0.8006564021331006, 0.853977872406269, 0.06987872009432022]
    assert keyed_uniform(["doc-1"], 42).tolist() == [0.25576656785319213]
    assert keyed_gumbel([0], 42)[0] == pytest.approx(1.5036222675207125, abs=1e-15)


def test_noise_is_that_of_a_plain_integer_computation() -> None:
    def splitmix(x: int) -> int:
        x = (x + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    ids = [0, 7, 2**63 + 5, 2**64 - 1]
    assert mix(np.array(ids, np.uint64)).tolist() == [splitmix(id) for id in ids]
    expected = [((splitmix(splitmix(id) ^ splitmix(99)) >> 11) + 0.5) * 2.0**-53 for id in ids]
    assert keyed_uniform(ids, 99).tolist() == expected


@pytest.mark.parametrize("ids", [[-1], [None], [1.5], np.array([-3])])
def test_an_id_that_is_neither_text_nor_a_natural_number_is_an_error(ids: Any) -> None:
    with pytest.raises(UserError, match="row id"):
        keyed_uniform(ids, 0)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_inclusion_by_enumeration_has_the_published_values(tau: float) -> None:
    np.testing.assert_allclose(exact_inclusion(RATINGS, 3, tau), INCLUSION[tau], atol=5e-5)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_keyed_samples_over_200000_seeds_are_those_of_plackett_and_luce(tau: float) -> None:
    seeds = 200_000
    mixed = mix(np.arange(seeds, dtype=np.uint64))
    own = mix(np.arange(6, dtype=np.uint64))
    u = ((mix(own[None] ^ mixed[:, None]) >> np.uint64(11)).astype(float) + 0.5) * 2.0**-53
    assert (u[42] == keyed_uniform(np.arange(6), 42)).all()
    chosen = np.sort(np.argsort(-(RATINGS / tau - np.log(-np.log(u))), 1)[:, :3], 1)
    shares = np.bincount(chosen.ravel(), minlength=6) / seeds
    assert np.abs(shares - exact_inclusion(RATINGS, 3, tau)).max() < 0.004
    weight = np.exp(RATINGS / tau)
    expected = _subsets(weight)
    counts = {tuple(key): count for key, count in zip(*np.unique(chosen, axis=0, return_counts=True), strict=True)}
    chi_square = sum((counts.get(key, 0) - seeds * p) ** 2 / (seeds * p) for key, p in expected.items())
    assert len(expected) == 20 and chi_square < 43.8


def _subsets(weight: Any) -> dict[tuple[int, ...], float]:
    import itertools

    found: dict[tuple[int, ...], float] = {}
    for order in itertools.permutations(range(6), 3):
        left, p = weight.sum(), 1.0
        for row in order:
            p *= weight[row] / left
            left -= weight[row]
        key = tuple(sorted(order))
        found[key] = found.get(key, 0) + p
    return found


def test_select_takes_the_subsets_that_the_keys_say() -> None:
    table = {"id": list(range(6)), "length": [1] * 6, "r_average": RATINGS.tolist()}
    for seed in range(50):
        manifest = select(
            table, metric="r_average", mode="sample", tau=1.0, tokens=3, id="id", seed=seed, normalize=False
        )
        keys = RATINGS + keyed_gumbel(np.arange(6), seed)
        assert manifest.ids == np.argsort(-keys)[:3].tolist()
        assert manifest.table.column("key").to_pylist() == np.sort(keys)[::-1][:3].tolist()


def test_the_chosen_share_by_decile_follows_the_law_of_large_numbers(corpus: dict[str, Any]) -> None:
    published = [0.015, 0.028, 0.040, 0.054, 0.069, 0.088, 0.113, 0.148, 0.207, 0.387]
    budget = int(0.115 * corpus["length"].sum())
    z = (corpus["r_average"] - corpus["r_average"].mean()) / corpus["r_average"].std()
    decile = np.argsort(np.argsort(z)) * 10 // len(z)
    for tau, mean in ((1.0, 0.877), (2.0, 0.469)):
        rows = np.asarray(
            select(corpus, metric="r_average", mode="sample", tau=tau, tokens=budget, id="id").table.column("row")
        )
        p = inclusion_probability(z, corpus["length"], budget, tau)
        assert (p * corpus["length"]).sum() == pytest.approx(budget, rel=1e-9)
        expected = np.bincount(decile, p) / (len(z) / 10)
        shares = np.bincount(decile[rows], minlength=10) / (len(z) / 10)
        assert np.abs(shares - expected).max() < 0.01
        assert z[rows].mean() == pytest.approx(mean, abs=0.02)
        if tau == 1.0:
            assert np.abs(shares - published).max() < 0.01


@pytest.mark.parametrize("mode", ["sample", "top_k", "bottom_k", "uniform"])
@pytest.mark.parametrize("domain", [None, "domain"])
def test_thresholds_choose_what_a_sort_chooses(corpus: dict[str, Any], mode: str, domain: str | None) -> None:
    budget = 5_000_000
    manifest = select(corpus, metric="r_average", mode=mode, tau=1.0, tokens=budget, id="id", domain=domain)
    z = (corpus["r_average"] - corpus["r_average"].mean()) / corpus["r_average"].std()
    noise = keyed_gumbel(corpus["id"], 42)
    keys = {"sample": z + noise, "top_k": z, "bottom_k": -z, "uniform": noise}[mode]
    labels = corpus["domain"] if domain else np.zeros(len(z))
    expected = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        own = budget if domain is None else budget * int(corpus["length"][mine].sum()) // int(corpus["length"].sum())
        mine = mine[np.argsort(-keys[mine])]
        lengths = corpus["length"][mine]
        expected += mine[np.cumsum(lengths) - lengths < own].tolist()
        taken = lengths[np.cumsum(lengths) - lengths < own]
        assert taken.sum() - taken[-1] < own <= taken.sum()
    assert sorted(manifest.ids) == sorted(expected)
    found = np.asarray(manifest.table.column("key"))
    assert (np.diff(found) <= 0).all()
    np.testing.assert_allclose(found, np.sort(keys[expected])[::-1], rtol=1e-12, atol=1e-12)


def test_larger_budgets_hold_smaller_ones_and_seeds_are_independent(corpus: dict[str, Any]) -> None:
    options: dict[str, Any] = {"metric": "r_average", "mode": "sample", "tau": 2.0, "id": "id"}
    sets = [set(select(corpus, tokens=tokens, **options).ids) for tokens in (10**5, 10**6, 10**7)]
    assert sets[0] < sets[1] < sets[2]
    other = set(select(corpus, tokens=10**7, seed=7, mode="uniform", id="id").ids)
    first = set(select(corpus, tokens=10**7, seed=8, mode="uniform", id="id").ids)
    share = len(first) / len(corpus["id"])
    assert len(first & other) / len(first) == pytest.approx(share, abs=0.01)


def test_manifests_are_equal_for_any_shards_and_any_order(corpus: dict[str, Any], tmp_path: Any) -> None:
    rows = 20_000
    table = pa.table({name: values[:rows] for name, values in corpus.items()})
    table = table.set_column(0, "id", pa.array([f"doc-{number}" for number in range(rows)]))
    shuffled = table.take(np.random.default_rng(0).permutation(rows))
    for name, source, shards in (("one", table, 1), ("seven", shuffled, 7)):
        for shard in range(shards):
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(
                source.slice(shard * rows // shards, (shard + 1) * rows // shards - shard * rows // shards),
                tmp_path / name / f"{shard}.parquet",
            )
    options: dict[str, Any] = {
        "metric": "r_average",
        "mode": "sample",
        "tau": 1.0,
        "tokens": 10**6,
        "id": "id",
        "domain": "domain",
    }
    one, seven = (select(str(tmp_path / name), **options).table for name in ("one", "seven"))
    for column in ("id", "key", "length"):
        assert one.column(column).to_pylist() == seven.column(column).to_pylist()
    assert one.column("domain").to_pylist() == seven.column("domain").to_pylist()
    names, numbers = seven.column("shard").to_pylist(), seven.column("row").to_pylist()
    ids = {name: pq.read_table(tmp_path / "seven" / name).column("id").to_pylist() for name in set(names)}
    assert [ids[name][number] for name, number in zip(names, numbers, strict=True)] == seven.column("id").to_pylist()


def test_normalized_choices_do_not_change_with_the_scale_of_ratings(corpus: dict[str, Any]) -> None:
    options: dict[str, Any] = {"metric": "r_average", "mode": "sample", "tau": 1.0, "tokens": 10**6, "id": "id"}
    moved = {**corpus, "r_average": 8 * corpus["r_average"] + 3}
    assert select(corpus, **options).ids == select(moved, **options).ids


def test_a_constant_added_to_one_domain_changes_nothing_within_it() -> None:
    rng = np.random.default_rng(0)
    table = {"length": np.full(3000, 10), "r_average": rng.standard_normal(3000), "domain": np.repeat(["a", "b"], 1500)}
    moved = {**table, "r_average": table["r_average"] + 5 * (table["domain"] == "a")}
    options: dict[str, Any] = {
        "metric": "r_average",
        "mode": "sample",
        "tau": 1.0,
        "tokens": 6000,
        "domain": "domain",
        "normalize": False,
    }
    assert sorted(select(table, **options).ids) == sorted(select(moved, **options).ids)


def test_ties_go_to_the_lower_id() -> None:
    table = {"id": ["b", "a", "d", "c"], "length": [1] * 4, "r_average": [1.0, 1.0, 1.0, 0.0]}
    assert select(table, metric="r_average", mode="top_k", tokens=2, id="id").ids == ["a", "b"]
    numbers = {"id": [30, 4, 100, 5], "length": [1] * 4, "r_average": [1.0, 1.0, 1.0, 0.0]}
    assert select(numbers, metric="r_average", mode="top_k", tokens=2, id="id").ids == [4, 30]


def test_temperature_zero_is_top_k_and_infinite_is_uniform(corpus: dict[str, Any]) -> None:
    common: dict[str, Any] = {"metric": "r_average", "tokens": 10**6, "id": "id"}
    assert select(corpus, mode="sample", tau=0.0, **common).ids == select(corpus, mode="top_k", **common).ids
    assert (
        select(corpus, mode="sample", tau=math.inf, **common).ids
        == select(corpus, mode="uniform", tokens=10**6, id="id").ids
    )
    worst = select(corpus, mode="sample", tau=0.0, invert=True, **common)
    assert worst.ids == select(corpus, mode="bottom_k", **common).ids
    assert "no noise" in worst.report["noise"]


def test_no_budget_is_an_empty_choice(corpus: dict[str, Any]) -> None:
    manifest = select(corpus, metric="r_average", mode="top_k", tokens=0, id="id")
    assert len(manifest) == 0 and manifest.num_tokens == 0


def test_domain_weights_are_kept_to_a_row_and_too_much_of_one_is_an_error(corpus: dict[str, Any]) -> None:
    options: dict[str, Any] = {"metric": "r_average", "mode": "sample", "tau": 1.0, "tokens": 10**6, "domain": "domain"}
    found = select(corpus, domains={"a": 0.5, "c": 0.5}, **options).report["domains"]
    assert found["b"]["rows"] == 0
    assert all(0 <= found[name]["tokens"] - 500_000 < 1025 for name in "ac")
    with pytest.raises(BudgetExceedsCorpus, match="'c'"):
        select(corpus, **options | {"tokens": 10**8}, domains={"c": 1.0})
    with pytest.raises(UserError, match="Did you mean|Known"):
        select(corpus, domains={"z": 1.0}, **options)


def test_duplicates_are_capped_to_the_best_of_each_label(corpus: dict[str, Any]) -> None:
    table = {**corpus, "near": corpus["id"] // 4}
    manifest = select(
        table, metric="r_average", mode="sample", tau=1.0, tokens=10**6, id="id", cap_duplicates={"near": 1}
    )
    labels = np.array(manifest.ids) // 4
    assert len(set(labels.tolist())) == len(labels)
    keys = (corpus["r_average"] - corpus["r_average"].mean()) / corpus["r_average"].std() + keyed_gumbel(
        corpus["id"], 42
    )
    best = keys.reshape(-1, 4).argmax(1) + 4 * np.arange(len(keys) // 4)
    assert set(manifest.ids) <= set(best.tolist())


def test_weights_add_normalized_ratings_and_uncertainty_lowers_them() -> None:
    rng = np.random.default_rng(0)
    table = {
        "length": [1] * 100,
        "a_average": rng.standard_normal(100),
        "b_average": 50 * rng.standard_normal(100),
        "sd": rng.random(100),
    }
    manifest = select(table, weights={"a_average": 1.0, "b_average": 0.5}, mode="top_k", tokens=10)
    za, zb = ((table[name] - table[name].mean()) / table[name].std() for name in ("a_average", "b_average"))
    assert manifest.ids == np.argsort(-(za + 0.5 * zb))[:10].tolist()
    careful = select(table, metric="a_average", mode="top_k", tokens=10, uncertainty="sd", penalty=2.0)
    assert careful.ids == np.argsort(-(za - 2 * table["sd"]))[:10].tolist()


def test_a_mixture_lets_criteria_take_turns() -> None:
    rng = np.random.default_rng(0)
    table = {"length": [1] * 200, "a_average": rng.standard_normal(200), "b_average": rng.standard_normal(200)}
    config = SelectionConfig(mode="sample", weights={"a_average": 1, "b_average": 1}, tau=2.0, tokens=20)
    manifest = select_mixture(table, config)
    noise, queues, taken = keyed_gumbel(np.arange(200), 42), [], []
    for name in ("a_average", "b_average"):
        z = (table[name] - table[name].mean()) / table[name].std()
        queues.append(iter(np.argsort(-(z / 2 + noise)).tolist()))
    while len(taken) < 20:
        taken.append(next(row for row in queues[len(taken) % 2] if row not in taken))
    assert sorted(manifest.ids) == sorted(taken) and manifest.num_tokens == 20


def test_moments_merge_by_chan_and_are_exact_in_any_order() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal(10_001) * 1e3 + 1e6
    parts = [Moments.of(part) for part in np.array_split(x, 7)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert merged.mean == pytest.approx(x.mean(), rel=1e-14) and merged.std == pytest.approx(x.std(), rel=1e-12)
    one, many = exact_moments(lambda: [x]), exact_moments(lambda: np.array_split(rng.permutation(x), 13))
    assert one == many and one.mean == pytest.approx(math.fsum(x) / len(x), rel=1e-15)


def test_a_plan_foretells_what_is_chosen(corpus: dict[str, Any]) -> None:
    config = SelectionConfig(mode="sample", metric="r_average", tau=1.0, tokens=10**7, domain="domain", id="id")
    plan = {each.tau: each for each in plan_selection(corpus, config).outlooks}
    for tau in (0.0, 0.5, 1.0, math.inf):
        report = select(corpus, config.model_copy(update={"tau": tau})).report
        assert plan[tau].rows == pytest.approx(report["rows"], rel=0.02)
        if tau < math.inf:
            assert plan[tau].mean_z == pytest.approx(report["mean_z"], abs=0.02)
        assert plan[tau].domains["a"] == pytest.approx(report["domains"]["a"]["tokens"] / report["tokens"], abs=0.002)
    both = [set(select(corpus, config.model_copy(update={"tau": tau})).ids) for tau in (0.5, 1.0)]
    assert plan[0.5].overlap["tau=1"] == pytest.approx(len(both[0] & both[1]) / len(both[0]), abs=0.02)
    assert plan[math.inf].effective_rows == pytest.approx(len(corpus["id"]), rel=1e-6)
    assert plan[0.0].effective_rows == pytest.approx(plan[0.0].rows)
    assert plan[1.0].effective_rows == pytest.approx(
        len(corpus["id"]) * math.exp(-0.5), rel=0.02
    )  # entropy of a tilted normal
    assert plan_selection(
        corpus, config.model_copy(update={"tokens": 3 * int(corpus["length"].sum())})
    ).repeats == pytest.approx(3.0)


def test_a_first_look_needs_moments_alone() -> None:
    look = SelectionPlan(Moments(100, 5.0, 400.0), 1.0, 0.115)
    assert look.mean_z == pytest.approx(0.8664, abs=0.001) and look.mean_rating == pytest.approx(5 + 2 * look.mean_z)
    assert sum(look.decile_shares) == pytest.approx(1)


SMALL: dict[str, Any] = {"id": ["a", "b", "c"], "length": [5, 5, 5], "r_average": [1.0, 2.0, 4.0]}
ASK: dict[str, Any] = {"metric": "r_average", "mode": "top_k", "tokens": 6, "id": "id"}


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_a_rating_that_is_not_finite_is_named_or_left_out(bad: Any) -> None:
    table = {**SMALL, "r_average": [1.0, bad, 4.0]}
    with pytest.raises(NonFiniteRating, match=r"1 row.*b"):
        select(table, **ASK)
    manifest = select(table, drop_nonfinite=True, **ASK)
    assert manifest.ids == ["c", "a"] and manifest.report["dropped"] == {"non-finite ratings": 1}


def test_equal_ratings_cannot_be_normalized_for_a_sample() -> None:
    table = {"length": [1, 1], "r_average": [2.0, 2.0]}
    with pytest.raises(ZeroVariance, match="r_average"):
        select(table, metric="r_average", mode="sample", tau=1.0, tokens=1)


def test_a_budget_beyond_the_corpus_is_an_error_with_both_numbers() -> None:
    with pytest.raises(BudgetExceedsCorpus, match=r"16 .*15"):
        select(SMALL, **ASK | {"tokens": 16})
    assert len(select(SMALL, **ASK | {"tokens": 15})) == 3


def test_a_row_without_tokens_is_named_or_skipped() -> None:
    with pytest.raises(EmptyDocument, match="b"):
        select({**SMALL, "length": [5, 0, 5]}, **ASK)
    assert select({**SMALL, "length": [5, 0, 5]}, skip_empty=True, **ASK).ids == ["c", "a"]


def test_equal_ids_are_an_error() -> None:
    with pytest.raises(DuplicateIds, match="a"):
        select({**SMALL, "id": ["a", "b", "a"]}, **ASK)
    with pytest.raises(DuplicateIds, match="7"):
        select({**SMALL, "id": [7, 8, 7]}, **ASK)


@pytest.mark.parametrize("tau", [-1.0, math.nan])
def test_a_negative_temperature_points_to_invert(tau: float) -> None:
    with pytest.raises(ValueError, match="invert"):
        SelectionConfig(mode="sample", metric="r_average", tau=tau, tokens=1)
    with pytest.raises(BadTemperature, match="invert"):
        inclusion_probability([1.0, 2.0], [1, 1], 1, tau)


def test_a_missing_column_suggests_the_nearest() -> None:
    with pytest.raises(UserError, match="r_average"):
        select(SMALL, **ASK | {"metric": "r_averag"})


def test_lengths_are_counted_where_there_is_no_column(caplog: pytest.LogCaptureFixture) -> None:
    table = pa.table({"input_ids": [[1, 2, 3], [4], [5, 6]], "r_average": [1.0, 2.0, 3.0]})
    manifest = select(table, metric="r_average", mode="top_k", tokens=3)
    assert manifest.ids == [2, 1] and "input_ids" in caplog.text


def test_texts_are_not_read(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 500
    rng = np.random.default_rng(0)
    columns = {
        "text": ["secret"] * rows,
        "input_ids": [[1, 2]] * rows,
        "length": rng.integers(1, 50, rows),
        "meta": [{"redpajama_set_name": f"set{number % 3}"} for number in range(rows)],
        "educational_value_average": rng.standard_normal(rows),
    }
    pq.write_table(pa.table(columns), tmp_path / "part-0.parquet")
    seen: set[str] = set()
    original = pq.ParquetFile.iter_batches

    def spy(self: Any, *arguments: Any, columns: Any = None, **options: Any) -> Any:
        assert columns is not None
        seen.update(columns)
        return original(self, *arguments, columns=columns, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", spy)
    monkeypatch.setattr(pq, "read_table", None)
    manifest = select(
        str(tmp_path),
        metric="educational_value_average",
        mode="sample",
        tau=2.0,
        tokens=1000,
        domain="meta.redpajama_set_name",
    )
    assert seen == {"length", "educational_value_average", "meta.redpajama_set_name"}
    assert set(manifest.report["domains"]) == {"set0", "set1", "set2"}
