"""Folders that commands write, and passes over corpora that are larger than memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.data import Tokenizer, record_source
from lmlab.errors import UserError
from lmlab.files import read_json
from lmlab.methods.qurating import select
from lmlab.methods.qurating.analysis.score_corpus import score_corpus
from lmlab.methods.qurating.selecting.curriculum import write_ordered
from lmlab.methods.qurating.selecting.materialize import materialize


@pytest.fixture
def tiny_lm(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=32, num_heads=2, max_seq_len=128)
    save_pretrained(Transformer(config).initialize(0), tmp_path / "lm")
    tokenizer.save(tmp_path / "lm")
    return tmp_path / "lm"


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_a_second_choice_replaces_the_first(tmp_path: Path, kind: str, lmlab: Callable[..., Any]) -> None:
    rng = np.random.default_rng(0)
    table = {"id": np.arange(400), "text": [f"t{n}" for n in range(400)], "length": [10] * 400}
    pq.write_table(pa.table({**table, "r": rng.standard_normal(400)}), tmp_path / "corpus.parquet")
    common = ["quality", "select", "--in", tmp_path / "corpus.parquet", "--mode", "sample"]
    common += ["--metric", "r", "--format", kind]
    out = tmp_path / "out"
    for tokens, shard in ((3800, 500), (1900, 1000)):
        assert lmlab(*map(str, [*common, "--tokens", tokens, "--shard-tokens", shard, "--out", out])).code == 0
        read = [record["id"] for _, record in record_source(str(out)).records()]
        assert len(read) == len(set(read)) == tokens // 10
    assert len(list(out.glob(f"*-of-*.{kind}"))) == 2
    refused = lmlab("quality", "filter", "--in", str(out), "--min", "r=0", "--out", str(out))
    assert refused.code == 2 and "lmlab quality select" in refused.err
    assert len(list(record_source(str(out)).records())) == 190


def test_what_a_report_wrote_beside_a_choice_goes_with_it(tmp_path: Path, lmlab: Callable[..., Any]) -> None:
    table = {"id": list(range(60)), "r": np.arange(60.0), "length": [5] * 60, "text": [f"text {n}" for n in range(60)]}
    pq.write_table(pa.table(table), tmp_path / "rated.parquet")
    (tmp_path / "chosen").mkdir()
    (tmp_path / "chosen/mine.md").write_text("mine")
    choose = ("quality", "select", "--in", tmp_path / "rated.parquet", "--metric", "r", "--mode", "top_k")
    assert lmlab(*choose, "--tokens", "50%", "--out", tmp_path / "chosen").code == 0
    look = ("quality", "report", "--in", tmp_path / "rated.parquet", "--selection", tmp_path / "chosen")
    found = lmlab(*look, "--clusters", 0, "--out", tmp_path / "q.html")
    assert found.code == 0, found.err
    notes = {"analysis.json", "extremes.md", "plan.json"}
    assert notes <= {path.name for path in (tmp_path / "chosen").iterdir()}
    assert lmlab(*choose, "--tokens", "20%", "--out", tmp_path / "chosen").code == 0
    left = {path.name for path in (tmp_path / "chosen").iterdir()}
    assert not notes & left and {"mine.md", "selection.json", "0-of-1.parquet"} <= left


def test_thousands_of_domains_are_shown_by_the_largest(tmp_path: Path, lmlab: Callable[..., Any]) -> None:
    count = 3000
    labels = [f"d{n}" if n % 2 else f"large {n % 10}" for n in range(count)]
    table = {"id": list(range(count)), "r": np.arange(count) / count, "length": [5] * count, "d": labels}
    pq.write_table(pa.table(table | {"text": ["a text"] * count}), tmp_path / "rated.parquet")
    choose = ("quality", "select", "--in", tmp_path / "rated.parquet", "--metric", "r", "--mode", "top_k")
    assert lmlab(*choose, "--tokens", "50%", "--domain", "d", "--out", tmp_path / "chosen").code == 0
    look = ("quality", "report", "--in", tmp_path / "rated.parquet", "--selection", tmp_path / "chosen")
    found = lmlab(*look, "--clusters", 0, "--groups", "d", "--out", tmp_path / "q.html")
    assert found.code == 0, found.err
    page = (tmp_path / "q.html").read_text()
    assert "1,456 others" in page and "1,482 others" in page
    analysis = read_json(tmp_path / "chosen/analysis.json")
    assert len(analysis["bias"]["d"]) == len(analysis["histograms"]["r"]["domains"]) == 24
    assert sum(row["rows"] for row in analysis["bias"]["d"]) == count
    plan = lmlab(
        "quality", "plan", "--in", tmp_path / "rated.parquet", "--metric", "r", "--tokens", 100, "--domain", "d"
    )
    assert plan.code == 0 and "the 12 largest" in plan.out


def test_an_external_sort_orders_as_one_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmlab.methods.qurating.selecting.curriculum._BUCKET_ROWS", 64)
    rng = np.random.default_rng(0)
    rows = [{"id": f"d{n}", "r": float(rng.integers(5)), "note": [None, 1, 2.5][n % 3]} for n in range(1000)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = write_ordered(tmp_path / "in.jsonl", "r", tmp_path / "out", id="id", kind="parquet")
    assert pq.read_table(path).column("id").to_pylist() == [
        row["id"] for row in sorted(rows, key=lambda row: (row["r"], row["id"]))
    ]
    assert [each.name for each in (tmp_path / "out").iterdir()] == [path.name]


def test_a_killed_scoring_goes_on_and_the_model_is_loaded_once(
    tmp_path: Path, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lmlab.methods.qurating.analysis import scoring as module
    from lmlab.methods.qurating.analysis.scorers import LikelihoodScorer, log_likelihoods

    texts = [f"the words of text number {n}" for n in range(40)]
    for shard in range(2):
        pq.write_table(pa.table({"text": texts[20 * shard : 20 * shard + 20]}), tmp_path / f"{shard}.parquet")
    monkeypatch.setattr(module, "BLOCK", 8)
    calls, whole = [], LikelihoodScorer.__call__

    def killed(self: LikelihoodScorer, some: Sequence[str]) -> Any:
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(list(some))
        return whole(self, some)

    places = [str(tmp_path / f"{shard}.parquet") for shard in range(2)]
    monkeypatch.setattr(LikelihoodScorer, "__call__", killed)
    with pytest.raises(KeyboardInterrupt):
        score_corpus("ppl", places, tmp_path / "out", "ppl", model=tiny_lm)

    def counted(self: LikelihoodScorer, some: Sequence[str]) -> Any:
        calls.append(list(some))
        return whole(self, some)

    monkeypatch.setattr(LikelihoodScorer, "__call__", counted)
    assert score_corpus("ppl", places, tmp_path / "out", "ppl", model=tiny_lm) == 40
    assert sum(map(len, calls)) == 40  # none twice
    found = pq.read_table(record_source(str(tmp_path / "out")).files()).column("ppl_average").to_numpy()
    monkeypatch.setattr(LikelihoodScorer, "__call__", whole)
    assert found == pytest.approx(log_likelihoods(tiny_lm, texts), abs=1e-5)


@pytest.mark.parametrize("kind", ["parquet", "jsonl"])
def test_columns_that_only_some_files_or_records_have_are_kept(
    tmp_path: Path, kind: str, lmlab: Callable[..., Any]
) -> None:
    rows = [
        {"id": "a", "length": 1, "r": 1.0, "none": None},
        {"id": "b", "length": 1, "r": 2.0, "none": None, "extra": "E"},
        {"id": "c", "length": 1, "r": 3.0, "other": 7},
    ]
    (tmp_path / "in").mkdir()
    for number, part in enumerate((rows[:2], rows[2:])):
        if kind == "jsonl":
            (tmp_path / "in" / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
        else:
            columns = {name: [row.get(name) for row in part] for name in part[-1]}
            pq.write_table(pa.table(columns), tmp_path / "in" / f"{number}.parquet")
    wanted = {row["id"]: (row.get("extra"), row.get("other")) for row in rows}
    for command in (
        ["filter", "--min", "r=0"],
        ["order", "--metric", "r"],
        ["select", "--mode", "top_k", "--metric", "r", "--tokens", "3"],
        ["score", "buckets", "--columns", "r"],
    ):
        out = tmp_path / command[0]
        assert lmlab("quality", command[0], *command[1:], "--in", str(tmp_path / "in"), "--out", str(out)).code == 0
        found = {row["id"]: (row.get("extra"), row.get("other")) for _, row in record_source(str(out)).records()}
        assert found == wanted, command


def test_rows_of_another_corpus_are_not_left_out_silently(tmp_path: Path) -> None:
    chosen = select({"id": [1, 2, 3], "r": [1.0, 2.0, 3.0], "length": [1, 1, 1]}, mode="top_k", metric="r", tokens=3)
    with pytest.raises(UserError, match="2 of the 3 chosen rows"):
        materialize({"id": [1], "r": [1.0], "length": [1]}, chosen, tmp_path)
