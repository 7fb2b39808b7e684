"""The ids of rows, read again where they are needed: passes over a corpus keep only hashes, and ids may be long."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmlab.methods.qurating.selecting.tables.scan import Scan
from lmlab.methods.qurating.selecting.tables.table import RatedTable


def ids_of(table: RatedTable, found: Scan, path: str | None, rows: NDArray[Any]) -> pa.Array:
    """The ids of some rows, in their order.

    Arguments:
        path: the column of ids; None for the rows' numbers.
    """
    if path is None or found.integer_ids:
        id64 = rows["id64"]
        return pa.array(id64.astype(np.int64) if not len(id64) or id64.max() < 2**63 else id64)
    order = np.argsort(rows["position"], kind="stable")
    positions = rows["position"][order]
    parts = []
    for chunk in table.chunks([path]):
        start = found.firsts[chunk.shard] + chunk.first
        first, last = np.searchsorted(positions, [start, start + chunk.num_rows])
        if last > first:
            parts.append(chunk.columns[path].take(pa.array(positions[first:last] - start)).cast(pa.large_string()))
    back = np.empty(len(order), np.int64)
    back[order] = np.arange(len(order))
    whole = pa.chunked_array(parts, pa.large_string()).combine_chunks()
    return whole.take(pa.array(back))


def ranks(values: pa.ChunkedArray) -> NDArray[np.int64]:
    """The place of each value in their order; texts go by code points."""
    order = np.asarray(pc.array_sort_indices(values.combine_chunks()))
    found = np.empty(len(order), np.int64)
    found[order] = np.arange(len(order))
    return found


def sorted_by_key(
    table: RatedTable,
    found: Scan,
    path: str | None,
    rows: NDArray[Any],
    keys: NDArray[np.float64],
    group: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """The order of rows by falling key, equal keys by rising id; texts of ids are read for equal keys only.

    Arguments:
        group: rows of lower groups come first.
    """
    groups = np.zeros(len(rows), np.int64) if group is None else group
    if path is None or found.integer_ids:
        return np.lexsort((rows["id64"], -keys, groups))
    order = np.lexsort((-keys, groups))
    equal = (np.diff(keys[order]) == 0) & (np.diff(groups[order]) == 0)
    if not equal.any():
        return order
    tied = np.r_[False, equal] | np.r_[equal, False]
    rank = np.zeros(len(rows), np.int64)
    rank[order[tied]] = ranks(pa.chunked_array([ids_of(table, found, path, rows[order[tied]])]))
    return np.lexsort((rank, -keys, groups))
