"""`lmlab retrieval` from end to end on a small collection."""

from __future__ import annotations

import json
import shutil

import pytest

from lmlab import cli
from tiny_retriever import write_retriever


def run(capsys, monkeypatch, *arguments: object) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["lmlab", "retrieval", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_a_collection_is_encoded_searched_and_measured(collection, tmp_path, capsys, monkeypatch):
    encoder = write_retriever(tmp_path / "encoder")
    common = ("--data", collection, "--encoder", encoder, "--cache", tmp_path / "cache")
    code, out, _ = run(capsys, monkeypatch, "encode", *common)
    assert code == 0 and "60 document vectors of 32 dimensions" in out
    assert out.count("18 query vectors of 32 dimensions") == 2 and "query-test" in out and "query-train" in out
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")}
    code, _, _ = run(capsys, monkeypatch, "evaluate", *common, "--k", 10, "--json")
    assert code == 0 and {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.npy")} == stamps
    figures = {}
    for by in ("dense", "bm25", "hybrid"):
        target = tmp_path / f"{by}.trec"
        code, out, err = run(capsys, monkeypatch, "search", *common, "--by", by, "--out", target, "--k", 100)
        assert code == 0 and ("the index holds 60" in err) == (by != "bm25")
        code, out, _ = run(capsys, monkeypatch, "evaluate", *common, "--by", by, "--k", 10, "--json")
        searched = json.loads(out)
        code, out, _ = run(capsys, monkeypatch, "evaluate", *common, "--run", target, "--k", 10, "--json")
        assert code == 0 and json.loads(out) == searched
        figures[by] = searched["nDCG@10"]
    assert figures["bm25"] > 0.3  # questions share the words of their topic
    code, out, _ = run(capsys, monkeypatch, "evaluate", *common)
    assert code == 0 and "nDCG" in out


def test_crafted_documents_are_found_only_when_they_are_asked_for(collection, tmp_path, capsys, monkeypatch):
    mixed = tmp_path / "mixed"
    shutil.copytree(collection, mixed)
    with (mixed / "corpus.jsonl").open("a") as file:
        file.write(json.dumps({"_id": "redteam-1", "text": "what is sea", "metadata": {"redteam": True}}) + "\n")
    common = ("--data", mixed, "--by", "bm25", "--k", 100, "--out", tmp_path / "run.trec")
    code, _, err = run(capsys, monkeypatch, "search", *common)
    assert code == 0 and "1 document is marked as crafted by an attack and left out" in err
    assert "redteam-1" not in (tmp_path / "run.trec").read_text()
    code, _, err = run(capsys, monkeypatch, "search", *common, "--redteam", "keep")
    assert code == 0 and not err and "redteam-1" in (tmp_path / "run.trec").read_text()
    encoder = write_retriever(tmp_path / "encoder")
    code, out, err = run(
        capsys, monkeypatch, "encode", "--data", mixed, "--encoder", encoder, "--cache", tmp_path / "c"
    )
    assert code == 0 and "60 document vectors" in out and "left out" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--by", "sparse"), "by: input should be 'dense', 'bm25', 'hybrid' or 'late', got the text 'sparse'"),
        (("--encoder", "nowhere"), "no encoder at 'nowhere'"),
        (("--split", "dev"), "has no dev.tsv"),
        (("--precision", "fp8"), "precision: input should be 'fp32' or 'bf16', got the text 'fp8'"),
        (("--prompt", "passage=x"), "prompt: 'passage=x': expected query=TEXT"),
        (("--pooling", "median"), "pooling: 'median': known are cls"),
        (("--index", "flat"), "index: input should be 'exact', 'hnsw'"),
    ],
)
def test_bad_input_ends_with_exit_code_2_and_a_sentence(arguments, message, collection, tmp_path, capsys, monkeypatch):
    encoder = write_retriever(tmp_path / "encoder")
    given = ("--data", collection, "--encoder", encoder, "--cache", tmp_path / "cache", *arguments)
    code, _, err = run(capsys, monkeypatch, "evaluate", *given)
    assert code == 2 and message in err and "Traceback" not in err
