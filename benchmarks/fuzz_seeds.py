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

import numpy as np
import yaml
from fuzz_seeds_methods import METHOD_COMMANDS, make_method_seeds

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
    call("quality", "score", "dsir", "--in", "docs.jsonl", "--target", "good.jsonl", "--id", "id", "--out", "scored")
    call("convert", "model", "small.gguf", "--to", "gguf")
    call("data", "pack", "shards", "--pack-length", "32", "--min-chunk-length", "8", "--out", "packed")
    call("ladder", "plan", "--output", "plan.yaml")
    _ladder(place, shared / "data/ladder/runs", call)
    make_method_seeds(place, call)


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
    _jsonl(place / "good.jsonl", [{"text": "the dog gave the book of Tom"}, {"text": "Mary gave a cat"}] * 3)
    _jsonl(place / "grades.jsonl", [{"index": f"d{number}", "average": number % 4} for number in range(24)])
    rows = [json.loads(line) for line in (place / "docs.jsonl").read_text().splitlines()]
    (place / "corpus").mkdir()
    _jsonl(place / "corpus" / "docs.jsonl", [{**row, "text": row["text"] * 6} for row in rows])
    np.savez(place / "counts.npz", expert_counts=np.arange(24, dtype=np.int64).reshape(2, 2, 6) + 1)
    _recipes(place)
    _tables(place)


def _recipes(place: Path) -> None:
    """Of methods, and of adapters."""
    trainer = {"steps": 1, "batch_size": 2, "precision": "fp32", "device": "cpu", "log_every": 1}
    sparse = {"moe": {"num_experts": 4, "top_k": 2, "expert_hidden_size": 8}}
    ablation = {
        "model": {"preset": "OLMoE-tiny", "num_layers": 1, "d_model": 16, "num_heads": 2},
        "variants": {"moe": sparse, "dense": {"ffn": "dense", "moe": None, "d_ff": 16}},
        "choices": [{"title": "MoE or dense", "variants": ["moe", "dense"]}],
        "seeds": [0],
        "seq_len": 16,
        "trainer": trainer,
    }
    (place / "ablate.yaml").write_text(yaml.safe_dump(ablation, sort_keys=False))
    rater = {"init": {"num_layers": 1, "d_model": 16, "num_heads": 2}, "epochs": 1, "batch_pairs": 8, "row_tokens": 64}
    quality = {
        "corpus": {"path": "docs.jsonl", "id": "id", "domain": "domain", "vocab_size": 300},
        "criteria": {"clarity": {"clause": "is clearer."}},
        "judge": {"backend": "offline"},
        "pairs": {"design": "random", "n": 24, "tokens": [8, 16]},
        "rater": {**rater, "confidence": 0.0, "val": 0.2},
        "annotate": {"segment": 16, "dtype": "float32"},
        "select": {"mode": "sample", "tau": 1.0, "tokens": "30%"},
        "report": {"clusters": 2, "groups": ["domain"], "examples": 1},
    }
    (place / "quality.yaml").write_text(yaml.safe_dump({"quality": quality}, sort_keys=False))
    pair = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}
    _jsonl(place / "preferences.jsonl", [pair] * 6)
    prefer = {"kind": "prefer", "records": "preferences.jsonl", "start": "model", "seq_len": 60, "trainer": trainer}
    prefer |= {"chat": {"template": "tulu"}, "lora": {"rank": 2}}
    (place / "prefer.yaml").write_text(yaml.safe_dump({"name": "prefer", "stages": {"model": prefer}}, sort_keys=False))


