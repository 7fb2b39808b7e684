"""Documents from columns of values: Parquet and Arrow."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, ClassVar, Literal

from lmlab.data.documents import Reject
from lmlab.data.sources.jsonl import too_long
from lmlab.data.sources.reading.arrow_bounds import blocks, check_message
from lmlab.data.sources.reading.files import short_reason
from lmlab.data.sources.reading.records import RecordSource
from lmlab.errors import LmlabError, UserError, missing_extra
from lmlab.files import DamagedError, bytes_read, open_raw, share_read
from lmlab.redaction import redact
from lmlab.words import counted

_BATCH_RECORDS = 256  # records at once: many small ones cost little each, and long documents still fit in memory
_BUFFER_BYTES = 2**20  # of a column that are read at once, rather than a whole row group
# Values of a batch that are at most this large are turned into Python's at once; larger ones row by row.
_BATCH_BYTES = 2**26
_EXPANSION_COUNTS_FROM = 2**28  # 256 MiB do no harm, and short repetitive files grow much without ill will


class ParquetSource(RecordSource):
    """Parquet files, a few pages at a time, and of these only the columns that are needed."""

    kind: Literal["parquet"] = "parquet"
    suffixes: ClassVar[tuple[str, ...]] = (".parquet",)

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a row."""
        pyarrow = _pyarrow(path)
        done = 0
        with open_raw(path) as raw:
            texts = _texts_of(pyarrow, raw, path)
            # a value that is repeated stays one value until its row is asked for
            with pyarrow.parquet.ParquetFile(raw, buffer_size=_BUFFER_BYTES, read_dictionary=texts) as file:
                names = file.schema_arrow.names
                known = names if columns is None else [name for name in columns if name in names]
                self._refuse_bombs(file.metadata, set(known), path)
                try:
                    for where, record in _rows(path, file.iter_batches(_BATCH_RECORDS, columns=known), self):
                        yield where, record
                        done += 1
                except LmlabError:
                    raise
                except Exception as error:
                    rows = file.metadata.num_rows
                    missing = f"{done:,} of {rows:,} rows were read, about {1 - done / max(1, rows):.0%} are missing"
                    raise DamagedError(f"{path}:{done + 1}", short_reason(error), missing) from None
                if done != file.metadata.num_rows:
                    raise DamagedError(path, f"{done:,} rows came of the {file.metadata.num_rows:,} that it promises")

    def _refuse_bombs(self, metadata: Any, columns: set[str], path: str) -> None:
        """Refuse what would be unpacked to many times its size."""
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            for place in range(group.num_columns):
                chunk = group.column(place)
                size, packed = chunk.total_uncompressed_size, max(1, chunk.total_compressed_size)
                if chunk.path_in_schema.split(".")[0] in columns and size > max(
                    _EXPANSION_COUNTS_FROM, self.max_expansion * packed
                ):
                    raise UserError(
                        f"'{path}', row group {number}: the column '{chunk.path_in_schema}' grows from {packed:,} to"
                        f" {counted(size, 'bytes')} when it is decompressed.",
                        "If that is meant, raise max_expansion of the source.",
                    )


