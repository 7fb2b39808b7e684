"""Attribute files beside documents, in the form of Dolma."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lmlab.errors import UserError
from lmlab.methods.qurating import Rater, select
from lmlab.methods.qurating.analysis.attributes import join_attributes, write_attributes
from lmlab.methods.qurating.selecting.tables.table import RatedTable


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    for shard in range(2):
        rows = [{"id": f"{shard}-{n}", "text": "é" * (n + 1), "length": n + 1, "r_average": n / 7} for n in range(5)]
        rows[3]["r_average"] = None
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "docs" / f"part-{shard}.parquet")
    return tmp_path / "docs"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.decompress(path.read_bytes()).decode().splitlines()]


def test_ratings_go_out_as_spans_and_come_back_as_columns(documents: Path, tmp_path: Path, lmlab: Any) -> None:
    out = tmp_path / "attributes"
    assert lmlab("quality", "attributes", "--in", documents, "--name", "edu", "--out", out).code == 0
    written = lines(out / "part-1.jsonl.gz")
    assert written[2] == {"id": "1-2", "attributes": {"edu__r_average": [[0, 3, 2 / 7]]}}
    assert written[3]["attributes"] == {"edu__r_average": []}
    joined = lmlab("quality", "join", documents, "--attributes", out, "--out", tmp_path / "joined")
    assert joined.code == 0 and "10 rows" in joined.out
    table = pa.concat_tables(map(pq.read_table, RatedTable(str(tmp_path / "joined")).files)).to_pylist()
    assert [row["edu__r_average_average"] for row in table] == [row["r_average"] for row in table]
    options: dict[str, Any] = {"metric": "edu__r_average_average", "mode": "top_k", "drop_nonfinite": True}
    assert select(str(tmp_path / "joined"), tokens=6, **options).ids == ["0-4", "1-4"]


@pytest.mark.parametrize(
    ("ending", "written"), [(".json.gz", ".json.gz"), (".jsonl.gz", ".jsonl.gz"), (".jsonl", ".jsonl.gz")]
)
def test_attributes_of_an_annotation_stand_beside_its_documents(
    tmp_path: Path, rater: Rater, lmlab: Any, ending: str, written: str
) -> None:
    rater.save(tmp_path / "rater")
    (tmp_path / "documents").mkdir()
    for name in ("b", "a"):
        rows = "".join(json.dumps({"id": f"{name}-{n}", "text": "river stone " * (n + 1)}) + "\n" for n in range(3))
        packed = gzip.compress(rows.encode()) if ending.endswith(".gz") else rows.encode()
        (tmp_path / f"documents/{name}{ending}").write_bytes(packed)
    rated, out = tmp_path / "rated", tmp_path / "attributes"
    assert lmlab("quality", "annotate", tmp_path / "documents", "--rater", tmp_path / "rater", "--out", rated).code == 0
    assert lmlab("quality", "attributes", "--in", rated, "--name", "q", "--out", out).code == 0
    assert sorted(path.name for path in out.glob("*.gz")) == [f"a{written}", f"b{written}"]
    assert [row["id"] for row in lines(out / f"a{written}")] == ["a-0", "a-1", "a-2"]
    joined = lmlab("quality", "join", tmp_path / "documents", "--attributes", out, "--out", tmp_path / "joined")
    assert joined.code == 0, joined.err
    whole, back = (
        pa.concat_tables(map(pq.read_table, RatedTable(str(each)).files)).to_pylist()
        for each in (rated, tmp_path / "joined")
    )
    assert [row["q__one_average_average"] for row in back] == [row["one_average"] for row in whole]


def test_several_spans_are_averaged_by_their_lengths(documents: Path, tmp_path: Path, lmlab: Any) -> None:
    folder = tmp_path / "tool"
    folder.mkdir()
    for shard in range(2):
        rows = [{"id": f"{shard}-{n}", "attributes": {"x": [[0, 1, 0.0], [1, 4, 1.0]]}} for n in range(5)]
        (folder / f"part-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert lmlab("quality", "join", documents, "--attributes", folder, "--out", tmp_path / "joined").code == 0
    assert pq.read_table(tmp_path / "joined/00001.parquet").column("x_average").to_pylist() == [0.75] * 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: rows[:-1], "is not of the document '0-4'"),
        (lambda rows: [*rows, rows[0]], "line 6 is of no document"),
        (lambda rows: [rows[1], rows[0], *rows[2:]], "line 1 is not of the document '0-0'"),
        (lambda rows: [rows[0] | {"attributes": {"x": [[1, 2]]}}, *rows[1:]], "line 1: a span"),
    ],
)
def test_attributes_of_other_documents_are_refused(
    documents: Path, tmp_path: Path, lmlab: Any, change: Any, words: str
) -> None:
    folder = tmp_path / "tool"
    folder.mkdir()
    for shard in range(2):
        rows = [{"id": f"{shard}-{n}", "attributes": {"x": [[0, 1, 1.0]]}} for n in range(5)]
        rows = change(rows) if shard == 0 else rows
        (folder / f"part-{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = lmlab("quality", "join", documents, "--attributes", folder, "--out", tmp_path / "joined")
    assert done.code == 2 and words in " ".join(done.err.split()) and not (tmp_path / "joined").exists()
    (folder / "part-1.jsonl").unlink()
    done = lmlab("quality", "join", documents, "--attributes", folder, "--out", tmp_path / "joined")
    assert done.code == 2 and "no file for" in done.err


def test_what_is_no_rating_is_refused_by_name_and_files_do_not_tell_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pa.table({"id": ["a"], "text": ["x"], "q_average": [1.0], "word": ["w"]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="'word' holds string"):
        write_attributes(tmp_path / "a.parquet", tmp_path / "none", "n", ["word"])
    with pytest.raises(UserError, match="no column of ratings"):
        write_attributes(table.drop_columns("q_average"), tmp_path / "none", "n")
    contents = []
    for now in (1e9, 2e9):
        monkeypatch.setattr("time.time", lambda now=now: now)
        write_attributes(tmp_path / "a.parquet", tmp_path / "out", "n")
        contents.append((tmp_path / "out" / "a.jsonl.gz").read_bytes())
    assert contents[0] == contents[1]
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jsonl").write_text('{"id": "a", "attributes": [1]}\n')
    with pytest.raises(UserError, match="line 1: 'attributes' is no object"):
        join_attributes(str(tmp_path / "a.parquet"), [str(tmp_path / "bad")], tmp_path / "joined")
