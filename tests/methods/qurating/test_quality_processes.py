"""Scores and filters by several processes: the bytes of one, also after a kill."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from quality_parts import WORDS, sentence

from lmlab.data import Tokenizer, record_source
from lmlab.errors import UserError
from lmlab.files import find_files
from lmlab.methods.qurating.analysis.score_corpus import score_corpus
from lmlab.methods.qurating.analysis.scoring import ScoredFiles
from lmlab.methods.qurating.selecting.materialize import filter_rows
from lmlab.methods.qurating.selecting.tables.files import Processes
from lmlab.methods.qurating.selecting.tables.table import RatedTable

TWO = Processes(2)
_MAKE = ScoredFiles.make


def copied(maker: ScoredFiles) -> ScoredFiles:
    """As it comes to another process."""
    found: ScoredFiles = ForkingPickler.loads(ForkingPickler.dumps(maker))
    return found


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of different columns, one of which is empty."""
    folder, rng = tmp_path_factory.mktemp("corpus"), np.random.default_rng(0)
    for shard in range(4):
        rows = {
            "id": [f"{shard}-{n}" for n in range(12)],
            "text": [sentence(rng, int(rng.integers(5, 30))) for _ in range(12)],
            "a_average": rng.standard_normal(12),
            "length": rng.integers(1, 50, 12),
        }
        if shard == 2:
            rows["extra"] = list(range(12))
        pq.write_table(pa.table(rows).slice(0, 0 if shard == 0 else 12), folder / f"{shard}.parquet")
    (folder.parent / "good.jsonl").write_text("".join(json.dumps({"text": f"{word} {word}"}) + "\n" for word in WORDS))
    grades = ({"index": f"1-{n}", "average": n % 6} for n in range(12))
    (folder.parent / "grades.jsonl").write_text("".join(json.dumps(each) + "\n" for each in grades))
    return folder


@pytest.fixture(scope="module")
def small_lm(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    place = tmp_path_factory.mktemp("lm")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_layers=1, d_model=16, num_heads=2, max_seq_len=64)
    save_pretrained(Transformer(config).initialize(0), place)
    tokenizer.save(place)
    return place


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def score(kind: str, corpus: Path, out: Path, model: Path, processes: Processes | None = None) -> int:
    given: dict[str, Any] = {
        "target": str(corpus.parent / "good.jsonl"),
        "grades": str(corpus.parent / "grades.jsonl"),
        "columns": ["a_average"],
        "model": model,
        "precision": "fp32",
    }
    return score_corpus(kind, [str(corpus)], out, kind, **given, processes=processes)


def test_two_processes_write_the_bytes_of_one(corpus: Path, small_lm: Path, tmp_path: Path) -> None:
    score("ppl", corpus, tmp_path / "one", small_lm)
    score("ppl", corpus, tmp_path / "two", small_lm, TWO)
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_filters_of_two_processes_write_the_bytes_of_one(corpus: Path, tmp_path: Path) -> None:
    bounds = {"a_average": 0.0}, {"length": 30.0}
    for kind, processes in (("parquet", TWO), ("jsonl", None)):
        counts = filter_rows([str(corpus)], *bounds, tmp_path / kind, kind)
        assert counts == filter_rows([str(corpus)], *bounds, tmp_path / f"{kind}-two", kind, processes)
        assert contents(tmp_path / kind) == contents(tmp_path / f"{kind}-two")
        kept = [row for _, row in record_source(str(tmp_path / kind)).records()]
        assert len(kept) == counts["kept"] and 0 < counts["kept"] < counts["rows"] == 36
        assert all(row["a_average"] >= 0 and row["length"] <= 30 for row in kept)
        assert {row["id"][0] for row in kept if row.get("extra") is not None} == {"2"}