class ArrowSource(RecordSource):
    """Arrow files and streams (IPC), such as the folders that `datasets` writes with `save_to_disk`; its caches there
    are not read.
    """

    kind: Literal["arrow"] = "arrow"
    suffixes: ClassVar[tuple[str, ...]] = (".arrow", ".feather", ".ipc")

    def _found(self) -> list[str]:
        found = super()._found()
        return [path for path in found if not path.rpartition("/")[2].startswith("cache-")] or found

    def records_of(self, path: str, columns: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
        """One record a row."""
        pyarrow = _pyarrow(path)
        done = 0
        with open_raw(path) as raw:
            is_file = raw.read(6) == b"ARROW1"
            raw.seek(0)
            try:
                reader = pyarrow.ipc.open_file(raw) if is_file else pyarrow.ipc.open_stream(raw)
                batches = (_file if is_file else _stream)(reader, raw, path, self.max_expansion)
                known = [name for name in reader.schema.names if columns is None or name in columns]
                pieces = (part for batch in batches for part in _pieces(batch.select(known)))
                for where, record in _rows(path, pieces, self):
                    yield where, record
                    done += 1
            except LmlabError:
                raise
            except Exception as error:
                missing = f"{counted(done, 'rows')}; " + share_read(*bytes_read(raw))
                raise DamagedError(f"{path}:{done + 1}", short_reason(error), missing) from None


def _file(reader: Any, raw: Any, path: str, max_expansion: float) -> Iterator[Any]:
    """The batches of a file, none of which is a bomb."""
    dictionaries, records = blocks(raw)
    if len(records) != reader.num_record_batches:
        raise ValueError("its footer is damaged")
    for number, place in enumerate(records):
        for each in [*(dictionaries if number == 0 else ()), place]:  # dictionaries are unpacked with the first batch
            raw.seek(each)
            check_message(raw, path, max_expansion)
        yield reader.get_batch(number)


def _stream(reader: Any, raw: Any, path: str, max_expansion: float) -> Iterator[Any]:
    """The batches of a stream, none of which is a bomb. Its writer closes it by a mark of its end; Arrow takes a cut
    between two batches for that.
    """
    with suppress(StopIteration):
        while True:
            _check_next_batch(raw, path, max_expansion)
            yield reader.read_next_batch()
    place = raw.tell()
    raw.seek(max(0, place - 8))
    if raw.read(8) not in (b"\xff\xff\xff\xff\0\0\0\0", b"") and raw.read(1) == b"":
        raise EOFError("the stream ends without its mark of the end")


def _check_next_batch(raw: Any, path: str, max_expansion: float) -> None:
    """Look at all messages up to the next batch, which is read with the dictionaries before it; the place is left."""
    start = raw.tell()
    while found := check_message(raw, path, max_expansion):
        is_batch, after = found
        if is_batch:
            break
        raw.seek(after)
    raw.seek(start)


def _rows(path: str, batches: Any, source: RecordSource) -> Iterator[tuple[str, Any]]:
    shown, start, limit = redact(path), 0, source.max_record_bytes
    for batch in batches:
        places = [f"{shown}:{number}" for number in range(start + 1, start + batch.num_rows + 1)]
        start += batch.num_rows
        records: Any = None
        if _unpacked_bytes(batch) <= _BATCH_BYTES:
            try:
                records = batch.to_pylist()
            except Exception:  # one bad value spoils the batch: find out which
                records = None
        if records is None:
            records = (_row(batch, number, where, limit) for number, where in enumerate(places))
        yield from zip(places, records, strict=True)


def _unpacked_bytes(batch: Any) -> int:
    """The most that the values of a batch take when each row has its own."""
    size = 0
    for column in batch.columns:
        dictionary = getattr(column, "dictionary", None)
        size += column.nbytes if dictionary is None else dictionary.nbytes * max(1, len(column))
    return size


def _row(batch: Any, number: int, where: str, limit: int) -> Any:
    row = batch.slice(number, 1)
    try:
        if any(_cell_bytes(column) > limit for column in row.columns):
            return too_long(where, "a value", limit)
        return row.to_pylist()[0]
    except Exception as error:
        return Reject(where, f"unreadable ({short_reason(error)})")


def _cell_bytes(column: Any) -> int:
    dictionary = getattr(column, "dictionary", None)
    if dictionary is not None:
        index = column.indices[0].as_py()
        return 0 if index is None else dictionary.slice(index, 1).nbytes
    return int(column.nbytes)


def _pieces(batch: Any) -> Iterator[Any]:
    """Parts of a batch; a damaged one is an error, as Arrow would trust its offsets and read beyond its memory."""
    batch.validate(full=True)
    for start in range(0, batch.num_rows, _BATCH_RECORDS):
        yield batch.slice(start, _BATCH_RECORDS)


def _texts_of(pyarrow: Any, raw: Any, path: str) -> list[str]:
    """The columns of text at the top of a Parquet file."""
    schema = pyarrow.parquet.read_schema(raw)
    raw.seek(0)
    types = pyarrow.types
    return [each.name for each in schema if types.is_string(each.type) or types.is_large_string(each.type)]


def _pyarrow(path: str) -> Any:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise missing_extra("pyarrow", f"Reading '{path}'") from None
    return pyarrow
