"""Writing the rows of a manifest as shards of text, and putting rows in the order of a curriculum."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmlab.files import atomic_file, write_jsonl
from lmlab.methods.qurating.selecting.drawing.keys import keyed_gumbel
from lmlab.methods.qurating.selecting.moments import exact_moments, standardize
from lmlab.methods.qurating.selecting.problems import NonFiniteRating
from lmlab.methods.qurating.selecting.selection import Manifest
from lmlab.methods.qurating.selecting.table import RatedTable, Tabular, as_floats

_SHARD_TOKENS = 500_000_000


def materialize(
    table: Tabular,
    manifest: Manifest,
    out: Path,
    columns: Sequence[str] | None = None,
    shard_tokens: int = _SHARD_TOKENS,
    kind: str = "parquet",
) -> list[Path]:
    """Write the chosen rows, in the order of the corpus, to shards named `N-of-M`.

    Arguments:
        columns: that are written; None for all.
        shard_tokens: tokens of a shard.
        kind: `parquet` or `jsonl`.
    """
    rated = RatedTable(table)
    names = list(columns or rated.columns)
    total = manifest.num_tokens
    count = max(1, -(-total // shard_tokens))
    written, rows, spent = list[Path](), list[pa.Table](), 0
    for part, lengths in chosen_rows(rated, manifest, names):
        shard = np.minimum((spent + np.cumsum(lengths) - lengths) // shard_tokens, count - 1)
        spent += int(lengths.sum())
        for number in np.unique(shard).tolist():
            while len(written) < number:
                written.append(_write(_joined(rows), out, len(written), count, kind))
                rows = []
            rows.append(part.filter(pa.array(shard == number)))
    while len(written) < count:
        written.append(_write(_joined(rows), out, len(written), count, kind))
        rows = []
    return written


def _joined(parts: Sequence[pa.Table]) -> pa.Table | None:
    return pa.concat_tables(parts, promote_options="permissive") if parts else None


def chosen_rows(
    rated: RatedTable, manifest: Manifest, columns: Sequence[str]
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The chosen rows of the corpus, some at a time and in its order, with their tokens."""
    shard_names = np.array(manifest.table.column("shard").to_pylist(), dtype=object)
    row_numbers, lengths = (np.asarray(manifest.table.column(name)) for name in ("row", "length"))
    by_shard: dict[int, Any] = {}
    for number, name in enumerate(rated.shards):
        mine = np.flatnonzero(shard_names == name)
        mine = mine[np.argsort(row_numbers[mine])]
        by_shard[number] = (row_numbers[mine], lengths[mine])
    for chunk in rated.chunks(columns):
        rows, tokens = by_shard[chunk.shard]
        first, last = np.searchsorted(rows, [chunk.first, chunk.first + chunk.num_rows])
        if last > first:
            places = pa.array(rows[first:last] - chunk.first)
            yield pa.table({name: chunk.columns[name].take(places) for name in columns}), tokens[first:last]


def _write(table: pa.Table | None, out: Path, number: int, count: int, kind: str) -> Path:
    path = out / f"{number}-of-{count}.{kind}"
    if kind == "jsonl":
        write_jsonl(path, table.to_pylist() if table is not None else [])
    else:
        with atomic_file(path) as file:
            pq.write_table(table if table is not None else pa.table({}), file)
    return path


def order_rows(
    table: Tabular, metric: str, *, tau: float = 0.0, seed: int = 42, descending: bool = False, id: str | None = None
) -> pa.Table:
    """The order of a curriculum: rows by their key, normalized rating / tau + noise (the bare rating for tau 0), low to
    high.

    Arguments:
        tau: temperature of the sample that the rows come from (QuRating, section 6.3).
        id: the column of ids; without it noise is keyed by the row's number.

    Returns:
        columns `row` (number in the table) and `key`, in the order of training.

    Raises:
        NonFiniteRating: a rating is null or not finite.
    """
    rated = RatedTable(table)
    paths = [rated.require(metric), *([rated.require(id)] if id else [])]
    chunks = list(rated.chunks(paths))
    ratings = np.concatenate([as_floats(chunk.columns[metric], metric) for chunk in chunks]) if chunks else np.zeros(0)
    if bad := int((~np.isfinite(ratings)).sum()):
        raise NonFiniteRating(
            f"{bad:,} rows have a rating in '{metric}' that is null, not a number, or infinite.",
            "Leave them out first.",
        )
    ids: Any = [value for chunk in chunks for value in chunk.columns[id].to_pylist()] if id else np.arange(len(ratings))
    moments = exact_moments(lambda: iter([ratings]))
    keys = standardize(ratings, moments) if moments.std else np.zeros(len(ratings))
    if tau > 0:
        keys = (keys / tau if np.isfinite(tau) else 0.0) + keyed_gumbel(ids, seed)
    tie = np.array([str(value) for value in ids]) if id and ids and isinstance(ids[0], str) else np.asarray(ids)
    order = np.lexsort((tie, -keys if descending else keys))
    return pa.table({"row": order, "key": keys[order]})


def write_ordered(
    table: Tabular,
    metric: str,
    out: Path,
    *,
    tau: float = 0.0,
    seed: int = 42,
    descending: bool = False,
    id: str | None = None,
    kind: str = "jsonl",
) -> Path:
    """Write all rows in the order of a curriculum to one file; see `order_rows`."""
    rated = RatedTable(table)
    order = order_rows(table, metric, tau=tau, seed=seed, descending=descending, id=id)
    whole = pa.concat_tables(
        [pa.table(dict(chunk.columns)) for chunk in rated.chunks(rated.columns)], promote_options="permissive"
    )
    return _write(whole.take(order.column("row")), out, 0, 1, kind)


def filter_rows(
    table: Tabular, minimum: dict[str, float], maximum: dict[str, float], out: Path, kind: str = "parquet"
) -> dict[str, int]:
    """Write the rows whose columns are within bounds; rows without a finite value there are not.

    Returns:
        `rows`, `kept`, and `nonfinite`, those without such a value.
    """
    rated = RatedTable(table)
    names = rated.columns
    for name in {*minimum, *maximum}:
        rated.require(name)
    dotted = [name for name in {*minimum, *maximum} if name not in names]
    counts, kept = {"rows": 0, "kept": 0, "nonfinite": 0}, list[pa.Table]()
    for chunk in rated.chunks([*names, *dotted]):
        within, finite = np.ones(chunk.num_rows, bool), np.ones(chunk.num_rows, bool)
        for bounds, sign in ((minimum, 1), (maximum, -1)):
            for name, bound in bounds.items():
                values = as_floats(chunk.columns[name], name)
                finite &= np.isfinite(values)
                within &= sign * values >= sign * bound
        part = pa.table({name: chunk.columns[name] for name in names}).filter(pa.array(within & finite))
        kept.append(part)
        counts = {
            "rows": counts["rows"] + chunk.num_rows,
            "kept": counts["kept"] + len(part),
            "nonfinite": counts["nonfinite"] + int((~finite).sum()),
        }
    _write(_joined(kept), out, 0, 1, kind)
    return counts
