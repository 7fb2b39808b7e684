"""Rows a second of `lmlab quality annotate` beside a pipeline of `transformers`, and of an encoder as a rater beside
the batch encoding of sentence-transformers.

    OMP_NUM_THREADS=1 python benchmarks/qurating_annotate.py --encoder DIR [--model DIR] [--rows 400] [--rounds 2]

Rows are real texts (`LMLAB_SHARED`) cut at blank spaces into pieces of many lengths, none longer than 250 tokens of the
rater's, since the peers cut off what is longer than they read. Both raters have random heads, on the encoder (a BERT
with its tokenizer and a folder as sentence-transformers writes it) and on MODEL, a Llama; all compute in fp32. An
annotation reads JSON lines, tokenizes, rates, and writes Parquet; the peers get a list of texts and keep their scores
in memory. The pipeline is given its texts as they come, as its users do, and sorted by length, as lmlab sorts them.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch

from lmlab.data import Document, JsonlSource
from lmlab.methods.qurating.annotating.annotate import annotate
from lmlab.methods.qurating.annotating.corpus import Annotation

LONGEST = 250  # tokens: MiniLM as sentence-transformers writes it reads 256
SHARED = Path(os.environ.get("LMLAB_SHARED", "../shared"))


def texts(count: int, longest: int) -> list[str]:
    """Pieces of 5 to `longest` words, evenly spread over the logarithm of the length."""
    rng = np.random.default_rng(0)
    source = JsonlSource(path=str(SHARED / "data/texts/*.jsonl.zst"), text_field="text", id_field="id")
    words = [
        word for found in source.read() if isinstance(found, Document) for word in found.text.split() if len(word) < 20
    ]
    lengths = np.exp(rng.uniform(np.log(5), np.log(longest), count)).astype(int)
    starts = rng.integers(0, len(words) - longest, count)
    return [" ".join(words[start : start + length]) for start, length in zip(starts, lengths, strict=True)]


def classifier(base: Path, folder: Path) -> Path:
    """A copy of a model with a head of one scalar."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = tokenizer.pad_token_id
    if model.config.model_type == "llama":  # as lmlab names the criteria of its raters
        model.config.criteria = ["score"]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def pipeline_of(folder: Path, batch: int) -> Callable[[list[str]], list[float]]:
    """The scores of a pipeline of `transformers`."""
    from transformers import pipeline

    options: dict[str, Any] = {"batch_size": batch, "truncation": True, "function_to_apply": "none"}
    ask = pipeline("text-classification", model=str(folder), device="cpu", dtype=torch.float32)

    def score(rows: list[str]) -> list[float]:
        return [found["score"] for found in ask(rows, **options)]

    return score


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = work()
    return time.perf_counter() - start, found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, help="a folder of sentence-transformers with a BERT")
    parser.add_argument("--model", type=Path, help="a Llama")
    parser.add_argument("--rows", type=int, default=400)
    parser.add_argument("--longest", type=int, default=120, help="words of the longest row")
    parser.add_argument("--batch", type=int, default=32, help="of the peers")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        for kind, base in (("encoder", options.encoder), ("llama", options.model)):
            if base is not None:
                compare(kind, base, Path(name), options)


def compare(kind: str, base: Path, folder: Path, options: argparse.Namespace) -> None:
    """Measure one rater in turns with its peers."""
    from transformers import AutoTokenizer

    place, words = classifier(base, folder / kind), AutoTokenizer.from_pretrained(base)
    rows = [text for text in texts(options.rows, options.longest) if len(words(text)["input_ids"]) <= LONGEST]
    corpus = folder / f"{kind}.jsonl"
    corpus.write_text("".join(json.dumps({"id": str(n), "text": text}) + "\n" for n, text in enumerate(rows)))
    print(
        f"{kind}: {len(rows)} rows, {sum(map(len, rows)):,} characters; threads {torch.get_num_threads()}, "
        f"load {os.getloadavg()[0]:.1f}"
    )
    score = pipeline_of(place, options.batch)
    by_length = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
    sides: dict[str, Callable[[], Any]] = {
        "transformers": lambda: score(rows),
        "transformers, sorted": lambda: score([rows[number] for number in by_length]),
    }
    if kind == "encoder":
        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer(str(base), device="cpu")
        sides["sentence-transformers"] = lambda: encoder.encode(rows, batch_size=options.batch)
    for side in (lambda: score(rows[:8]), *([lambda: encoder.encode(rows[:8])] if kind == "encoder" else [])):
        side()
    times: dict[str, list[float]] = {}
    for turn in range(options.rounds):
        job = Annotation(str(corpus), str(place), str(folder / f"{kind}-{turn}"), precision="fp32")
        seconds, _ = timed(lambda job=job: annotate(job))  # type: ignore[misc]
        times.setdefault("lmlab", []).append(seconds)
        found = pq.read_table(Path(job.out) / "00000.parquet").column("score_average").to_numpy()
        for name, side in sides.items():
            seconds, scores = timed(side)
            times.setdefault(name, []).append(seconds)
            if name == "transformers":
                print(f"{kind}: largest difference of a score {np.abs(found - np.array(scores)).max():.1e}")
    ours = len(rows) / min(times["lmlab"])
    for name, seconds_of in times.items():
        rate = len(rows) / min(seconds_of)
        print(f"{kind:>8} {name:>22}: {rate:,.1f} rows/s, lmlab is {ours / rate:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
