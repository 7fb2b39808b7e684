"""Metrics against pytrec_eval, runs in files, and fusion."""

from __future__ import annotations

import gzip
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmlab.errors import UserError
from lmlab.retrieval import evaluate_run, fuse_rrf, read_run, write_run

pytrec_eval = pytest.importorskip("pytrec_eval")
DEPTHS = (1, 3, 5, 10, 100)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.integers(1, 40))
def test_metrics_equal_pytrec_eval(seed, queries, documents):
    generator = np.random.default_rng(seed)
    names = [f"d{number}" for number in range(documents)]
    qrels, run = {}, {}
    for number in range(queries):
        judged = generator.choice(names, generator.integers(1, documents + 1), replace=False)
        qrels[f"q{number}"] = {str(doc): int(generator.integers(0, 4)) for doc in judged}
        found = generator.choice(names, generator.integers(1, documents + 1), replace=False)
        # coarse scores tie; fine ones differ beyond fp32, where trec_eval ties too
        scores = np.round(generator.normal(size=len(found)), 1) + generator.integers(0, 2, len(found)) * 1e-12
        if generator.random() > 0.1:
            run[f"q{number}"] = {str(doc): float(score) for doc, score in zip(found, scores, strict=True)}
    depths = ",".join(map(str, DEPTHS))
    measures = {f"{name}.{depths}" for name in ("ndcg_cut", "map_cut", "recall", "P")} | {"recip_rank"}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    ours = evaluate_run(run, qrels, DEPTHS, remove_self=False)
    for query, figures in theirs.items():
        for k in DEPTHS:
            for name, their_name in (("nDCG", "ndcg_cut"), ("MAP", "map_cut"), ("Recall", "recall"), ("P", "P")):
                assert math.isclose(ours.by_query[query][f"{name}@{k}"], figures[f"{their_name}_{k}"], abs_tol=1e-9)
        assert math.isclose(ours.by_query[query]["MRR@100"], figures["recip_rank"], abs_tol=1e-9)
    missing = [query for query in qrels if query not in run]
    assert ours.without_hits == len(missing) and all(ours.by_query[query]["nDCG@10"] == 0 for query in missing)
    total = sum(theirs[query]["ndcg_cut_10"] for query in run)
    assert math.isclose(ours.means["nDCG@10"], total / len(qrels), abs_tol=1e-9)


def test_equal_scores_are_ordered_by_id_as_trec_eval_does():
    assert evaluate_run({"q": {"a": 1.0, "b": 1.0}}, {"q": {"b": 1}}).means["nDCG@10"] == 1.0
    renamed = evaluate_run({"q": {"a": 1.0, "b": 1.0}}, {"q": {"a": 1}}).means["nDCG@10"]
    assert renamed == pytest.approx(1 / math.log2(3))


def test_capped_recall_holes_self_matches_and_missing_judgments():
    run = {"q": {"q": 9.0, "a": 3.0, "b": 2.0, "c": 1.0}}
    found = evaluate_run(run, {"q": {"a": 1, "c": 1, "e": 1}}, [2, 3])
    assert found.self_matches == 1
    assert found.means["R_cap@2"] == 0.5 and found.means["Recall@2"] == pytest.approx(1 / 3)
    assert found.means["Hole@2"] == 0.5 and found.means["MRR@2"] == 1.0
    elsewhere = evaluate_run(run, {"q": {"a": 1}, "other": {"b": 1}}, [2])  # b is judged, though for another query
    assert elsewhere.by_query["q"]["Hole@2"] == 0.0
    assert evaluate_run(run, {"q": {"a": 1}}, [2], remove_self=False).means["MRR@2"] == 0.5
    with pytest.raises(UserError, match="0 queries"):
        evaluate_run(run, {})
    with pytest.raises(UserError, match="k is 0"):
        evaluate_run(run, {"q": {"a": 1}}, [0])


