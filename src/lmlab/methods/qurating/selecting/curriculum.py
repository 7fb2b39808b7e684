"""Rows in the order of a curriculum (QuRating, section 6.3), by an external sort: memory holds keys, not rows."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lmlab.methods.qurating.selecting.drawing.keys import gumbels, hash_ids
from lmlab.methods.qurating.selecting.drawing.temperature import check_temperature, is_zero
from lmlab.methods.qurating.selecting.materialize import Place
from lmlab.methods.qurating.selecting.moments import check_spread, exact_moments, standardize
from lmlab.methods.qurating.selecting.problems import NonFiniteRating
from lmlab.methods.qurating.selecting.tables.ids import ranks
from lmlab.methods.qurating.selecting.tables.table import RatedTable, Tabular, as_floats
from lmlab.methods.qurating.selecting.tables.writing import TableWriter, joint_schema, promote
from lmlab.words import counted

_BUCKET_ROWS = 2**17  # rows that are sorted in memory, with their texts
_MOST_BUCKETS = 256  # files open at once; systems allow 1,024 by default
_RANK = "\0rank"


def order_rows(
    table: Tabular, metric: str, *, tau: float = 0.0, seed: int = 42, descending: bool = False, id: str | None = None
) -> pa.Table:
    """The order of a curriculum: rows by their key, normalized rating / tau + noise (no noise for tau 0), low to high;
    equal keys by id.

    Arguments:
        tau: temperature of the sample that the rows come from (QuRating, section 6.3).
        id: the column of ids; without it noise is keyed by the row's number.

    Returns:
        columns `row` (number in the table) and `key`, in the order of training.

    Raises:
        NonFiniteRating: a rating is null or not finite.
        BadTemperature: tau is negative or not a number.
    """
    check_temperature(tau)
    rated = RatedTable(table)
    noisy = not is_zero(tau)
    hashed = id is not None and noisy
    paths = [rated.require(metric), *([rated.require(id)] if id is not None else [])]
    ratings, hashes = [np.zeros(0)], [np.zeros(0, np.uint64)]
    for chunk in rated.chunks(paths if hashed else paths[:1]):
        ratings.append(as_floats(chunk.columns[metric], metric))
        if hashed:
            hashes.append(hashed_ids(chunk.columns[str(id)]))
    rating = np.concatenate(ratings)
    if bad := int((~np.isfinite(rating)).sum()):
        raise NonFiniteRating(
            f"{counted(bad, 'rows have')} a rating in '{metric}' that is null, not a number, or infinite.",
            "Leave them out first.",
        )
    moments = exact_moments(lambda: iter([rating]))
    if noisy:
        check_spread(moments, metric)
    if not math.isfinite(moments.std):  # too far apart to be normalized, which their order does not need
        keys = rating
    else:
        keys = standardize(rating, moments) if moments.std else rating - moments.mean
    if noisy:
        id64 = np.concatenate(hashes) if hashed else np.arange(len(keys), dtype=np.uint64)
        keys = (keys / tau if np.isfinite(tau) else 0.0) + gumbels(id64, seed)
    order = np.argsort(-keys if descending else keys, kind="stable")
    if id is not None and len(order) and (np.diff(keys[order]) == 0).any():
        order = _by_id_within_ties(rated, id, keys, order)
    return pa.table({"row": order, "key": keys[order]})


def hashed_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """64 bits of each id of a column."""
    return hash_ids(np.asarray(ids) if pa.types.is_integer(ids.type) and not ids.null_count else ids.to_pylist())


def _by_id_within_ties(
    rated: RatedTable, id: str, keys: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The order in which rows with equal keys go by their ids, which only they need."""
    starts = np.r_[True, np.diff(keys[order]) != 0]
    group = np.cumsum(starts)
    tied = np.bincount(group)[group] > 1
    rows = np.sort(order[tied])
    parts, first = [], 0
    for chunk in rated.chunks([id]):
        here = rows[np.searchsorted(rows, first) : np.searchsorted(rows, first + chunk.num_rows)] - first
        parts.append(chunk.columns[id].take(pa.array(here)))
        first += chunk.num_rows
    if len({part.type for part in parts}) > 1:  # numbers in one file, texts in another
        parts = [part.cast(pa.large_string()) for part in parts]
    rank = np.zeros(len(keys), np.int64)
    rank[rows] = ranks(pa.chunked_array(parts))
    return order[np.lexsort((rank[order], group))]


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
    place: Place | None = None,
) -> Path:
    """Write all rows in the order of a curriculum to one file; see `order_rows`. Beside it stand temporary files of the
    same size until it is whole.

    Arguments:
        place: where a file of a name is written, by default in `out`.
    """
    rated = RatedTable(table)
    order = np.asarray(order_rows(table, metric, tau=tau, seed=seed, descending=descending, id=id).column("row"))
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    path = (place or out.__truediv__)(f"0-of-1.{kind}")
    path.parent.mkdir(parents=True, exist_ok=True)
    size = max(_BUCKET_ROWS, -(-len(order) // _MOST_BUCKETS))
    with tempfile.TemporaryDirectory(prefix=".order-", suffix=".tmp", dir=path.parent) as folder:
        buckets = [TableWriter(Path(folder) / f"{number}.parquet") for number in range(max(1, -(-len(order) // size)))]
        first = 0
        for chunk in rated.chunks((), whole=True):
            mine = rank[first : first + chunk.num_rows]
            first += chunk.num_rows
            rows = chunk.whole().append_column(_RANK, pa.array(mine))
            for number in np.unique(mine // size).tolist():
                buckets[number].write(rows.filter(pa.array(mine // size == number)))
        for bucket in buckets:
            bucket.close()
        schema = _schema_of(buckets, path.name)
        with TableWriter(path, kind) as writer:
            for bucket in buckets:
                rows = pq.read_table(bucket.path)
                if len(rows):
                    writer.write(promote(rows.sort_by(_RANK).drop_columns(_RANK), schema))
    return path


def _schema_of(buckets: list[TableWriter], name: str) -> Any:
    schemas = [pq.read_schema(bucket.path).remove_metadata() for bucket in buckets if bucket.num_rows]
    if not schemas:
        return pa.schema([])
    schema = joint_schema(schemas, name)
    return schema.remove(schema.get_field_index(_RANK))
