"""One rule of search for every index: ties, k above the corpus, removals, batches; and BM25 against its formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import UserError
from lmlab.retrieval import BM25, INDEX_KINDS, ExactIndex, make_index
from lmlab.retrieval.search import exact


def unit(generator, *shape):
    drawn = generator.normal(size=shape).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)


def by_hand(ids, vectors, query, k):
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    return sorted(zip(scores.tolist(), ids, strict=True), key=lambda each: (each[0], each[1].encode()), reverse=True)[
        :k
    ]


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_every_index_gives_min_k_live_documents_with_ties_by_id_descending(kind):
    generator = np.random.default_rng(0)
    vectors = unit(generator, 40, 16)
    vectors[10:20] = vectors[0]  # ten documents with one vector
    ids = [f"d{number}" for number in generator.permutation(40)]
    queries = np.concatenate([vectors[:1], unit(generator, 4, 16)])
    index = make_index(kind, ids, vectors)
    for k in (1, 5, 40, 1000):
        hits = index.topk(queries, k)
        assert hits.rows_QK.shape == (5, min(k, 40)) and (hits.rows_QK >= 0).all()
        assert bool(hits.notice) == (k > 40)
        found = [(score, ids[row]) for score, row in zip(hits.scores_QK[0].tolist(), hits.rows_QK[0], strict=True)]
        assert found == by_hand(ids, vectors, queries[0], k)
    gone = ids[0:30:2]
    index.remove(gone)
    assert len(index) == 25
    for k in (3, 25, 26):
        hits = index.topk(queries, k)
        left = [row for row, id in enumerate(ids) if id not in gone]
        assert hits.rows_QK.shape[1] == min(k, 25)
        found = [(score, ids[row]) for score, row in zip(hits.scores_QK[0].tolist(), hits.rows_QK[0], strict=True)]
        assert found == by_hand([ids[row] for row in left], vectors[left], queries[0], k)
    with pytest.raises(UserError, match=f"no document '{gone[0]}'"):
        index.remove([gone[0]])
    index.add(["new"], queries[1:2])
    assert index.topk(queries[1:2], 1).run(["q"], index.ids) == {"q": {"new": 1.0}}
    with pytest.raises(UserError, match="'new' is in the index already"):
        index.add(["new"], queries[1:2])
    with pytest.raises(UserError, match="k is 0"):
        index.topk(queries, 0)


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 70), st.integers(0, 10_000))
def test_exact_search_equals_sorting_all_scores_whatever_the_chunks(documents, queries, k, seed):
    generator = np.random.default_rng(seed)
    vectors = np.round(unit(generator, documents, 4), 1)  # coarse: many ties
    ids = [str(number) for number in generator.permutation(documents)]
    asked = np.round(unit(generator, queries, 4), 1)
    whole = ExactIndex(ids, vectors).topk(asked, k)
    cut = sorted(generator.integers(0, documents, 3).tolist())
    parts = ExactIndex(ids, [part for part in np.split(vectors, cut) if len(part)])
    assert np.array_equal(whole.rows_QK, parts.topk(asked, k).rows_QK)
    for number, query in enumerate(asked):
        assert np.array_equal(ExactIndex(ids, vectors).topk(query[None], k).rows_QK[0], whole.rows_QK[number])
        expected = by_hand(ids, vectors, query, k)
        assert [ids[row] for row in whole.rows_QK[number]] == [id for _, id in expected]


def test_more_ties_at_the_border_than_candidates_are_all_seen():
    vectors = np.ones((500, 8), np.float32) / np.float32(math.sqrt(8))
    ids = [f"{number:03d}" for number in range(500)]
    hits = ExactIndex(ids, vectors).topk(vectors[:1], 3)
    assert exact.SLACK < 497 and [ids[row] for row in hits.rows_QK[0]] == ["499", "498", "497"]


def test_approximate_indexes_find_nearly_all_and_codes_do_after_rescoring():
    generator = np.random.default_rng(1)
    centers = unit(generator, 30, 64)
    vectors = unit(generator, 3000, 64) * 0.6 + centers[generator.integers(0, 30, 3000)]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[::100] + 0.05 * unit(generator, 30, 64)
    ids = [str(number) for number in range(3000)]
    best = ExactIndex(ids, vectors).topk(queries, 10).rows_QK
    for kind, least in (("hnsw", 0.99), ("faiss-hnsw", 0.99), ("int8", 0.99), ("truncated", 0.7), ("binary", 0.6)):
        found = make_index(kind, ids, vectors).topk(queries, 10).rows_QK
        shared = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(best, found, strict=True)])
        assert shared >= least, (kind, shared)


def lucene(documents, query, k1=1.2, b=0.75):
    rows = [text.split() for text in documents]
    mean = sum(map(len, rows)) / len(rows)
    scores = []
    for row in rows:
        total = 0.0
        for word in query.split():
            frequency, holders = row.count(word), sum(word in other for other in rows)
            idf = math.log(1 + (len(rows) - holders + 0.5) / (holders + 0.5))
            total += idf * frequency / (frequency + k1 * (1 - b + b * len(row) / mean))
        scores.append(total)
    return scores


def test_bm25_gives_what_its_formula_gives():
    documents = ["foo", "dog", "baz", "quick god", "quick fox"]
    index = BM25(list("abcde"), documents)
    assert np.allclose(index.scores("quick"), lucene(documents, "quick"), atol=1e-6)
    assert index.run(["q"], ["quick"], 5)["q"].keys() == {"d", "e"} and list(index.run(["q"], ["quick"], 5)["q"]) == [
        "e",
        "d",
    ]
    words = ["sea", "ship", "star", "moon", "oven"]
    generator = np.random.default_rng(3)
    documents = [" ".join(generator.choice(words, generator.integers(1, 9))) for _ in range(30)]
    index = BM25([str(number) for number in range(30)], documents)
    for query in ("sea", "sea ship", "moon moon oven", "star sea sea"):
        assert np.allclose(index.scores(query), lucene(documents, query), atol=1e-5), query


def test_bm25_answers_empty_and_unknown_queries_and_follows_the_rule():
    index = BM25(["a", "b", "c"], ["sea ship", "sea", ""])
    assert index.run(["q", "r"], ["", "zebra"], 5) == {"q": {}, "r": {}}
    hits = index.topk(["", "ship"], 9)
    assert hits.rows_QK.tolist() == [[2, 1, 0], [0, 2, 1]] and hits.notice
    index.remove(["a"])
    assert index.run(["q"], ["ship sea"], 3) == {"q": {"b": pytest.approx(float(index.scores("sea")[1]))}}
    assert BM25(["a"], [""]).run(["q"], ["sea"], 3) == {"q": {}}
    assert len(BM25([], [])) == 0


@pytest.mark.parametrize("kind", INDEX_KINDS)
def test_an_index_of_which_all_was_removed_finds_nothing_and_takes_documents_again(kind):
    vectors = unit(np.random.default_rng(1), 50, 16)
    ids = [f"d{number}" for number in range(50)]
    index = make_index(kind, ids, vectors)
    index.remove(ids)
    assert index.topk(vectors[:2], 3).rows_QK.shape == (2, 0) and len(index) == 0
    index.add(["again"], vectors[:1])
    assert index.topk(vectors[:1], 3).run(["q"], index.ids)["q"].keys() == {"again"}
    assert make_index(kind, [], np.zeros((0, 16), np.float32)).topk(vectors[:2], 3).rows_QK.shape == (2, 0)
