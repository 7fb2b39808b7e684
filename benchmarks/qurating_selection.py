"""Selection from many rows: time and memory beside a plain sort of all keys with NumPy, whose choice must be the same.

python benchmarks/qurating_selection.py --rows 20000000
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ALL_ROWS = 254_141_282  # of QuRatedPajama-260B


def write(folder: Path, rows: int, shards: int) -> None:
    """Ratings without texts, as annotated corpora have them."""
    rng = np.random.default_rng(0)
    names = pa.array([f"domain-{number}" for number in range(7)])
    for shard in range(shards):
        count = rows * (shard + 1) // shards - rows * shard // shards
        columns = {
            "id": np.arange(count) + rows * shard // shards,
            "length": rng.integers(100, 1025, count),
            "source_domain": pa.DictionaryArray.from_arrays(
                pa.array(rng.integers(0, 7, count).astype(np.int32)), names
            ),
            "educational_value_average": rng.standard_normal(count),
        }
        pq.write_table(pa.table(columns), folder / f"{shard:03d}.parquet")


def ours(folder: Path, tokens: int) -> None:
    from lmlab.methods.qurating import select

    start, cpu = time.perf_counter(), time.process_time()
    manifest = select(
        str(folder),
        metric="educational_value_average",
        mode="sample",
        tau=2.0,
        tokens=tokens,
        domain="source_domain",
        id="id",
        seed=42,
    )
    report("lmlab", start, cpu, len(manifest), manifest.num_tokens, int(np.asarray(manifest.table.column("id")).sum()))


def plain(folder: Path, tokens: int) -> None:
    from lmlab.methods.qurating import keyed_gumbel

    start, cpu = time.perf_counter(), time.process_time()
    table = pq.read_table(folder)
    ids, lengths, ratings = (np.asarray(table.column(name)) for name in ("id", "length", "educational_value_average"))
    labels = np.asarray(table.column("source_domain").combine_chunks().indices)
    keys = (ratings - ratings.mean()) / ratings.std() / 2.0 + keyed_gumbel(ids, 42)
    chosen = []
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        mine = mine[np.argsort(-keys[mine])]
        budget = tokens * int(lengths[mine].sum()) // int(lengths.sum())
        chosen.append(mine[np.cumsum(lengths[mine]) - lengths[mine] < budget])
    rows = np.concatenate(chosen)
    rows = rows[np.argsort(-keys[rows])]
    report("plain sort", start, cpu, len(rows), int(lengths[rows].sum()), int(ids[rows].sum()))


def report(name: str, start: float, cpu: float, rows: int, tokens: int, check: int) -> None:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - start
    spent = f"{seconds:.1f} s ({time.process_time() - cpu:.1f} s of processor), {memory:.2f} GiB"
    print(f"{name:>10}: {spent}; {rows:,} rows, {tokens:,} tokens, sum of ids {check}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--only", choices=["ours", "plain"])
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    tokens = int(0.115 * 562 * options.rows)
    if options.only:
        (ours if options.only == "ours" else plain)(options.folder, tokens)
        return
    with tempfile.TemporaryDirectory() as name:
        write(Path(name), options.rows, options.shards)
        for side in ("ours", "plain"):  # each in a process of its own, so that memory is its own
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, __file__, "--only", side, "--folder", name, "--rows", str(options.rows)], check=True
            )
            if side == "ours":
                print(
                    f"   by extrapolation {(time.perf_counter() - start) * ALL_ROWS / options.rows / 60:.1f} min for"
                    f" {ALL_ROWS:,} rows"
                )


if __name__ == "__main__":
    main()
