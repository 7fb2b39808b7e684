"""Mixtures and the loader: shares, epochs and order, the same for any number of processes and after any stop."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from corpora import make_corpus

from lmlab.data import Loader, Mixture, MixtureOrder, MixtureSource, PackedRows, Phase
from lmlab.errors import UserError

SEQ_LEN = 32


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return {
        name: PackedRows(make_corpus(tmp_path_factory.mktemp(name), number, first), SEQ_LEN)
        for name, number, first in (("web", 60, 0), ("code", 40, 100), ("books", 30, 200))
    }


def _mixture(rows, num_rows, order=None, seed=0, **weights):
    sources = {name: MixtureSource(weight=weight) for name, weight in weights.items()}
    return Mixture({name: rows[name] for name in weights}, sources, num_rows, seed, order)


def _sources(mixture, first=0, last=None):
    return [mixture.names[mixture.locate(index)[0]] for index in range(first, len(mixture) if last is None else last)]


def test_every_prefix_has_its_shares(rows):
    mixture = _mixture(rows, 700, web=6, code=3, books=1)
    counts = Counter()
    for number, name in enumerate(_sources(mixture), 1):
        counts[name] += 1
        for each, share in (("web", 0.6), ("code", 0.3), ("books", 0.1)):
            assert abs(counts[each] - share * number) <= 2
    assert {share.name: share.rows for share in mixture.plan()} == dict(counts)
    assert sum(share.share for share in mixture.plan()) == pytest.approx(1)


def test_no_row_comes_twice_in_an_epoch_and_every_epoch_is_shuffled_anew(rows):
    mixture = _mixture(rows, 3 * len(rows["code"]), code=1)
    seen = [mixture[index]["input_ids"].tobytes() for index in range(len(mixture))]
    size = len(rows["code"])
    expected = sorted(rows["code"][index]["input_ids"].tobytes() for index in range(size))
    epochs = [seen[start : start + size] for start in range(0, len(seen), size)]
    assert all(sorted(epoch) == expected for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert mixture.plan()[0].epochs == 3


def test_too_many_repeats_are_refused_by_name_unless_allowed(rows):
    size = len(rows["books"])
    parts = {"web": MixtureSource(weight=1), "books": MixtureSource(weight=1, max_epochs=2)}
    chosen = {name: rows[name] for name in parts}
    Mixture(chosen, parts, 4 * size, 0)
    with pytest.raises(UserError, match=r"'books' would be gone through 2.50 times; its limit is 2 \(max_epochs\)"):
        Mixture(chosen, parts, 5 * size, 0)
    parts["books"] = MixtureSource(weight=1, max_epochs=2, allow_repeats=True)
    assert Mixture(chosen, parts, 5 * size, 0).plan()[1].epochs == pytest.approx(2.5, abs=0.02)


def test_token_budgets_are_amounts(rows):
    tokens = rows["web"].seq_len
    parts = {"web": MixtureSource(token_budget=300 * tokens), "code": MixtureSource(token_budget=100 * tokens)}
    mixture = Mixture({name: rows[name] for name in parts}, parts, 400, 0)
    assert [share.rows for share in mixture.plan()] == [300, 100]
    assert [share.tokens for share in mixture.plan()] == [part.token_budget for part in parts.values()]
    for length in (200, 800):
        with pytest.raises(UserError, match=f"add up to {400 * tokens:,} tokens, but the training reads"):
            Mixture({name: rows[name] for name in parts}, parts, length, 0)
    with pytest.raises(UserError, match="some sources have a weight and others a token_budget"):
        Mixture({name: rows[name] for name in parts}, {**parts, "web": MixtureSource(weight=1)}, 400, 0)
    with pytest.raises(UserError, match="'web' needs either weight or token_budget"):
        Mixture({"web": rows["web"]}, {"web": MixtureSource()}, 400, 0)


def test_shares_add_up_to_one_and_ratios_need_not(rows, tmp_path, lmlab):
    with pytest.raises(UserError, match="the shares of web, code, books add up to 0.9, not to 1"):
        _mixture(rows, 100, web=0.6, code=0.2, books=0.1)
    with pytest.raises(UserError, match=r"add up to 1\.00001, not to 1"):
        _mixture(rows, 100, web=0.6, code=0.40001)
    with pytest.raises(ValueError, match="phase 1: the shares of web, code add up to 0.8"):
        MixtureOrder(phases=(Phase(until=0.5, weights={"web": 1}), Phase(until=1.0, weights={"web": 0.4, "code": 0.4})))
    thirds = _mixture(rows, 300, web=1 / 3, code=1 / 3, books=1 / 3)
    assert {share.rows for share in thirds.plan()} == {100}
    assert _mixture(rows, 300, web=2, code=0.5, books=0.5).plan()[0].rows == 200  # ratios, as one is no share
    # a recipe says so before anything runs
    stage = {"kind": "train", "seq_len": 8, "trainer": {"steps": 1, "batch_size": 1}, "tokenizer": "t"}
    stage |= {"model": {"vocab_size": 9, "num_layers": 1, "d_model": 8, "num_heads": 1}}
    stage["mixture"] = {"long": {"tokens": "a", "weight": 0.34}, "short": {"tokens": "b", "weight": 0.4}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"name": "r", "stages": {"model": stage}}))
    refused = lmlab("run", tmp_path / "recipe.yaml", "--dry-run")
    assert refused.code == 2 and "mixture: the shares of long, short add up to 0.74, not to 1" in refused.err


def test_sources_one_after_the_other_keep_their_order(rows):
    mixture = _mixture(rows, 100, MixtureOrder(order="sequential"), web=3, code=1)
    assert _sources(mixture) == ["web"] * 75 + ["code"] * 25
    assert all(np.array_equal(mixture[index]["input_ids"], rows["web"][index]["input_ids"]) for index in range(75))


def test_phases_change_the_weights_and_repeat_nothing(rows):
    order = MixtureOrder(
        phases=(Phase(until=0.5, weights={"web": 1}), Phase(until=1.0, weights={"web": 1, "books": 3}))
    )
    mixture = _mixture(rows, 120, order, web=1, books=1)
    assert _sources(mixture, 0, 60) == ["web"] * 60
    assert Counter(_sources(mixture, 60)) == {"web": 15, "books": 45}
    assert len({mixture[index]["input_ids"].tobytes() for index in range(120)}) == 120
    with pytest.raises(UserError, match="a phase names 'papers', which is no source"):
        _mixture(rows, 120, MixtureOrder(phases=(Phase(until=1.0, weights={"papers": 1}),)), web=1)
    with pytest.raises(ValueError, match="the last at 1"):
        MixtureOrder(phases=(Phase(until=0.5, weights={"web": 1}),))


def test_domains_are_numbered_alike_in_all_sources(tmp_path):
    first, second = make_corpus(tmp_path / "a"), make_corpus(tmp_path / "b", first=50)
    sources = {"even": MixtureSource(weight=1, domains=("even",)), "odd": MixtureSource(weight=1, domains=("odd",))}
    rows = {"even": PackedRows(first, SEQ_LEN, domains=["even"]), "odd": PackedRows(second, SEQ_LEN, domains=["odd"])}
    mixture = Mixture(rows, sources, 40, 0)
    for index in range(40):
        name = mixture.names[mixture.locate(index)[0]]
        assert (mixture[index]["domain_ids"] == mixture.domains.index(name)).all()


def _batches(loader, number):
    return [batch["input_ids"].numpy() for batch, _ in zip(loader, range(number), strict=False)]


@pytest.mark.parametrize("order", [MixtureOrder(), MixtureOrder(order="sequential")])
def test_after_every_stop_and_on_every_number_of_processes_the_batches_are_the_same(rows, order):
    mixture = _mixture(rows, 96, order, web=2, code=1)
    whole = _batches(Loader(mixture, 8, 0, shuffle=False), 12)
    done, state = [], None
    for processes, steps, workers in ((1, 3, 1), (4, 2, 3), (2, 4, 2), (8, 3, 1)):
        loaders = [Loader(mixture, 8, 0, rank, processes, shuffle=False, workers=workers) for rank in range(processes)]
        for loader in loaders:
            if state:
                loader.restore(json.loads(json.dumps(state)))
        shares = [_batches(loader, steps) for loader in loaders]
        for step in range(steps):
            batch = np.empty_like(whole[0])
            for rank in range(processes):
                batch[rank::processes] = shares[rank][step]
            done.append(batch)
        state = {**loaders[0].state(), "next_row": 8 * len(done)}
    assert all(np.array_equal(a, b) for a, b in zip(done, whole, strict=True))
    assert len(json.dumps(state)) < 100


@pytest.mark.parametrize("packing", ["best_fit", "single"])
def test_in_an_epoch_no_process_sees_what_another_has_seen(tmp_path, packing):
    corpus = make_corpus(tmp_path, 60)
    documents = {
        shard.tokens[start : end - 1].tobytes()
        for shard in corpus.shards
        for start, end in itertools.pairwise([0, *shard.ends])
    }
    rows = PackedRows(corpus, max(map(len, documents)), packing)
    mixture = Mixture({"all": rows}, {"all": MixtureSource(weight=1)}, len(rows) // 3 * 3, 0)
    seen = Counter()
    for rank in range(3):
        for batch in Loader(mixture, 3, 0, rank, 3, shuffle=False):
            row = {name: values[0].numpy() for name, values in batch.items()}
            for number in np.unique(row["document_ids"][row["labels"] >= 0]):
                seen.update([row["input_ids"][row["document_ids"] == number].astype(np.uint16).tobytes()])
    assert set(seen) <= documents and set(seen.values()) == {1}
    assert set(seen) == documents or packing == "best_fit"


def test_a_restored_loader_refuses_other_data(rows):
    loader = Loader(rows["web"], 4, seed=1)
    next(iter(loader))
    assert loader.state()["next_row"] == 4
    for other in (Loader(rows["web"], 4, seed=2), Loader(rows["code"], 4, seed=1)):
        with pytest.raises(UserError, match="Restore the data"):
            other.restore(loader.state())


def test_shuffled_rows_go_on_for_ever_and_ordered_ones_end(rows):
    size = len(rows["books"])
    order = [row.tobytes() for batch in _batches(Loader(rows["books"], 1, seed=1), 2 * size) for row in batch]
    assert sorted(order[:size]) == sorted(order[size:]) and order[:size] != order[size:]
    assert len(list(Loader(_mixture(rows, 22, web=1), 4, 0, shuffle=False))) == 5
    with pytest.raises(UserError, match="cannot be shared evenly by 3 processes"):
        Loader(rows["web"], 4, 1, 0, 3)


@pytest.mark.parametrize(
    ("order", "goes_on"),
    [
        (None, True),
        (MixtureOrder(order="sequential"), False),
        (
            MixtureOrder(
                phases=(Phase(until=0.5, weights={"web": 1}), Phase(until=1.0, weights={"web": 1, "code": 1}))
            ),
            False,
        ),
    ],
    ids=["shuffled", "sequential", "phases"],
)
def test_a_longer_training_goes_on_only_where_the_rows_read_stay_what_they_were(rows, order, goes_on):
    short, long = (_mixture(rows, size, order, web=1, code=1) for size in (80, 120))
    assert (_sources(short, 0, 60) == _sources(long, 0, 60)) == goes_on
    state = {"next_row": 60, "seed": 0, "num_rows": 80}
    loader = Loader(long, 4, 0, shuffle=False)
    if goes_on:
        loader.restore(state)
        again = Loader(short, 4, 0, shuffle=False)
        again.restore(state)
        np.testing.assert_array_equal(next(iter(loader))["input_ids"], next(iter(again))["input_ids"])
    else:
        with pytest.raises(UserError, match="would have been others"):
            loader.restore(state)
        loader.restore({**state, "next_row": 40})  # the first 40 rows are those of `web` either way