def _tables(place: Path) -> None:
    """The same documents as text that spreadsheets and other programs write."""
    rows = [json.loads(line) for line in (place / "docs.jsonl").read_text().splitlines()]
    for name, sign in (("docs.csv", ","), ("docs.tsv", "\t")):
        with (place / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text", "domain"], delimiter=sign)
            writer.writeheader()
            writer.writerows(rows)
    (place / "docs.json").write_text(json.dumps(rows))


def _ladder(place: Path, published: Path, call: Any) -> None:
    """Runs that were published, thinned, as files and as one table, if they are at hand."""
    sizes = {"190M": 190_354_176, "370M": 371_262_464, "760M": 758_220_288}
    found = [path for path in sorted(published.glob("*M-*xC.csv")) if path.stem.split("-")[0] in sizes]
    if not found:
        return
    (place / "published").mkdir()
    for path in found:
        first, *rest = path.read_text().splitlines(True)
        (place / "published" / path.name).write_text("".join([first, *rest[:: max(1, len(rest) // 20)], rest[-1]]))
    given = [word for size, n in sizes.items() for word in ("--size", f"{size}={n}")]
    call("ladder", "collect", *map(str, sorted((place / "published").iterdir())), *given, "-o", "runs.csv")
    with open("runs.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # two tasks of eight: what all of them take is computing, not waiting
    columns = [name for name in rows[0] if "/" not in name or "hellaswag" in name or "arc_easy" in name]
    for name, kept in (("runs.csv", rows), ("other.csv", rows[5:])):
        with open(name, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(kept)


def _adapter(place: Path) -> None:
    from lmlab.models import LoRAConfig, add_lora, from_pretrained, save_lora

    model = from_pretrained(place / "model")
    add_lora(model, LoRAConfig(rank=2))
    save_lora(model, place / "adapter")


def _scored(kind: str, source: str, *options: str) -> tuple[str, ...]:
    return ("quality", "score", kind, "--in", source, *options, "--id", "id", "--out", "OUT")


_MODEL = ("--model", "model")
_TASKS = ("--tasks", "hellaswag_val_5shot,arc_easy_test_5shot")
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
    ("runs.csv", ("ladder", "fit", "runs.csv", *_TASKS)),
    ("runs.csv", ("ladder", "predict", "runs.csv", "-n", "7e9", "-d", "4e12", *_TASKS)),
    ("runs.csv", ("ladder", "variance", "runs.csv", *_TASKS)),
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
    ("published", ("ladder", "collect", "published/190M-1xC.csv", "--size", "190M=190354176", "-o", "OUT.csv")),
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
    ("weights.csv", ("quality", "propose-weights", "web", "books", "--runs", "4", "--out", "OUT.csv")),
    ("rated", ("quality", "filter", "--in", "rated", "--min", "clarity_average=0", "--id", "id", "--out", "OUT")),
    ("good.jsonl", _scored("dsir", "docs.jsonl", "--target", "good.jsonl")),
    ("docs.parquet", _scored("linear", "docs.parquet", "--target", "good.jsonl")),
    ("model", _scored("ppl", "docs.jsonl", "--model", "model")),
    ("grades.jsonl", _scored("classifier", "rated", "--grades", "grades.jsonl", "--columns", "clarity_average")),
    ("scored", _scored("buckets", "scored", "--columns", "dsir_average")),
    (
        "judged",
        (
            "quality",
            "train",
            "judged",
            "--tokenizer",
            "tokenizer",
            "--set",
            "size.num_layers=1",
            "--set",
            "size.d_model=16",
            "--set",
            "size.num_heads=2",
            "--set",
            "epochs=1",
            "--set",
            "confidence=0.1",
            "--out",
            "OUT",
        ),
    ),
    ("quality.yaml", ("quality", "pipeline", "quality.yaml", "--dry-run", "--out", "OUT")),
    ("docs.jsonl", ("quality", "pipeline", "quality.yaml", "--out", "OUT")),
    ("ablate.yaml", ("olmoe", "ablate", "ablate.yaml", "--texts", "corpus", "--out", "OUT")),
    ("corpus", ("olmoe", "ablate", "ablate.yaml", "--texts", "corpus", "--only", "dense", "--out", "OUT")),
    ("counts.npz", ("olmoe", "counts", "counts.npz")),
    ("train.yaml", ("train", "train.yaml", "--out", "OUT")),
    ("shards", ("train", "train.yaml", "--set", "tokens=shards", "--set", "tokenizer=tokenizer", "--out", "OUT")),
    ("prefer.yaml", ("run", "prefer.yaml", "--out", "OUT")),
    ("preferences.jsonl", ("run", "prefer.yaml", "--out", "OUT")),
    ("docs.csv", ("tokenize", "docs.csv", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("docs.tsv", ("tokenize", "docs.tsv", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("docs.json", ("tokenize", "docs.json", "--tokenizer", "tokenizer", "--out", "OUT")),
    ("small.gguf", ("generate", "the cat", "--model", "small.gguf", "--max-new-tokens", "3")),
    ("model", ("convert", "model", "OUT.gguf", "--to", "gguf")),
    ("shards", ("data", "pack", "shards", "--pack-length", "32", "--min-chunk-length", "8", "--out", "OUT")),
    ("packed", ("data", "peek", "packed")),
    ("runs.csv", ("ladder", "backtest", "runs.csv", *_TASKS)),
    ("runs.csv", ("ladder", "compare", "runs.csv", "other.csv", "-n", "7e9", "-d", "4e12", *_TASKS)),
    ("runs.csv", ("ladder", "report", "runs.csv", "-n", "7e9", "-d", "4e12", *_TASKS, "-o", "OUT.html")),
    (
        "docs.jsonl",
        (
            "quality",
            "judge",
            "docs.jsonl",
            "--tokenizer",
            "tokenizer",
            "--criterion",
            "clarity=is clearer.",
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

COMMANDS += tuple((target, tuple(words)) for target, words in METHOD_COMMANDS)
