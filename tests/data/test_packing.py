"""Rows: every token where it belongs, once, and never a label across documents."""

from __future__ import annotations

import numpy as np
import pytest
from corpora import make_corpus, small_tokenizer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lmlab.data import PackedRows, TokenizedCorpus, TokenizedItem, write_shards
from lmlab.errors import UserError


def _documents(corpus):
    for shard in corpus.shards:
        start = 0
        for number, end in enumerate(shard.ends):
            mask = None if shard.mask is None else shard.mask[start:end]
            yield shard.tokens[start:end].tolist(), corpus.domains[shard.domains[number]], mask
            start = end


def _labeled(rows):
    """What each label of the rows predicts from: (label, all tokens of its document before it within the row)."""
    for number in range(len(rows)):
        row = rows[number]
        for place in np.flatnonzero(row["labels"] != -100):
            first = np.flatnonzero(row["document_ids"] == row["document_ids"][place])[0]
            yield int(row["labels"][place]), tuple(row["input_ids"][first : place + 1].tolist())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=40),
    seq_len=st.integers(2, 40),
    packing=st.sampled_from(["concat", "best_fit", "single"]),
    masked=st.booleans(),
    data=st.data(),
)
def test_every_token_but_the_first_of_a_document_is_a_label_once(
    tmp_path_factory, lengths, seq_len, packing, masked, data
):
    directory = tmp_path_factory.mktemp("shards")
    counter = iter(range(10**6))
    items = []
    for length in lengths:
        mask = data.draw(st.lists(st.integers(0, 1), min_size=length, max_size=length)) if masked else None
        items.append(TokenizedItem([next(counter) for _ in range(length)], "text", length, mask))
    write_shards(items, small_tokenizer(), directory, shard_tokens=97)
    corpus = TokenizedCorpus(directory)
    if packing == "concat" and corpus.num_tokens <= seq_len:
        with pytest.raises(UserError, match="less than one row"):
            PackedRows(corpus, seq_len, packing)
        return
    rows = PackedRows(corpus, seq_len, packing)
    seen = list(_labeled(rows))
    expected = [
        id for item in items for place, id in enumerate(item.ids) if place and (item.mask is None or item.mask[place])
    ]
    found = [label for label, _ in seen]
    assert len(set(found)) == len(found)
    if packing == "concat":
        assert set(found) == {id for id in expected if id <= len(rows) * seq_len}
    else:
        assert sorted(found) == expected
    for label, context in seen:
        assert context == tuple(range(label - len(context), label))
    for number in range(len(rows)):
        ids = rows[number]["document_ids"]
        assert (
            ids[0] == 0 and set(np.diff(ids[ids >= 0])) <= {0, 1} and not np.any(np.diff((ids < 0).astype(int)) < 0)
        )  # padding, -1, is at the end
        assert all(array.shape == (seq_len,) and array.dtype == np.int64 for array in rows[number].values())


def test_best_fit_cuts_nothing_that_fits_and_pads_little(tmp_path):
    corpus = make_corpus(tmp_path, 200)
    lengths = [len(ids) for ids, _, _ in _documents(corpus)]
    seq_len = 512
    fit, single = PackedRows(corpus, seq_len, "best_fit"), PackedRows(corpus, seq_len, "single")
    assert fit.padding_fraction < 0.06 < single.padding_fraction
    assert len(single) == sum(-(-(length - 1) // seq_len) for length in lengths)
    bos, eos, whole = small_tokenizer().bos_id, small_tokenizer().eos_id, 0
    for row in (fit[number] for number in range(len(fit))):
        for end in np.flatnonzero(row["labels"] == eos):
            first = np.flatnonzero(row["document_ids"] == row["document_ids"][end])[0]
            whole += row["input_ids"][first] == bos
    assert whole == sum(length - 1 <= seq_len for length in lengths)


def test_concatenated_rows_lose_only_the_very_last_tokens(tmp_path):
    corpus = make_corpus(tmp_path)
    rows = PackedRows(corpus, 32)
    tokens = np.concatenate([shard.tokens for shard in corpus.shards])
    assert len(rows) == (len(tokens) - 1) // 32
    assert np.array_equal(np.concatenate([rows[n]["input_ids"] for n in range(len(rows))]), tokens[: len(rows) * 32])
    assert rows.padding_fraction == 0


def test_domains_can_be_chosen_and_stay_with_their_tokens(tmp_path):
    corpus = make_corpus(tmp_path)
    odd = PackedRows(corpus, 32, domains=["odd"])
    tokens = [id for ids, domain, _ in _documents(corpus) if domain == "odd" for id in ids]
    assert np.concatenate([odd[n]["input_ids"] for n in range(len(odd))]).tolist() == tokens[: len(odd) * 32]
    assert all((odd[n]["domain_ids"] == corpus.domains.index("odd")).all() for n in range(len(odd)))
    with pytest.raises(UserError, match="no domain 'od'. Did you mean 'odd'"):
        PackedRows(corpus, 32, domains=["od"])


def test_a_million_documents_are_packed_in_seconds():
    import time

    from lmlab.data.packing import best_fit

    lengths = np.random.default_rng(0).lognormal(5.5, 1.2, 1_000_000).astype(np.int64).clip(1, 2048)
    start = time.perf_counter()
    rows = best_fit(lengths, 2048)
    assert time.perf_counter() - start < 20
    filled = np.bincount(rows, lengths)
    assert filled.max() <= 2048 and filled.mean() > 0.99 * 2048


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    conversations=st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=5), min_size=1, max_size=12
    ),
    seq_len=st.integers(2, 40),
    packing=st.sampled_from([None, "best_fit", "single"]),
)
def test_answers_are_learned_whole_and_with_all_that_comes_before_them(
    tmp_path_factory, conversations, seq_len, packing
):
    directory = tmp_path_factory.mktemp("shards")
    counter, items, fitting = iter(range(10**6)), [], []
    shortened = left_out = 0
    for turns in conversations:
        ids, mask, ends = [], [], []
        for prompt, answer in turns:
            ids += [next(counter) for _ in range(prompt + answer)]
            mask += [0] * prompt + [1] * answer
            ends.append(len(ids))
        items.append(TokenizedItem(ids, "chat", 1, mask))
        fits = [end for end in ends if end <= seq_len + 1]
        shortened += 0 < len(fits) < len(ends)
        left_out += not fits
        upto = fits[-1] if fits else 0
        fitting += [(id, tuple(ids[:place])) for place, id in enumerate(ids[:upto]) if mask[place]]
    write_shards(items, small_tokenizer(), directory, shard_tokens=97, kind="examples")
    corpus = TokenizedCorpus(directory)
    if not fitting:
        with pytest.raises(UserError, match="No conversation of"):
            PackedRows(corpus, seq_len, packing)
        return
    rows = PackedRows(corpus, seq_len, packing)
    assert sorted(_labeled(rows)) == sorted(fitting)
    assert (rows.shortened, rows.left_out) == (shortened, left_out)
    with pytest.raises(UserError, match="packing: concat would cut between prompt and answer"):
        PackedRows(corpus, seq_len, "concat")
