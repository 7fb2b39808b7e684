"""Writing the rows of a manifest as shards of text, and the rows that are within bounds; some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.qurating.selecting.selection import Manifest
from lmlab.methods.qurating.selecting.tables.files import Maker, Processes, make_files
from lmlab.methods.qurating.selecting.tables.table import RatedTable, Tabular, as_floats
from lmlab.methods.qurating.selecting.tables.writing import TableWriter
from lmlab.words import counted

FILTER = "lmlab quality filter"
SHARD_TOKENS = 500_000_000  # about 2 GB of text: files that can be moved, and few of them for a large corpus
Place = Callable[[str], Path]


def materialize(
    table: Tabular,
    manifest: Manifest,
    out: Path,
    columns: Sequence[str] | None = None,
    shard_tokens: int = SHARD_TOKENS,
    kind: str = "parquet",
    place: Place | None = None,
) -> list[Path]:
    """Write the chosen rows, in the order of the corpus, to shards named `N-of-M`.

    Arguments:
        columns: that are written; None for all.
        shard_tokens: tokens of a shard.
        kind: `parquet` or `jsonl`.
        place: where a file of a name is written, by default in `out`.

    Raises:
        UserError: a column is missing, or a row of the manifest.
    """
    rated = RatedTable(table)
    for name in columns or ():
        rated.require(name)
    count = max(1, -(-manifest.num_tokens // shard_tokens))
    paths = [(place or out.__truediv__)(f"{number}-of-{count}.{kind}") for number in range(count)]
    spent, number, written = 0, 0, 0
    writer = TableWriter(paths[0], kind)
    try:
        for part, lengths in chosen_rows(rated, manifest, columns):
            written += len(part)
            shard = np.minimum((spent + np.cumsum(lengths) - lengths) // shard_tokens, count - 1)
            spent += int(lengths.sum())
            for wanted in np.unique(shard).tolist():
                while number < wanted:
                    writer.close()
                    number += 1
                    writer = TableWriter(paths[number], kind)
                writer.write(part.filter(pa.array(shard == wanted)))
        while number < count - 1:
            writer.close()
            number += 1
            writer = TableWriter(paths[number], kind)
        if written < len(manifest):
            raise UserError(
                f"{len(manifest) - written:,} of the {counted(len(manifest), 'chosen rows are')} not in this corpus.",
                "Give the corpus that they were chosen from.",
            )
    except BaseException as error:
        writer.__exit__(type(error), error, None)
        raise
    writer.close()
    return paths


def chosen_rows(
    rated: RatedTable, manifest: Manifest, columns: Sequence[str] | None = None
) -> Iterator[tuple[pa.Table, NDArray[np.int64]]]:
    """The chosen rows of the corpus, some at a time and in its order, with their tokens.

    Arguments:
        columns: None for all.
    """
    shard = manifest.table.column("shard").combine_chunks()
    encoded = shard if pa.types.is_dictionary(shard.type) else shard.dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    number_of = {name: number for number, name in enumerate(rated.shards)}
    known = np.array([number_of.get(name, -1) for name in encoded.dictionary.to_pylist()] or [0], np.int64)
    shards = known[np.asarray(pc.cast(encoded.indices, pa.int64()))] if len(encoded) else np.zeros(0, np.int64)
    row_numbers, lengths = (np.asarray(manifest.table.column(name)) for name in ("row", "length"))
    order = np.lexsort((row_numbers, shards))
    shards, row_numbers, lengths = shards[order], row_numbers[order], lengths[order]
    for chunk in rated.chunks(columns or (), whole=not columns):
        first, last = np.searchsorted(shards, [chunk.shard, chunk.shard + 1])
        first, last = first + np.searchsorted(row_numbers[first:last], [chunk.first, chunk.first + chunk.num_rows])
        if last > first:
            places = pa.array(row_numbers[first:last] - chunk.first)
            names = columns or chunk.own
            yield pa.table({name: chunk.columns[name].take(places) for name in names}), lengths[first:last]


def filter_rows(
    table: Tabular,
    minimum: dict[str, float],
    maximum: dict[str, float],
    out: Path,
    kind: str = "parquet",
    processes: Processes | None = None,
) -> dict[str, int]:
    """Write the rows whose columns are within bounds, a file `N-of-M` for each file; rows without a finite value there
    are not written.

    Arguments:
        processes: who shares the work, file by file.

    Returns:
        `rows`, `kept`, and `nonfinite`, those without such a value.
    """
    rated = RatedTable(table)
    for name in {*minimum, *maximum}:
        rated.require(name)
    maker = _FilteredFiles(minimum, maximum, kind)
    settings = [sorted(minimum.items()), sorted(maximum.items()), kind]
    found = make_files(table, out, FILTER, maker, maker.name, settings, processes)
    return {"rows": 0, "kept": 0, "nonfinite": 0} | found


class _FilteredFiles(Maker):
    def __init__(self, minimum: dict[str, float], maximum: dict[str, float], kind: str) -> None:
        self._minimum, self._maximum, self._kind = minimum, maximum, kind

    def name(self, number: int, count: int) -> str:
        """Of a file."""
        return f"{number}-of-{count}.{self._kind}"

    def make(self, table: RatedTable, shard: int, parts: Path, path: Path) -> dict[str, int]:
        """Filter a file."""
        counts = {"rows": 0, "kept": 0, "nonfinite": 0}
        bounded = sorted({*self._minimum, *self._maximum})
        with TableWriter(path, self._kind) as writer:
            for chunk in table.chunks(bounded, whole=True, shards=[shard]):
                within, finite = np.ones(chunk.num_rows, bool), np.ones(chunk.num_rows, bool)
                for bounds, sign in ((self._minimum, 1), (self._maximum, -1)):
                    for name, bound in bounds.items():
                        values = as_floats(chunk.columns[name], name)
                        finite &= np.isfinite(values)
                        within &= sign * values >= sign * bound
                part = chunk.whole().filter(pa.array(within & finite))
                writer.write(part)
                counts["rows"] += chunk.num_rows
                counts["kept"] += len(part)
                counts["nonfinite"] += int((~finite).sum())
        return counts
