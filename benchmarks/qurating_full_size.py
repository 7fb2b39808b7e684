"""A choice from many rows with ids of text: time and memory beside a plain sort of the same rows.

    python benchmarks/qurating_full_size.py [--rows 20000000] [--shards 20]

The corpus is Parquet with ids of 36 characters (UUIDs, and one id of 4,000 characters), lengths, ratings, a domain of
8 labels. `select` samples 11.5 % of the tokens at temperature 1, within domains. The plain sort reads the columns into
one table of Arrow, computes the same keys with NumPy on the whole, sorts, and cuts: what one writes without a library.
Each runs in a process of its own; memory is the process's peak.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHARE = 0.115
DOMAINS = [f"domain {number}" for number in range(8)]


def write(folder: Path, rows: int, shards: int) -> None:
    """Write the corpus."""
    rng = np.random.default_rng(0)
    for shard in range(shards):
        count = rows // shards
        raw = rng.bytes(16 * count).hex()
        ids = [_uuid(raw[32 * n : 32 * n + 32]) for n in range(count)]
        if shard == 0:
            ids[7] = "x" * 4000
        table = {
            "id": ids,
            "length": rng.integers(100, 1025, count),
            "rating": rng.standard_normal(count),
            "domain": pa.DictionaryArray.from_arrays(
                pa.array(rng.integers(0, 8, count, dtype=np.int32)), pa.array(DOMAINS)
            ),
        }
        pq.write_table(pa.table(table), folder / f"{shard:03d}.parquet")


def _uuid(digits: str) -> str:
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def ours(folder: str) -> tuple[int, int]:
    """By lmlab: rows and tokens."""
    from lmlab.methods.qurating import select
    from lmlab.methods.qurating.selecting.tables.table import budget_of

    tokens = budget_of(f"{100 * SHARE}%", folder)
    found = select(folder, metric="rating", mode="sample", tau=1.0, tokens=tokens, domain="domain")
    return len(found), found.num_tokens


def plain(folder: str) -> tuple[int, int]:
    """By a sort of everything."""
    from lmlab.methods.qurating.selecting.drawing.keys import keyed_gumbel

    table = pq.read_table(folder)
    rating, length = table.column("rating").to_numpy(), table.column("length").to_numpy()
    domain = np.asarray(table.column("domain").combine_chunks().indices)
    keys = (rating - rating.mean()) / rating.std() + keyed_gumbel(table.column("id").to_pylist(), 42)
    chosen = []
    for label in range(len(DOMAINS)):
        rows = np.flatnonzero(domain == label)
        rows = rows[np.argsort(-keys[rows])]
        before = np.cumsum(length[rows]) - length[rows]
        chosen.append(rows[before < SHARE * length[rows].sum()])
    places = np.concatenate(chosen)
    found = table.take(pa.array(places[np.argsort(-keys[places])]))
    return len(found), int(length[places].sum())


def measured(pipe: Any, function: Any, folder: str) -> None:
    """Call in this process; send the result, seconds and the peak of memory beyond that of the start, in GiB."""
    before, started = _peak_kib(), time.perf_counter()
    result = function(folder)
    pipe.send((result, time.perf_counter() - started, (_peak_kib() - before) / 2**20))


def _peak_kib() -> int:
    """Of this process alone: what `getrusage` says begins with the peak of the process that started it."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Measure both and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--shards", type=int, default=20)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), arguments.rows, arguments.shards)
        print(f"{arguments.rows:,} rows; load {os.getloadavg()[0]:.1f}", flush=True)
        found = []
        for name, function in (("lmlab select", ours), ("plain sort", plain)):
            parent, child = multiprocessing.Pipe()
            process = multiprocessing.get_context("spawn").Process(target=measured, args=(child, function, folder))
            process.start()
            child.close()
            (rows, tokens), seconds, memory = parent.recv()
            process.join()
            found.append((seconds, memory))
            print(f"{name}: {rows:,} rows, {tokens:,} tokens; {seconds:.0f} s, {memory:.2f} GiB", flush=True)
        (a, b), (c, d) = found
        print(f"ratio of time {a / c:.2f}, of memory {b / d:.2f}")


if __name__ == "__main__":
    main()
