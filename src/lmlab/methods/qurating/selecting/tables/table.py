"""Tables of rated rows, read column by column: what is not asked for is not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lmlab.data import ParquetSource, RecordSource, Reject, record_source
from lmlab.data.sources.reading.records import field
from lmlab.errors import UserError, did_you_mean, reads
from lmlab.files import open_raw

_ROWS = 2**18  # read at once, of few columns
Tabular = (
    str | Path | Sequence[str | Path] | Mapping[str, Any] | Any
)  # the last is a table of Arrow, which has no types


@dataclass(frozen=True)
class Chunk:
    """Some consecutive rows of a shard.

    Attributes:
        shard: its number.
        first: the number of the first row in its shard.
        columns: arrays by the names that were asked for.
        own: names of the columns that the rows have, where all were asked for.
    """

    shard: int
    first: int
    columns: dict[str, pa.Array]
    own: tuple[str, ...] = ()

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(next(iter(self.columns.values())))

    def whole(self) -> pa.Table:
        """The rows as they are, where all columns were asked for."""
        return pa.table({name: self.columns[name] for name in self.own})


class RatedTable:
    """Rows with ids, lengths, domains and ratings, in one or several shards.

    Arguments:
        table: a location of the data layer (file, glob, folder or URL of JSON lines, Parquet or Arrow), several of
            them, a table of Arrow, or a mapping of columns.

    Attributes:
        shards: their names, relative to the folder that holds them all.
    """

    def __init__(self, table: Tabular) -> None:
        if isinstance(table, Mapping):
            table = pa.table({name: _array(values, name) for name, values in table.items()})
        self._memory = table if isinstance(table, pa.Table) else None
        self._sources: list[RecordSource] = []
        if isinstance(table, pa.Table):
            self.shards, self._files = ["memory"], [""]
        else:
            places = [table] if isinstance(table, str | Path) else list(table)
            found = [
                (source, file) for source in (record_source(str(place)) for place in places) for file in source.files()
            ]
            self._sources, self._files = [source for source, _ in found], [file for _, file in found]
            self.shards = relative_names(self._files)

    @property
    def files(self) -> list[str]:
        """The files of the shards; none for a table in memory."""
        return [] if self._memory is not None else list(self._files)

    @property
    def columns(self) -> list[str]:
        """The names of all columns, by the first shard that has any: a file may be empty."""
        if self._memory is not None:
            return list(self._memory.column_names)
        found = (self._columns_of(source, file) for source, file in zip(self._sources, self._files, strict=True))
        return next(filter(None, found), [])

    def _columns_of(self, source: RecordSource, file: str) -> list[str]:
        if isinstance(source, ParquetSource):
            return _parquet_columns(file)
        first: Any = next((record for _, record in source.records_of(file, None)), {})
        return list(first) if isinstance(first, dict) else []

    def has(self, path: str) -> bool:
        """Whether there is a column, or a field of one, at a dotted path."""
        known = self.columns
        return path in known or path.split(".")[0] in known

    def require(self, path: str) -> str:
        """The path, if it can be there.

        Raises:
            UserError: there is no such column.
        """
        if not self.has(path):
            raise UserError(f"There is no column '{path}'. {did_you_mean(path, self.columns)}")
        return path

    def chunks(self, paths: Sequence[str], whole: bool = False, shards: Sequence[int] | None = None) -> Iterator[Chunk]:
        """All rows in order, with the columns at these dotted paths.

        Arguments:
            whole: also with all other columns that rows have, which may differ from chunk to chunk.
            shards: the numbers of those that are read; None for all.

        Raises:
            UserError: a record cannot be read.
        """
        for shard in range(len(self.shards)) if shards is None else shards:
            first = 0
            for columns, own in self._of_shard(shard, paths, whole):
                chunk = Chunk(shard, first, columns, own)
                first += chunk.num_rows
                yield chunk

    def _of_shard(
        self, shard: int, paths: Sequence[str], whole: bool
    ) -> Iterator[tuple[dict[str, pa.Array], tuple[str, ...]]]:
        if self._memory is not None:
            own = tuple(self._memory.column_names) if whole else ()
            for start in range(0, len(self._memory), _ROWS):
                part = self._memory.slice(start, _ROWS)
                yield {path: _descend(_whole(part, path), path) for path in dict.fromkeys([*own, *paths])}, own
            return
        source, file = self._sources[shard], self._files[shard]
        if isinstance(source, ParquetSource):
            yield from self._of_parquet(file, paths, whole)
            return
        tops = None if whole else sorted({path.split(".")[0] for path in paths} | set(paths))
        records: list[Any] = []
        for where, record in source.records_of(file, tops):
            if isinstance(record, Reject):
                raise UserError(f"{record.where} cannot be read: {record.reason}.", "Repair it or leave it out.")
            if not isinstance(record, dict):
                raise UserError(f"{where} is no record with named fields.")
            records.append(record)
            if len(records) == _ROWS:
                yield _arrays(records, paths, whole)
                records = []
        if records:
            yield _arrays(records, paths, whole)

    @reads("a Parquet file")
    def _of_parquet(
        self, file: str, paths: Sequence[str], whole: bool
    ) -> Iterator[tuple[dict[str, pa.Array], tuple[str, ...]]]:
        with open_raw(file) as raw, pq.ParquetFile(raw) as parquet:
            if parquet.metadata.num_rows == 0:
                return
            names = parquet.schema_arrow.names
            for path in paths:
                if path not in names and path.split(".")[0] not in names:
                    raise UserError(f"'{file}' has no column '{path}'. {did_you_mean(path, names)}")
            own = tuple(names) if whole else ()
            for batch in parquet.iter_batches(_ROWS, columns=None if whole else list(paths)):
                yield {path: _descend(_whole(batch, path), path) for path in dict.fromkeys([*own, *paths])}, own


@reads("a Parquet file")
def _parquet_columns(file: str) -> list[str]:
    with open_raw(file) as raw:
        return list(pq.ParquetFile(raw).schema_arrow.names)


def relative_names(files: Sequence[str]) -> list[str]:
    """Names of files relative to the folder that holds them all, with `/`, so that they do not change when the folder
    is moved.
    """
    if len(files) == 1:
        return [files[0].rpartition("/")[2]]
    common = (
        os.path.commonpath([file.rpartition("/")[0] or "." for file in files])
        if not any("://" in file for file in files)
        else ""
    )
    return [Path(os.path.relpath(file, common)).as_posix() if common else file.split("://", 1)[-1] for file in files]


def _whole(table: Any, path: str) -> Any:
    names = table.schema.names
    found = table.column(path if path in names else path.split(".")[0])
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    plain = _without_views(found.type)
    return found if plain == found.type else found.cast(plain)


def _without_views(kind: pa.DataType) -> pa.DataType:
    """The type with texts and bytes in place of views of them, of which Arrow can take no rows."""
    if pa.types.is_string_view(kind) or pa.types.is_binary_view(kind):
        return pa.large_string() if pa.types.is_string_view(kind) else pa.large_binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_without_views(field.type)) for field in kind])
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        inner = kind.value_field.with_type(_without_views(kind.value_type))
        return pa.list_(inner) if pa.types.is_list(kind) else pa.large_list(inner)
    return kind


def _descend(array: Any, path: str) -> pa.Array:
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    if not pa.types.is_struct(array.type):
        return array
    for key in path.split(".")[1:]:
        if not pa.types.is_struct(array.type) or array.type.get_field_index(key) < 0:
            raise UserError(f"There is no field '{path}'.")
        array = pc.struct_field(array, key)
    return array


def _arrays(
    records: Sequence[dict[str, Any]], paths: Sequence[str], whole: bool
) -> tuple[dict[str, pa.Array], tuple[str, ...]]:
    found, own = {}, tuple(dict.fromkeys(name for record in records for name in record)) if whole else ()
    for path in dict.fromkeys([*own, *paths]):
        values = [record.get(path) if path in own else field(record, path) for record in records]
        if path in paths and all(value is None for value in values):
            raise UserError(f"No record has the field '{path}'.", f"The first has: {', '.join(sorted(records[0]))}.")
        found[path] = _array(values, path)
    return found, own


def _array(values: Any, path: str) -> Any:
    """Values as Arrow holds them; integers from 2**63 on, as hashes give for ids, are unsigned."""
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    try:
        return pa.array(values)
    except OverflowError:
        pass
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        raise UserError(f"The field '{path}' holds values of several kinds.") from None
    except UnicodeEncodeError:
        raise UserError(f"The field '{path}' holds a text that is no Unicode.") from None
    try:
        return pa.array(values, pa.uint64())
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):
        raise UserError(
            f"The field '{path}' holds integers beyond 64 bits.", "Write them as texts, or keep fewer columns."
        ) from None


def as_texts(array: pa.Array, path: str) -> list[str]:
    """A column of texts; null is the empty text.

    Raises:
        UserError: it holds something else.
    """
    kinds = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    values = array.dictionary_decode() if pa.types.is_dictionary(array.type) else array
    if not any(is_kind(values.type) for is_kind in kinds):
        raise UserError(f"The column '{path}' holds {array.type}, not texts.", "Name another with --text-field.")
    return [value or "" for value in values.to_pylist()]


def as_floats(array: pa.Array, path: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """A column of numbers; null is NaN, and integers beyond 2**53 are rounded.

    Raises:
        UserError: it holds something else.
    """
    if pa.types.is_null(array.type):
        return np.full(len(array), np.nan)
    if not (pa.types.is_floating(array.type) or pa.types.is_integer(array.type)):
        raise UserError(f"The column '{path}' holds {array.type}, not numbers.")
    return np.asarray(pc.fill_null(pc.cast(array, pa.float64(), safe=False), float("nan")))
