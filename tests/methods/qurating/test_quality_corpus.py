"""Annotating a corpus with kills, sharing of the work, curricula, other scorers, bias."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.data import Loader, Tokenizer
from lmlab.errors import UserError
from lmlab.files import read_jsonl
from lmlab.methods.qurating import Rater, select
from lmlab.methods.qurating.analysis.analyze import AnalysisConfig, analyze
from lmlab.methods.qurating.analysis.bias import bias_report
from lmlab.methods.qurating.analysis.score_corpus import score_corpus
from lmlab.methods.qurating.analysis.scorers import LinearClassifier, ensemble_buckets, percentile_buckets, tiers
from lmlab.methods.qurating.annotating.annotate import annotate
from lmlab.methods.qurating.annotating.corpus import Annotation
from lmlab.methods.qurating.rating.problems import TokenizerMismatch
from lmlab.methods.qurating.selecting.curriculum import order_rows, write_ordered
from lmlab.methods.qurating.selecting.materialize import filter_rows, materialize
from lmlab.methods.qurating.selecting.problems import NonFiniteRating
from lmlab.methods.qurating.selecting.settings import SelectionConfig


@pytest.fixture
def place(tmp_path: Path, rater: Rater, quality_texts: list[str]) -> Path:
    rater.save(tmp_path / "rater")
    (tmp_path / "corpus").mkdir()
    for shard in range(2):
        lines = [
            json.dumps({"doc_id": f"s{shard}-{number}", "text": text, "meta": {"source": "ab"[number % 2]}})
            for number, text in enumerate(quality_texts[shard * 30 : shard * 30 + 30])
        ]
        (tmp_path / "corpus" / f"{shard}.jsonl").write_text("\n".join(lines) + "\n")
    return tmp_path


def job(place: Path, name: str, **options: Any) -> Annotation:
    values = {
        "corpus": str(place / "corpus"),
        "rater": str(place / "rater"),
        "out": str(place / name),
        "id": "doc_id",
        "precision": "fp32",
        "block": 8,
    }
    return Annotation(**values | options)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_folder_that_noted_the_corpus_as_it_was_written_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmlab.methods.qurating.annotating import annotate as module

    monkeypatch.chdir(place)
    with monkeypatch.context() as before:
        before.setattr(module, "absolute", str)
        assert annotate(job(place, "out", corpus="corpus"))["rated"] == 60
    assert annotate(job(place, "out", corpus="corpus"))["rated"] == 0


def test_an_annotation_has_the_published_columns_and_keeps_the_others(
    place: Path, rater: Rater, quality_texts: list[str]
) -> None:
    found = annotate(job(place, "out"))
    table = rows(place / "out")
    assert found["rows"] == len(table) == 60 and [row["text"] for row in table] == quality_texts
    assert table[3]["doc_id"] == "s0-3" and table[3]["meta"] == {"source": "b"}
    for row in table[::7]:
        ids = rater.tokenizer.encode(row["text"])
        assert row["chunk_lengths"] == [32] * (len(ids) // 32) + [len(ids) % 32] * (len(ids) % 32 > 0) and row[
            "length"
        ] == len(ids)
        chunks = rater.score_ids([ids[start : start + 32] for start in range(0, len(ids), 32)])
        np.testing.assert_allclose(row["one_chunks"], chunks[:, 0], atol=1e-4)
        assert row["one_average"] == pytest.approx(
            np.average(row["one_chunks"], weights=row["chunk_lengths"]), abs=1e-6
        )


def test_records_that_cannot_be_read_are_counted_by_reason_and_listed(place: Path) -> None:
    corpus = place / "corpus" / "0.jsonl"
    corpus.write_text("{\n3\n" + corpus.read_text() + json.dumps({"text": "", "rejected": "by its author"}) + "\n")
    found = annotate(job(place, "out", id=None))
    assert (found["rows"], found["empty"], found["rejects"]) == (63, 3, 2)
    listed = list(read_jsonl(place / "out" / "rejects.jsonl"))
    assert [row["where"] for row in listed] == ["0.jsonl:1", "0.jsonl:2"]
    assert found["reject_reasons"] == {row["reason"].partition(" (")[0]: 1 for row in listed}


@pytest.mark.parametrize(("block", "batch"), [(5, 64), (60, 4096)])
def test_ratings_do_not_depend_on_blocks_and_batches(
    place: Path, quality_texts: list[str], block: int, batch: int
) -> None:
    annotate(job(place, "out", block=block))
    expected = Rater.from_pretrained(place / "rater", precision="fp32", batch_tokens=batch).rate(quality_texts)
    np.testing.assert_allclose(
        [[row["one_average"], row["two_average"]] for row in rows(place / "out")], expected, atol=1e-4
    )


def test_an_annotation_that_was_cut_off_goes_on_bit_for_bit(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    annotate(job(place, "whole"))
    original, calls = Rater.rate_ids, []

    def dies(self: Rater, documents: Any) -> Any:
        calls.append(len(documents))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, documents)

    monkeypatch.setattr(Rater, "rate_ids", dies)
    with pytest.raises(KeyboardInterrupt):
        annotate(job(place, "cut"))
    monkeypatch.setattr(Rater, "rate_ids", original)
    assert annotate(job(place, "cut"))["rated"] == 60 - 3 * 8
    for name in ("00000.parquet", "00001.parquet"):
        assert pq.read_table(place / "whole" / name).equals(pq.read_table(place / "cut" / name))


@pytest.mark.slow
def test_a_killed_process_loses_one_block_and_its_lease_is_taken_over(place: Path) -> None:
    annotate(job(place, "whole"))
    code = f"""\
