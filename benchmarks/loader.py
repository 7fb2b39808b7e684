"""Batches a second of the loader beside Grain's own iteration and torch's DataLoader over the same packed rows, and the
size of their states.

python benchmarks/loader.py
"""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lmlab.data import (
    Loader,
    Mixture,
    MixtureSource,
    PackedRows,
    TokenizedCorpus,
    TokenizedItem,
    Tokenizer,
    write_shards,
)

SEQ_LEN, NUM_BATCHES = 512, 300


def corpus(directory: Path) -> TokenizedCorpus:
    """Eight million random tokens in documents of lengths as in real text."""
    draw = np.random.default_rng(0)
    tokenizer = Tokenizer.train(["some text"], 300)
    lengths = draw.lognormal(6, 1, 15_000).astype(int).clip(2, 20_000)
    items = (
        TokenizedItem(draw.integers(0, 300, length), f"domain {number % 5}", int(length))
        for number, length in enumerate(lengths)
    )
    write_shards(items, tokenizer, directory, 2**22)
    return TokenizedCorpus(directory)


def rate(batches) -> float:
    batches = iter(batches)
    next(batches)
    start = time.perf_counter()
    for _ in itertools.islice(batches, NUM_BATCHES):
        pass
    return NUM_BATCHES / (time.perf_counter() - start)


def grain_batches(rows: PackedRows, batch_size: int, threads: int):
    """Grain's shuffled rows, batched and read ahead by Grain itself."""
    import grain

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=max(threads, 1) * batch_size)
    return grain.MapDataset.source(rows).seed(0).shuffle().repeat().to_iter_dataset(options).batch(batch_size)


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        tokens = corpus(Path(directory))
        for packing in ("concat", "best_fit"):
            rows = PackedRows(tokens, SEQ_LEN, packing)  # type: ignore[arg-type]
            for batch_size in (8, 64):
                part = {"all": MixtureSource(weight=1, allow_repeats=True)}
                mixture = Mixture({"all": rows}, part, (NUM_BATCHES + 8) * batch_size, 0)
                found = {
                    "lmlab": rate(Loader(mixture, batch_size, 0, shuffle=False)),
                    "lmlab, 2 threads": rate(Loader(mixture, batch_size, 0, shuffle=False, workers=2)),
                }
                for threads in (0, 1, 2):
                    found[f"Grain, {threads} threads"] = rate(grain_batches(rows, batch_size, threads))
                for workers in (0, 1):
                    sampler = torch.utils.data.RandomSampler(
                        rows, replacement=True, num_samples=(NUM_BATCHES + 8) * batch_size
                    )
                    loader = torch.utils.data.DataLoader(rows, batch_size, sampler=sampler, num_workers=workers)
                    found[f"DataLoader, {workers} workers"] = rate(loader)
                print(f"{packing}, {batch_size} x {SEQ_LEN} tokens")
                for name, value in found.items():
                    speed = value * batch_size * SEQ_LEN / 1e6
                    print(
                        f"  {name:22s} {value:8.0f} batches/s  {speed:7.1f} M tokens/s  lmlab / this"
                        f" {found['lmlab'] / value:.2f}x"
                    )
        iterator = iter(grain_batches(rows, 8, 1))
        next(iterator)
        states = {"lmlab": Loader(rows, 8, 0).state(), "Grain": iterator.get_state()}
        print(
            "state: "
            + ", ".join(f"{name} {len(json.dumps(state, default=str))} bytes" for name, state in states.items())
        )


if __name__ == "__main__":
    main()
