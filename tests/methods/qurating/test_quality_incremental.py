"""Annotating a corpus again after it has changed: what is the same is not rated again, and nothing old survives."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.data import record_source
from lmlab.errors import UserError
from lmlab.files import check_owner
from lmlab.methods.qurating import Rater
from lmlab.methods.qurating.annotating import reuse
from lmlab.methods.qurating.annotating.annotate import annotate
from lmlab.methods.qurating.annotating.corpus import Annotation
from lmlab.methods.qurating.selecting.tables.table import RatedTable

SHARDS = ("b", "d", "f")


@pytest.fixture
def corpus(tmp_path: Path, rater: Rater, quality_texts: list[str]) -> Path:
    rater.save(tmp_path / "rater")
    (tmp_path / "corpus").mkdir()
    for number, name in enumerate(SHARDS):
        write(
            tmp_path / "corpus" / f"{name}.jsonl", [(f"{name}{n}", quality_texts[20 * number + n]) for n in range(20)]
        )
    return tmp_path / "corpus"


def write(path: Path, rows: list[tuple[str, str]], note: str = "") -> None:
    path.write_text("".join(json.dumps({"id": id, "text": text, "note": note}) + "\n" for id, text in rows))


def read(path: Path) -> list[tuple[str, str]]:
    return [(row["id"], row["text"]) for row in map(json.loads, path.read_text().splitlines())]


def run(corpus: Path, out: str = "out", **options: Any) -> dict[str, Any]:
    job = Annotation(str(corpus), str(corpus.parent / "rater"), str(corpus.parent / out), precision="fp32", block=8)
    return annotate(replace(job, **options))


def same_as_anew(corpus: Path) -> None:
    """The folder is what a first annotation of the corpus writes."""
    anew = corpus.parent / f"anew-{len(list(corpus.parent.iterdir()))}"
    run(corpus, anew.name)
    left, right = (sorted(path.name for path in (corpus.parent / name).iterdir()) for name in ("out", anew.name))
    assert left == right
    for name in (each for each in left if each.endswith(".parquet")):
        ours, theirs = (pq.read_table(folder / name).to_pylist() for folder in (corpus.parent / "out", anew))
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert {**a, **dict.fromkeys(SCORES)} == {**b, **dict.fromkeys(SCORES)}
            assert a["one_average"] == pytest.approx(b["one_average"], abs=1e-5)


SCORES = ("one_average", "two_average", "one_chunks", "two_chunks")


def test_an_edited_a_new_and_a_removed_row(corpus: Path, quality_texts: list[str]) -> None:
    assert run(corpus)["rated"] == 60
    rows = read(corpus / "d.jsonl")
    rows[3] = (rows[3][0], "edited " + rows[3][1])
    rows.insert(10, ("new", "a row that nobody has seen before"))
    del rows[15:17]
    write(corpus / "d.jsonl", rows)
    found = run(corpus)
    assert (found["rows"], found["rated"], found["reused"]) == (59, 2, 17)
    same_as_anew(corpus)
    assert run(corpus)["rated"] == 0


def test_a_shard_that_is_added_in_the_middle_is_all_that_is_rated(corpus: Path, quality_texts: list[str]) -> None:
    run(corpus)
    times = {path.name: path.stat().st_ino for path in (corpus.parent / "out").glob("*.parquet")}
    write(corpus / "c.jsonl", [("c0", "one more"), ("c1", "and another one")])
    found = run(corpus)
    assert (found["rows"], found["rated"], found["reused"]) == (62, 2, 0)
    same_as_anew(corpus)
    moved = {"00000.parquet": "00000.parquet", "00001.parquet": "00002.parquet", "00002.parquet": "00003.parquet"}
    assert all((corpus.parent / "out" / new).stat().st_ino == times[old] for old, new in moved.items())


def test_a_shard_that_is_removed_renamed_or_split_leaves_nothing_behind(corpus: Path) -> None:
    run(corpus)
    (corpus / "f.jsonl").unlink()
    os.rename(corpus / "b.jsonl", corpus / "z.jsonl")
    rows = read(corpus / "d.jsonl")
    write(corpus / "d.jsonl", rows[:9])
    write(corpus / "e.jsonl", rows[9:])
    found = run(corpus)
    assert (found["rows"], found["rated"], found["reused"]) == (40, 0, 40)
    same_as_anew(corpus)


def test_other_columns_follow_the_corpus_and_cost_no_rating(corpus: Path) -> None:
    run(corpus)
    write(corpus / "d.jsonl", read(corpus / "d.jsonl"), note="reviewed")
    found = run(corpus)
    assert (found["rated"], found["reused"]) == (0, 20)
    assert {row["note"] for row in pq.read_table(corpus.parent / "out/00001.parquet").to_pylist()} == {"reviewed"}


@pytest.mark.parametrize("after", [1, 2])
def test_a_kill_while_a_change_is_annotated_loses_nothing(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    run(corpus)
    write(corpus / "a.jsonl", [(f"a{n}", f"something new of number {n}") for n in range(20)])
    rows = read(corpus / "d.jsonl")
    write(corpus / "d.jsonl", [*rows[5:], ("late", "the last one of all")])
    original, calls = Rater.rate_ids, []

    def dies(self: Rater, documents: Any) -> Any:
        calls.append(len(documents))
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(self, documents)

    monkeypatch.setattr(Rater, "rate_ids", dies)
    with pytest.raises(KeyboardInterrupt):
        run(corpus)
    with pytest.raises(UserError, match="was cut off"):  # half of two states is none
        record_source(str(corpus.parent / "out")).files()
    monkeypatch.setattr(Rater, "rate_ids", original)
    found = run(corpus)
    assert found["rated"] == 21 - 8 * after and found["rows"] == 76
    same_as_anew(corpus)
    assert len(RatedTable(str(corpus.parent / "out")).files) == 4


def test_another_rater_is_refused_and_another_command_too(corpus: Path, rater: Rater) -> None:
    run(corpus)
    with pytest.raises(UserError, match="another corpus, or by another rater"):
        run(corpus, text="note")
    with pytest.raises(UserError, match="lmlab quality annotate"):
        check_owner(corpus.parent / "out", "lmlab quality select")


def test_a_corpus_is_never_annotated_into_its_own_folder_nor_into_that_of_another(corpus: Path) -> None:
    folder = corpus.parent / "other"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["mine"], "text": ["a text"]}), folder / "00000.parquet")
    before = (folder / "00000.parquet").read_bytes()
    for source, said in ((corpus, "not of an annotation"), (folder, "holds what is read")):
        with pytest.raises(UserError, match=said):
            run(source, "other")
        assert [path.read_bytes() for path in folder.iterdir()] == [before]


def test_a_damaged_output_is_made_again(corpus: Path) -> None:
    run(corpus)
    whole = (corpus.parent / "out" / "00001.parquet").read_bytes()
    for damaged in (whole[:100], b""):
        (corpus.parent / "out" / "00001.parquet").write_bytes(damaged)
        assert run(corpus)["rated"] == 20
        assert (corpus.parent / "out" / "00001.parquet").read_bytes() == whole


def test_rows_mixed_among_many_shards_read_each_file_once(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus)
    rows = [row for name in SHARDS for row in read(corpus / f"{name}.jsonl")]
    for place, name in enumerate(SHARDS):
        write(corpus / f"{name}.jsonl", rows[place::3])
    opened: list[str] = []
    real = reuse.pq.read_table
    monkeypatch.setattr(reuse.pq, "read_table", lambda path, **more: opened.append(str(path)) or real(path, **more))
    found = run(corpus)
    assert (found["rated"], found["reused"]) == (0, 60) and len(opened) == len(set(opened)) == 3
    same_as_anew(corpus)