def test_runs_are_written_and_read_in_both_forms(tmp_path):
    run = {"q 1".replace(" ", "_"): {"d{1}": 0.5, "d}2": 0.25, "é": 0.125}, "q2": {"a": -1.0}}
    for name in ("run.json", "run.trec"):
        write_run(run, tmp_path / name)
        assert read_run(tmp_path / name) == run
        assert read_run(tmp_path / name, keep=1) == {"q_1": {"d{1}": 0.5}, "q2": {"a": -1.0}}
    big = {f"q{query}": {f"d{doc}": doc / 7 for doc in range(2000)} for query in range(40)}
    with gzip.open(tmp_path / "big.json.gz", "wt") as file:
        json.dump(big, file)
    assert read_run(tmp_path / "big.json.gz", keep=3)["q39"] == {f"d{doc}": doc / 7 for doc in (1999, 1998, 1997)}
    for text, message in (
        ('{"q": {"a": "x"}}', "score 'x' is no number"),
        ('{"q": {"a": 1}', "the JSON ends early"),
        ('{"q": 3}', "must hold a mapping"),
        ('["q"]', "stands where '{' is needed"),
        ('{"q": {"a": 1}} {"r": {"a": 1}}', "'{' stands behind the end of the JSON"),
        ('{"q": {"a": 1} "r": {"a": 1}}', "stands where ',' is needed"),
        ('{"q": {"a": 1}, "q": {"b": 1}}', "query 'q': it stands there twice"),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(UserError, match=message):
            read_run(tmp_path / "bad.json")
    (tmp_path / "bad.json").write_bytes(b'{"q": {"a\xff": 1, "b": 2}}')
    with pytest.raises(UserError, match="is not a run, or is damaged"):
        read_run(tmp_path / "bad.json")
    (tmp_path / "marked.trec").write_text("q Q0 d 1 0.5 x\n", "utf-8-sig")
    (tmp_path / "marked.json").write_text('{"q": {"d": 0.5}}', "utf-8-sig")
    assert read_run(tmp_path / "marked.trec") == read_run(tmp_path / "marked.json") == {"q": {"d": 0.5}}
    (tmp_path / "bad.trec").write_text("q Q0 d 1 0.5\n")
    with pytest.raises(UserError, match="line 1: 5 columns where a TREC run has 6"):
        read_run(tmp_path / "bad.trec")


def test_fusion_counts_ranks_from_one_and_nothing_for_what_is_absent():
    fused = fuse_rrf([{"q": {"a": 3.0, "b": 1.0}}, {"q": {"b": 9.0}, "r": {"c": 1.0}}])
    assert fused == {"q": {"b": 1 / 62 + 1 / 61, "a": 1 / 61}, "r": {"c": 1 / 61}}
    weighted = fuse_rrf([{"q": {"a": 1.0}}, {"q": {"b": 1.0}}], weights=[1, 2], k=1)
    assert weighted == {"q": {"b": 2 / 61}}


def test_a_written_run_keeps_every_bit_of_its_scores_and_refuses_what_it_cannot_hold(tmp_path):
    close = [np.float32(0.7), np.nextafter(np.float32(0.7), np.float32(1), dtype=np.float32)]
    run = {"q": {"z": float(close[0]), "a": float(close[1])}}  # one step of fp32 apart: in eight digits they would tie
    write_run(run, tmp_path / "run.trec")
    assert read_run(tmp_path / "run.trec") == run and list(read_run(tmp_path / "run.trec")["q"]) == ["a", "z"]
    for odd in ({"q": {"my document": 1.0}}, {"my query": {"d": 1.0}}, {"q": {"": 1.0}}):
        with pytest.raises(UserError, match=r"has spaces, and TREC's columns"):
            write_run(odd, tmp_path / "odd.trec")
        write_run(odd, tmp_path / "odd.json")
        assert read_run(tmp_path / "odd.json") == odd
    (tmp_path / "twice.trec").write_text("q Q0 d 1 2 x\nq Q0 d 2 1 x\n")
    with pytest.raises(UserError, match="line 2: the document 'd' stands twice for the query 'q'"):
        read_run(tmp_path / "twice.trec")
