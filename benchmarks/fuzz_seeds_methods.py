"""Inputs of methods whose files are their own (programs, long contexts, retrieval, poison, SWE), and their commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

_TOPICS = ["cat mat", "dog book", "Tom Mary", "book shelf", "mat floor", "dog garden"]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_method_seeds(place: Path, call: Any) -> None:
    """Write them below `place`, where those of `fuzz_seeds` are."""
    _collection(place / "collection")
    _jsonl(
        place / "sentinels.jsonl", [{"_id": f"s{n}", "text": f"what of {topic}?"} for n, topic in enumerate(_TOPICS)]
    )
    new = [{"_id": f"n{n}", "text": f"A new text of {topic}."} for n, topic in enumerate(_TOPICS)]
    _jsonl(place / "new.jsonl", new)
    shared = ("--data", "collection", "--encoder", "model")
    call("retrieval", "search", *shared, "--cache", "vectors", "--out", "run.trec")
    call("poison", "craft", *shared, "--split", "train", "--k", "2", "--evaluations", "40", "--out", "attack")
    call("poison", "detect", "fit", *shared, "--sentinels", "sentinels.jsonl", "--detector", "norm", "--rate", "0.2",
         "--out", "gate")  # fmt: skip
    shape = ("--num-layers", "1", "--cat-heads", "0", "--cat-mlps", "0", "--seeds", "1", "--epochs", "1")
    call("programs", "train", "--task", "hist", "--size", "60", "--max-length", "5", *shape, "--out", "program-run")
    call("programs", "export", "program-run", "--out", "program")
    call(
        "long",
        "build",
        "tokenizer",
        "--length",
        "512",
        "--task",
        "json_kv.uuid",
        "--contexts",
        "1",
        "--out",
        "long.jsonl",
    )
    _swe(place)


def _collection(place: Path) -> None:
    (place / "qrels").mkdir(parents=True)
    documents = [{"_id": f"d{n}", "title": "", "text": f"A text of {_TOPICS[n % 6]}, number {n}."} for n in range(24)]
    _jsonl(place / "corpus.jsonl", documents)
    _jsonl(place / "queries.jsonl", [{"_id": f"q{n}", "text": f"where is {_TOPICS[n % 6]} {n}?"} for n in range(24)])
    for split, numbers in (("train", range(12)), ("test", range(12, 24))):
        rows = "".join(f"q{n}\td{n}\t1\n" for n in numbers)
        (place / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)


def _swe(place: Path) -> None:
    patch = "diff --git a/m.py b/m.py\n--- a/m.py\n+++ b/m.py\n@@ -1,1 +1,1 @@\n-x = 1\n+x = 2\n"
    instance = {
        "instance_id": "a__b-1",
        "repo": "a/b",
        "base_commit": "0" * 40,
        "patch": patch,
        "test_patch": patch.replace("m.py", "test_m.py"),
        "problem_statement": "x is wrong",
        "hints_text": "",
        "created_at": "2024-01-01T00:00:00Z",
        "version": "1.0",
        "FAIL_TO_PASS": json.dumps(["test_m.py::test_x"]),
        "PASS_TO_PASS": json.dumps([]),
        "environment_setup_commit": "0" * 40,
    }
    _jsonl(place / "instances.jsonl", [instance])
    _jsonl(place / "patches.jsonl", [{"instance_id": "a__b-1", "model_name_or_path": "m", "model_patch": patch}])
    (place / "test.log").write_text("PASSED test_m.py::test_x\n1 passed in 0.1s\n")


_INSTANCES = ["--length", "512", "--task", "json_kv.uuid", "--contexts", "1"]
_RETRIEVER = ["--data", "collection", "--encoder", "model"]
METHOD_COMMANDS: list[tuple[str, list[str]]] = [
    ("collection", ["retrieval", "evaluate", "--data", "collection", "--by", "bm25"]),
    ("collection/corpus.jsonl", ["retrieval", "search", "--data", "collection", "--by", "bm25", "--out", "OUT.trec"]),
    ("collection/qrels/test.tsv", ["retrieval", "evaluate", "--data", "collection", "--by", "bm25"]),
    ("vectors", ["retrieval", "evaluate", *_RETRIEVER, "--cache", "vectors"]),
    ("model", ["retrieval", "encode", *_RETRIEVER, "--cache", "OUT"]),
    ("attack", ["poison", "evaluate", "--passages", "attack", *_RETRIEVER, "--k", "3"]),
    ("attack", ["poison", "export", "attack", "--out", "OUT", "--name", "x", "--encoder", "model"]),
    (
        "collection",
        ["poison", "craft", *_RETRIEVER, "--split", "train", "--k", "1", "--evaluations", "20", "--out", "OUT"],
    ),
    ("gate", ["poison", "gate", "new.jsonl", "--gate", "gate", "--encoder", "model", "--out", "OUT.jsonl"]),
    ("new.jsonl", ["poison", "gate", "new.jsonl", "--gate", "gate", "--encoder", "model", "--out", "OUT.jsonl"]),
    ("sentinels.jsonl", ["poison", "detect", "fit", *_RETRIEVER, "--sentinels", "sentinels.jsonl", "--out", "OUT"]),
    ("program", ["programs", "run", "program", "3 1 3 0", "--trace"]),
    ("program", ["programs", "verify", "program", "--oracle", "hist", "--exhaustive", "3"]),
    ("program", ["programs", "evaluate", "program", "--task", "hist", "--examples", "20"]),
    ("program", ["programs", "minimize", "program", "--task", "hist", "--examples", "20", "--out", "OUT"]),
    ("program", ["programs", "explain", "program", "--task", "hist", "--examples", "20", "--out", "OUT.html"]),
    ("program-run", ["programs", "export", "program-run", "--out", "OUT"]),
    ("program", ["programs", "import", "program", "--out", "OUT"]),
    ("long.jsonl", ["long", "eval", "model", "--instances", "long.jsonl", "--mode", "forced", "--out", "OUT"]),
    ("model", ["long", "rope", "model", "--to", "128"]),
    (
        "model",
        ["long", "build", "tokenizer", "--length", "512", "--task", "json_kv.uuid", "--contexts", "1", "--out", "OUT"],
    ),
    ("instances.jsonl", ["swe", "check", "--instances", "instances.jsonl"]),
    ("instances.jsonl", ["swe", "grade", "test.log", "--instances", "instances.jsonl", "--id", "a__b-1"]),
    ("test.log", ["swe", "grade", "test.log", "--instances", "instances.jsonl", "--id", "a__b-1"]),
    (
        "patches.jsonl",
        ["swe", "eval", "--instances", "instances.jsonl", "--predictions", "patches.jsonl", "--out", "OUT"],
    ),
    ("instances.jsonl", ["swe", "train-data", "--instances", "instances.jsonl", "--out", "OUT.jsonl"]),
]
"""The input that is damaged, and the command; OUT is a place for its results."""