import time
from lmlab.methods.qurating.annotating.annotate import *
from lmlab.methods.qurating.rating.rater import Rater
original = Rater.rate_ids
def slow(self, documents):
    time.sleep(0.3)
    return original(self, documents)
Rater.rate_ids = slow
annotate({job(place, "killed")!r})
"""
    process = subprocess.Popen([sys.executable, "-c", code])
    while not len(list((place / "killed" / ".parts").glob("*.parquet"))) >= 2:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    done = len(list((place / "killed" / ".parts").glob("*.parquet")))
    assert annotate(job(place, "killed"))["rated"] <= 60 - 8 * min(done, 2)
    for name in ("00000.parquet", "00001.parquet"):
        assert pq.read_table(place / "whole" / name).equals(pq.read_table(place / "killed" / name))


@pytest.mark.slow
def test_processes_share_the_work(place: Path) -> None:
    annotate(job(place, "one"))
    assert annotate(job(place, "two"), workers=2)["rated"] == 60
    for name in ("00000.parquet", "00001.parquet"):
        assert pq.read_table(place / "one" / name).equals(pq.read_table(place / "two" / name))


def test_another_rater_s_folder_is_refused(place: Path, tokenizer: Tokenizer) -> None:
    annotate(job(place, "out"))
    with pytest.raises(UserError, match="another"):
        annotate(job(place, "out", block=9))


def test_an_empty_text_has_no_rating_and_is_flagged(place: Path) -> None:
    (place / "corpus" / "0.jsonl").write_text('{"doc_id": "x", "text": ""}\n{"doc_id": "y", "text": "river"}\nbroken\n')
    found = annotate(job(place, "out"))
    table = rows(place / "out")[:3]
    assert found["empty"] == 2 and [row["empty"] for row in table] == [True, False, True]
    assert table[0]["one_average"] is None and table[0]["length"] == 0 and "JSON" in table[2]["unreadable"]


def test_records_of_another_split_are_not_rated(place: Path) -> None:
    lines = [{"doc_id": name, "text": "river", "split": split} for name, split in (("x", "train"), ("y", "test"))]
    (place / "corpus" / "0.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "corpus" / "1.jsonl").unlink()
    found = annotate(job(place, "out"))
    assert [row["empty"] for row in rows(place / "out")] == [False, True]
    assert rows(place / "out")[1]["unreadable"] == "of the split test" and found["other_splits"] == 1
    annotate(job(place, "test", split="test"))
    assert [row["empty"] for row in rows(place / "test")] == [True, False]
    annotate(job(place, "all", split="all"))
    assert [row["empty"] for row in rows(place / "all")] == [False, False]


def test_ids_of_another_tokenizer_are_not_used(place: Path, tokenizer: Tokenizer, caplog: Any) -> None:
    tokenizer.save(place / "same")
    Tokenizer.train(["other text"], 300).save(place / "other")
    ids = [tokenizer.encode(f"river stone {number}") for number in range(5)]
    (place / "ids").mkdir()
    pq.write_table(pa.table({"input_ids": ids}), place / "ids" / "a.parquet")
    common = {"corpus": str(place / "ids"), "input_ids": "input_ids", "id": None}
    annotate(job(place, "same-out", ids_tokenizer=str(place / "same"), **common))
    assert rows(place / "same-out")[2]["length"] == len(ids[2])
    for other in (str(place / "other"), None):
        with pytest.raises(TokenizerMismatch):
            annotate(job(place, "no", ids_tokenizer=other, **common))
    pq.write_table(pa.table({"input_ids": ids, "text": ["stone"] * 5}), place / "ids" / "a.parquet")
    annotate(job(place, "again", ids_tokenizer=str(place / "other"), **common))
    assert "tokenized again" in caplog.text and rows(place / "again")[0]["length"] == len(tokenizer.encode("stone"))


def test_chosen_rows_are_written_in_shards_that_hold_the_manifest(place: Path) -> None:
    annotate(job(place, "out"))
    manifest = select(
        str(place / "out"), metric="one_average", mode="sample", tau=1.0, tokens=2000, id="doc_id", domain="meta.source"
    )
    written = materialize(str(place / "out"), manifest, place / "chosen", shard_tokens=500)
    assert [path.name for path in written] == [
        f"{number}-of-{len(written)}.parquet" for number in range(len(written))
    ] and len(written) > 2
    table = pa.concat_tables([pq.read_table(path) for path in written])
    assert sorted(table.column("doc_id").to_pylist()) == sorted(manifest.ids)
    assert sum(table.column("length").to_pylist()) == manifest.num_tokens


def test_filters_keep_what_is_within_bounds(tmp_path: Path) -> None:
    table = pa.table({"a_average": [0.0, 1.0, 2.0, None], "length": [1, 2, 3, 4]})
    assert filter_rows(table, {"a_average": 1.0}, {"length": 2.0}, tmp_path) == {"rows": 4, "kept": 1, "nonfinite": 1}
    assert pq.read_table(tmp_path / "0-of-1.parquet").to_pylist() == [{"a_average": 1.0, "length": 2}]


def test_a_curriculum_is_in_the_order_of_its_keys(tmp_path: Path) -> None:
    from lmlab.methods.qurating import keyed_gumbel

    rng = np.random.default_rng(0)
    table = {"id": np.arange(50), "r_average": rng.standard_normal(50), "text": [f"t{number}" for number in range(50)]}
    z = (table["r_average"] - table["r_average"].mean()) / table["r_average"].std()
    order = np.asarray(order_rows(table, "r_average", tau=2.0, id="id").column("row"))
    assert order.tolist() == np.argsort(z / 2 + keyed_gumbel(np.arange(50), 42)).tolist()
    down = write_ordered(table, "r_average", tmp_path, descending=True)
    assert [json.loads(line)["id"] for line in down.read_text().splitlines()] == np.argsort(-z).tolist()
    with pytest.raises(NonFiniteRating):
        order_rows({"r_average": [1.0, None]}, "r_average")


class OrderedRows:
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"number": np.array([index])}


@pytest.mark.parametrize("resume", [0, 1, 5])
def test_the_order_survives_ranks_accumulation_and_resuming(resume: int) -> None:
    from lmlab.train.steps.step import micro_batches

    ranks = []
    for rank in range(4):
        first = Loader(OrderedRows(), 8, 0, rank, 4, shuffle=False)
        iterator = iter(first)
        batches = [next(iterator) for _ in range(resume)]
        again = Loader(OrderedRows(), 8, 0, rank, 4, shuffle=False)
        again.restore(first.state())
        batches += list(again)
        ranks.append([part["number"].ravel().tolist() for batch in batches for part in micro_batches(batch, 1)])
    seen = [number for parts in zip(*ranks, strict=True) for part in parts for number in part]
    assert seen == list(range(64))


@pytest.mark.parametrize("kind", ["dsir", "linear"])
def test_scorers_of_n_grams_prefer_what_looks_like_the_target(kind: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    good = ["the quiet river runs past an old garden " + str(rng.integers(9)) for _ in range(60)]
    bad = ["buy cheap pills click here win money " + str(rng.integers(9)) for _ in range(240)]
    (tmp_path / "target.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in good[:30]))
    pq.write_table(pa.table({"text": good[30:] + bad, "length": [9] * 270}), tmp_path / "corpus.parquet")
    score_corpus(
        kind, [str(tmp_path / "corpus.parquet")], tmp_path / "out", kind, target=str(tmp_path / "target.jsonl")
    )
    values = np.array(pq.read_table(tmp_path / "out" / "00000.parquet").column(f"{kind}_average").to_pylist())
    assert values[:30].min() > values[30:].max()
    chosen = select(str(tmp_path / "out" / "00000.parquet"), metric=f"{kind}_average", mode="top_k", tokens=30 * 9)
    assert sorted(chosen.ids) == list(range(30))


def test_dsir_is_the_ratio_of_two_bags_of_hashed_words() -> None:
    from lmlab.methods.qurating.analysis.scorers import DSIR, hashed_counts

    model = DSIR.fit(["a b", "a"], ["b c"], 50)
    target, raw = (np.asarray(hashed_counts(texts, 50).sum(0)).ravel() + 1 for texts in (["a b", "a"], ["b c"]))
    own = np.asarray(hashed_counts(["a c"], 50).todense()).ravel()
    expected = (own * (np.log(target / target.sum()) - np.log(raw / raw.sum()))).sum()
    assert model.score(["a c"])[0] == pytest.approx(expected)


def test_a_linear_classifier_comes_back_from_json(tmp_path: Path) -> None:
    model = LinearClassifier.fit(["good text"] * 5, ["bad words"] * 5, 100)
    model.save(tmp_path / "m.json")
    assert LinearClassifier.load(tmp_path / "m.json").score(["good words"]) == pytest.approx(
        model.score(["good words"])
    )


def test_perplexity_is_the_mean_log_likelihood_of_transformers(
    tmp_path: Path, tokenizer: Tokenizer, quality_texts: list[str]
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from lmlab.methods.qurating.analysis.scorers import log_likelihoods
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    model = Transformer(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=64, init_std=0.3
        )
    )
    save_pretrained(model.initialize(0), tmp_path)
    tokenizer.save(tmp_path)
    found = log_likelihoods(tmp_path, [*quality_texts[:3], ""], window=40, precision="fp32")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    for text, value in zip(quality_texts[:3], found, strict=False):
        ids, total = tokenizer.encode(text), 0.0
        for start in range(0, len(ids), 40):
            piece = torch.tensor([[tokenizer.bos_id, *ids[start : start + 40]]])
            with torch.no_grad():
                logs = theirs(piece).logits[0, :-1].log_softmax(-1)
            total += float(logs.gather(1, piece[0, 1:, None]).sum())
        assert value == pytest.approx(total / len(ids), abs=1e-4)
    assert np.isnan(found[3])


def test_buckets_take_the_highest_rank_over_scorers() -> None:
    scores = np.stack([np.arange(100.0), np.arange(100.0)[::-1]], 1)
    assert np.bincount(percentile_buckets(scores[:, 0])).tolist() == [5] * 20
    bucket = ensemble_buckets(scores)
    assert (bucket[0] == 19 == bucket[99] and bucket.min() == 9) or bucket.min() == 10
    assert tiers(np.array([0, 19])) == ["low", "high"]


def test_the_bias_table_shows_a_planted_dialect() -> None:
    rng = np.random.default_rng(0)
    count = 6000
    dialect = np.where(rng.random(count) < 0.2, "planted", "other")
    rating = rng.standard_normal(count) - (dialect == "planted")
    table = {"length": np.full(count, 10), "r_average": rating, "dialect": dialect}
    manifest = select(table, metric="r_average", mode="sample", tau=1.0, tokens=6000)
    chosen = np.zeros(count, bool)
    chosen[np.asarray(manifest.table.column("row"))] = True
    z = (rating - rating.mean()) / rating.std()
    from lmlab.methods.qurating import inclusion_probability

    p = inclusion_probability(z, table["length"], 6000, 1.0)
    truth = p[dialect == "planted"].mean() / p.mean()
    planted = next(each for each in bias_report(z, chosen, dialect.tolist()) if each.group == "planted")
    assert planted.ratio.low <= truth <= planted.ratio.high < 0.8
    config = SelectionConfig(mode="sample", metric="r_average", tau=1.0, tokens=6000)
    found = analyze(
        {**table, "text": ["x y"] * count},
        manifest,
        config,
        AnalysisConfig(clusters=0, groups=("dialect",), examples=1),
    )
    assert [row["ratio"]["value"] for row in found.bias["dialect"] if row["group"] == "planted"] == [
        pytest.approx(planted.ratio.value)
    ]
    assert planted.mean_z.value == pytest.approx(-0.8 / rating.std(), abs=0.1)


def test_a_rating_and_a_length_of_any_name_are_looked_into() -> None:
    count = 300
    table = {"grade": np.arange(count) / count, "size": np.full(count, 10), "text": ["x y z"] * count}
    config = SelectionConfig(mode="top_k", metric="grade", length="size", tokens=1000)
    settings = AnalysisConfig(clusters=0, examples=1)
    found = analyze(table, select(table, config), config, settings)
    assert found.criteria == ["grade"] and sum(found.histograms["grade"]["chosen"]) >= 99
    assert [row["rows"] for row in found.thresholds] == [270, 210, 150, 90, 30]
    counted = {"grade": table["grade"], "text": table["text"]}
    config = SelectionConfig(mode="uniform", tokens=300)
    measure = lambda texts: np.array([len(text.split()) for text in texts.to_pylist()])  # noqa: E731
    manifest = select(counted, config, measure=measure)
    assert len(manifest) == 100
    assert analyze(counted, manifest, config, settings, measure=measure).criteria == []
    with pytest.raises(UserError, match="neither a column 'length'"):
        analyze(counted, manifest, config, settings)
