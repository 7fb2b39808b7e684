"""Valid inputs of every kind, small enough to be read in a fraction of a second, and the commands that read them."""

from __future__ import annotations

import csv
import gzip
import json
import os
import sysconfig
import tarfile
from pathlib import Path
from typing import Any

import yaml

_WORDS = ["the", "cat", "sat", "on", "the", "mat", "and", "a", "dog", "gave", "Mary", "the", "book", "of", "Tom"]


def _jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_seeds(place: Path, call: Any) -> None:
    """Write all seeds below `place`, most of them by lmlab's own commands.

    Arguments:
        call: runs one command line and raises unless it succeeds.
    """
    place.mkdir(parents=True, exist_ok=True)
    shared = Path(os.environ.get("LMLAB_SHARED", "../shared")).resolve()  # the published ladder, if it is at hand
    os.chdir(place)
    _texts(place)
    _data(place)
    stages = {
        "documents": {"kind": "collect", "sources": [{"kind": "text", "path": "texts"}], "heldout_fraction": 0.3},
        "tokenizer": {"kind": "train_tokenizer", "documents": "documents", "vocab_size": 300},
        "tokens": {"kind": "tokenize", "documents": "documents", "tokenizer": "tokenizer"},
        "questions": {"kind": "next_word_task", "documents": "documents", "items_per_domain": 4, "context_bytes": 40},
    }
    model = {"vocab_size": 300, "num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 64}
    trainer = {"steps": 2, "batch_size": 2, "precision": "fp32", "log_every": 1, "checkpoint_every": 1, "device": "cpu"}
    train = {"tokens": "tokens", "tokenizer": "tokenizer", "seq_len": 16, "model": model, "trainer": trainer}
    full = stages | {"model": {"kind": "train", **train}, "report": {"kind": "report"}}
    (place / "recipe.yaml").write_text(yaml.safe_dump({"name": "small", "stages": full}, sort_keys=False))
    (place / "data.yaml").write_text(yaml.safe_dump({"name": "data", "stages": stages}, sort_keys=False))
    call("run", "recipe.yaml", "--out", "run")
    for name, source in (("model", "run/model/model"), ("tokenizer", "run/tokenizer"), ("shards", "run/tokens")):
        Path(name).symlink_to(source)
    paths = {"tokens": str(place / "run/tokens"), "tokenizer": str(place / "run/tokenizer")}
    (place / "train.yaml").write_text(yaml.safe_dump(train | paths, sort_keys=False))
    _small_files(place)
    _adapter(place)
    call("olmoe", "upcycle", "model", "moe", "--num-experts", "4", "--top-k", "2")
    call("olmoe", "trace", "moe", "docs.jsonl", "--tokenizer", "tokenizer", "--length", "8", "--sequences", "4",
         "--out", "trace.npz")  # fmt: skip
    call("circuits", "find", "--model", "model", "--data", "pairs.jsonl", "--method", "eap", "--target", "0.5",
         "--examples", "2", "--out", "circuit.json")  # fmt: skip
    call("quality", "judge", "docs.jsonl", "--tokenizer", "tokenizer", "--criterion", "clarity=is clearer.", "--pairs",
         "12", "--design", "random", "--tokens", "4,8", "--id-field", "id", "--out", "judged")  # fmt: skip
    sizes = ("size.num_layers=1", "size.d_model=16", "size.num_heads=2", "epochs=1", "confidence=0.1", "max_tokens=16")
    settings = [word for size in sizes for word in ("--set", size)]
    call("quality", "train", "judged", "--tokenizer", "tokenizer", "--out", "rater", *settings)
    call("quality", "annotate", "docs.jsonl", "--rater", "rater", "--id-field", "id", "--out", "rated")
    call("quality", "select", "--in", "rated", "--metric", "clarity_average", "--id", "id", "--tokens", "30%", "--mode",
         "sample", "--tau", "1", "--out", "chosen")  # fmt: skip
    call("quality", "propose-weights", "web", "books", "--runs", "8", "--out", "weights.csv")
    with open("weights.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open("weights.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows({**row, "loss": 3 - float(row["web"])} for row in rows)
    call("ladder", "plan", "--output", "plan.yaml")
    if published := sorted((shared / "data/ladder/runs").glob("190M-*.csv")):
        (place / "published").mkdir()
        for path in published[:4]:
            (place / "published" / path.name).write_text("".join(path.read_text().splitlines(True)[:30]))
        call("ladder", "collect", *(str(path) for path in sorted((place / "published").iterdir())), "-o", "runs.csv")


def _texts(place: Path) -> None:
    (place / "texts").mkdir()
    for name in ("bisect", "heapq", "textwrap", "fractions", "copy", "calendar"):
        text = Path(sysconfig.get_paths()["stdlib"], f"{name}.py").read_text("utf-8")
        (place / "texts" / f"{name}.txt").write_text(text[:6000])


def _data(place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from lmlab.data.sources import mds

    rows = [
        {
            "id": f"d{n}",
            "text": " ".join(_WORDS[(n * 7 + k * k) % len(_WORDS)] for k in range(40 + n)),
            "domain": "ab"[n % 2],
        }
        for n in range(24)
    ]
    _jsonl(place / "docs.jsonl", rows)
    (place / "docs.jsonl.gz").write_bytes(gzip.compress((place / "docs.jsonl").read_bytes()))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, place / "docs.parquet")
    with pa.ipc.new_stream(place / "docs.arrow", table.schema) as writer:
        writer.write_table(table)
    with mds.MDSWriter({"id": "str", "text": "str"}, place / "docs_mds") as shards:
        for row in rows:
            shards.write({"id": row["id"], "text": row["text"]})
    with tarfile.open(place / "docs.tar", "w") as tar:
        for row in rows[:6]:
            path = place / f"{row['id']}.txt"
            path.write_text(row["text"])
            tar.add(path, path.name)
            path.unlink()


def _small_files(place: Path) -> None:
    _jsonl(
        place / "requests.jsonl", [{"id": "a", "prompt": "1 + 1"}, {"messages": [{"role": "user", "content": "Hi"}]}]
    )
    _jsonl(place / "script.jsonl", [{"match": "1", "text": "2"}, {"match": "Hi", "text": "Hello"}])
    (place / "prices.yaml").write_text("x: {prompt: 1000, completion: 2000}\n")
    question = {"id": "q", "context": "the cat", "options": [" sat", " gave"], "gold": 0, "domain": "cats"}
    _jsonl(place / "questions.jsonl", [{**question, "id": f"q{n}"} for n in range(3)])
    task = {"name": "cats", "requests": "questions.jsonl", "normalization": "bytes"}
    (place / "task.yaml").write_text(yaml.safe_dump(task))
    pair = {"clean": "the q7", "corrupted": "the q8"}
    _jsonl(place / "pairs.jsonl", [pair, pair])
    chats = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}] * 3
    _jsonl(place / "chats.jsonl", chats)
    chat = {"kind": "tokenize_chat", "records": "chats.jsonl", "tokenizer": "tokenizer", "chat": {"template": "tulu"}}
    (place / "chat.yaml").write_text(yaml.safe_dump({"name": "chat", "stages": {"chats": chat}}))