def test_a_copy_of_a_scorer_gives_its_scores(
    corpus: Path, small_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What other processes get, without starting them for each kind."""
    for kind in ("dsir", "linear", "classifier", "buckets"):
        score(kind, corpus, tmp_path / "one", small_lm)
        one = contents(tmp_path / "one")
        with monkeypatch.context() as patch:
            patch.setattr(ScoredFiles, "make", lambda self, *given: _MAKE(copied(self), *given))
            score(kind, corpus, tmp_path / "two", small_lm)
        assert contents(tmp_path / "two") == one and len(one) == (6 if kind == "linear" else 5)
        rows = [row for _, row in record_source(str(tmp_path / "two")).records()]
        assert len(rows) == 36 and all(np.isfinite(row[f"{kind}_average"]) for row in rows)


def test_a_scoring_that_was_killed_goes_on_with_the_same_bytes(
    corpus: Path, small_lm: Path, tmp_path: Path, forkserver: Any
) -> None:
    score("ppl", corpus, tmp_path / "whole", small_lm)
    script = f"""\
import time
from pathlib import Path
from lmlab.methods.qurating.analysis import scoring
from lmlab.methods.qurating.analysis.score_corpus import score_corpus
make = scoring.ScoredFiles.make
def slow(*given):
    time.sleep(0.4)
    return make(*given)
scoring.ScoredFiles.make = slow
places = [{str(corpus)!r}], Path({str(tmp_path / "killed")!r})
score_corpus("ppl", *places, "ppl", model=Path({str(small_lm)!r}), precision="fp32")
"""
    (tmp_path / "score.py").write_text(script)
    process = forkserver.start(script=tmp_path / "score.py")[0]
    parts = tmp_path / "killed" / ".parts"
    until = time.monotonic() + 60
    while len(list(parts.glob("*/*.json"))) < 2:
        assert time.monotonic() < until and process.poll() is None, process.read_error()
        time.sleep(0.02)
    process.kill()
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("*/*.parquet.json")}
    with pytest.raises(UserError, match="cut off"):  # and nobody takes the half of it for the whole
        find_files(str(tmp_path / "killed"))
    score("ppl", corpus, tmp_path / "killed", small_lm)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole") and len(finished) >= 2


def test_what_was_made_of_another_corpus_is_not_taken(corpus: Path, tmp_path: Path) -> None:
    bounds: tuple[dict[str, float], dict[str, float]] = {"a_average": 0.0}, {}
    out = tmp_path / "out"
    left = out / ".parts" / "0123"
    left.mkdir(parents=True)
    for number in range(4):
        (left / f"{number}-of-4.parquet").write_bytes(b"of another")
        (left / f"{number}-of-4.parquet.json").write_text('{"rows": 1000}')
    assert filter_rows([str(corpus)], *bounds, out)["rows"] == 36
    assert {path.name for path in out.iterdir()} == {"lmlab-files.json", *(f"{n}-of-4.parquet" for n in range(4))}


def test_scores_are_not_written_over_a_column(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'a_average' already"):
        score_corpus("buckets", [str(corpus)], tmp_path / "out", "a", columns=["a_average"])
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "numbers.parquet")
    with pytest.raises(UserError, match="holds int64, not texts"):
        score_corpus(
            "dsir", [str(tmp_path / "numbers.parquet")], tmp_path / "out", "d", target=str(corpus.parent / "good.jsonl")
        )


def test_columns_are_those_of_the_first_file_that_has_any(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "0.jsonl").write_text("")
    (tmp_path / "1.jsonl").write_text('{"r": 1, "length": 2}\n')
    assert RatedTable(tmp_path).columns == ["r", "length"]
    assert filter_rows([str(tmp_path)], {"r": 0.0}, {}, tmp_path / "out", "jsonl")["kept"] == 1


def test_workers_are_options_of_both_commands(corpus: Path, tmp_path: Path, lmlab: Callable[..., Any]) -> None:
    out = ["--in", str(corpus), "--workers", "1", "--out", str(tmp_path / "out")]
    assert lmlab("quality", "filter", *out, "--min", "a_average=0").code == 0
    refused = lmlab("quality", "filter", *out[:2], "--workers", "0", "--min", "a_average=0")
    assert refused.code == 2