def _adapter(place: Path) -> None:
    from lmlab.models import LoRAConfig, add_lora, from_pretrained, save_lora

    model = from_pretrained(place / "model")
    add_lora(model, LoRAConfig(rank=2))
    save_lora(model, place / "adapter")


_MODEL = ("--model", "model")
# what is damaged, and the command that reads it; OUT is a fresh path
COMMANDS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("recipe.yaml", ("run", "recipe.yaml", "--dry-run", "--out", "OUT")),
    ("data.yaml", ("run", "data.yaml", "--out", "OUT")),
    ("chat.yaml", ("run", "chat.yaml", "--out", "OUT")),
    ("chats.jsonl", ("run", "chat.yaml", "--out", "OUT")),
    ("run", ("run", "recipe.yaml", "--out", "run")),
    ("run", ("report", "run")),
    ("recipe.yaml", ("demo", "--dry-run", "--out", "OUT")),
    ("texts", ("tokenize", "texts", "--vocab-size", "300", "--out", "OUT")),
    ("docs.jsonl", ("tokenize", "docs.jsonl", "--tokenizer", "tokenizer", "--domain-field", "domain", "--out", "OUT")),
    ("docs.jsonl.gz", ("tokenize", "docs.jsonl.gz", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("docs.parquet", ("tokenize", "docs.parquet", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("docs.arrow", ("tokenize", "docs.arrow", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("docs_mds", ("tokenize", "docs_mds", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("docs.tar", ("tokenize", "docs.tar", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("tokenizer", ("tokenize", "docs.jsonl", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("shards", ("data", "inspect", "shards", "--out", "OUT")),
    ("docs.jsonl", ("data", "inspect", "docs.jsonl", "--tokenizer", "tokenizer")),
    ("train.yaml", ("train", "train.yaml", "--dry-run", "--out", "OUT")),
    ("run", ("train", "train.yaml", "--out", "OUT")),
    ("model", ("generate", "the cat", *_MODEL, "--max-new-tokens", "3")),
    ("adapter", ("generate", "the cat", *_MODEL, "--adapter", "adapter", "--max-new-tokens", "3", "--json")),
    ("model", ("chat", *_MODEL, "--max-new-tokens", "3")),
    ("model", ("convert", "model", "OUT")),
    ("adapter", ("convert", "model", "OUT", "--adapter", "adapter")),
    ("run", ("convert", "run/model", "OUT")),
    ("model", ("serve", "model", "--port", "0")),
    ("requests.jsonl", ("ask", "requests.jsonl", "--endpoint", "mock:x", "--replies", "script.jsonl", "--out", "OUT")),
    ("script.jsonl", ("ask", "requests.jsonl", "--endpoint", "mock:x", "--replies", "script.jsonl", "--out", "OUT")),
    ("prices.yaml", ("ask", "requests.jsonl", "--endpoint", "mock:x", "--prices", "prices.yaml", "--dry-run")),
    ("model", ("ask", "requests.jsonl", "--endpoint", "local:model", "--max-tokens", "3", "--out", "OUT")),
    ("questions.jsonl", ("eval", *_MODEL, "--task", "questions.jsonl", "--out", "OUT")),
    ("docs.jsonl", ("eval", *_MODEL, "--documents", "docs.jsonl", "--window", "16", "--out", "OUT")),
    ("task.yaml", ("eval", *_MODEL, "--tasks", "task.yaml", "--out", "OUT")),
    ("model", ("eval", *_MODEL, "--tasks", "task.yaml", "--out", "OUT")),
    ("run", ("eval", "compare", "run", "run")),
    ("model", ("eval", "harness", *_MODEL, "--tasks", "no_such_task")),
    ("recipe.yaml", ("eval", "tasks", "arc_easy")),
    ("recipe.yaml", ("launch", "slurm", "recipe.yaml", "--out", "OUT")),
    ("recipe.yaml", ("launch", "sweep", "recipe.yaml", "--vary", "seed=0,1", "--dry-run", "--out", "OUT")),
    (
        "pairs.jsonl",
        (
            "circuits",
            "find",
            *_MODEL,
            "--data",
            "pairs.jsonl",
            "--method",
            "eap",
            "--target",
            "0.5",
            "--examples",
            "2",
            "--out",
            "OUT.json",
        ),
    ),
    ("circuit.json", ("circuits", "evaluate", "circuit.json", *_MODEL, "--data", "pairs.jsonl", "--examples", "2")),
    ("circuit.json", ("circuits", "compare", "circuit.json", "circuit.json")),
    ("circuit.json", ("circuits", "report", "circuit.json", "--out", "OUT.html")),
    ("circuit.json", ("circuits", "convert", "circuit.json", "--to", "eap-ig", "--out", "OUT.json")),
    ("tokenizer", ("circuits", "data", "ioi", "--tokenizer", "tokenizer", "--count", "2", "--out", "OUT.jsonl")),
    ("plan.yaml", ("ladder", "plan", "plan.yaml")),
    ("plan.yaml", ("ladder", "run", "plan.yaml", "--dry-run", "--out", "OUT")),
    ("run", ("ladder", "collect", "run", "-o", "OUT.csv")),
    ("runs.csv", ("ladder", "fit", "runs.csv")),
    ("runs.csv", ("ladder", "predict", "runs.csv", "-n", "7e9", "-d", "4e12")),
    ("runs.csv", ("ladder", "variance", "runs.csv")),
    ("plan.yaml", ("ladder", "size", "190M")),
    ("model", ("ladder", "flops", "model")),
    (
        "moe",
        (
            "olmoe",
            "trace",
            "moe",
            "docs.jsonl",
            "--tokenizer",
            "tokenizer",
            "--length",
            "8",
            "--sequences",
            "2",
            "--out",
            "OUT.npz",
        ),
    ),
    ("published", ("ladder", "collect", "published", "-o", "OUT.csv")),
    ("trace.npz", ("olmoe", "analyze", "trace.npz")),
    ("trace.npz", ("olmoe", "report", "trace.npz", "--out", "OUT.html")),
    ("model", ("olmoe", "upcycle", "model", "OUT", "--num-experts", "4", "--top-k", "2")),
    ("moe", ("olmoe", "convert", "moe", "OUT")),
    ("judged", ("quality", "judge-report", "judged", "--out", "OUT.html")),
    ("rater", ("quality", "annotate", "docs.jsonl", "--rater", "rater", "--id-field", "id", "--out", "OUT")),
    ("rated", ("quality", "plan", "--in", "rated", "--metric", "clarity_average", "--id", "id", "--tokens", "30%")),
    (
        "rated",
        (
            "quality",
            "select",
            "--in",
            "rated",
            "--metric",
            "clarity_average",
            "--id",
            "id",
            "--tokens",
            "30%",
            "--mode",
            "sample",
            "--tau",
            "1",
            "--out",
            "OUT",
        ),
    ),
    ("rated", ("quality", "order", "--in", "rated", "--metric", "clarity_average", "--id", "id", "--out", "OUT")),
    ("chosen", ("quality", "report", "--in", "rated", "--selection", "chosen", "--out", "OUT.html")),
    ("weights.csv", ("quality", "fit-weights", "weights.csv")),
    (
        "docs.jsonl",
        (
            "quality",
            "judge",
            "docs.jsonl",
            "--tokenizer",
            "tokenizer",
            "--criterion",
            "clarity",
            "--pairs",
            "8",
            "--design",
            "random",
            "--tokens",
            "4,8",
            "--out",
            "OUT",
        ),
    ),
)
