"""Writing tables piece by piece: memory holds one piece, whatever the size of the file."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from lmlab.errors import UserError

KINDS = ("parquet", "jsonl")


class TableWriter:
    """A file of rows that grows by tables; a context that closes it.

    Records of JSON lines may give pieces other types than those before (whole numbers and then others, nulls and then
    texts): such pieces are set aside and joined at the end.

    Arguments:
        kind: `parquet` or `jsonl`.
        metadata: for the file's schema, with Parquet.
    """

    def __init__(self, path: Path, kind: str = "parquet", metadata: dict[str, str] | None = None) -> None:
        self.path, self.kind, self.num_rows = path, kind, 0
        self._metadata = metadata
        self._parts: list[Path] = []
        self._schema: pa.Schema | None = None
        self._empty: pa.Schema | None = None  # of the first piece, where no piece has rows
        self._writer: pq.ParquetWriter | None = None
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lines: IO[str] | None = open(path, "w", encoding="utf-8") if kind == "jsonl" else None  # noqa: SIM115

    def write(self, table: pa.Table) -> None:
        """Add rows."""
        self.num_rows += len(table)
        if self._lines is not None:
            for batch in table.to_batches(max_chunksize=4096):
                self._lines.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in batch.to_pylist())
            return
        schema = table.schema.remove_metadata()
        if not len(table):
            self._empty = self._empty or schema
            return
        if self._writer is None or schema != self._schema:
            self._next_part(schema)
        assert self._writer is not None
        self._writer.write_table(table.cast(schema))

    def _next_part(self, schema: pa.Schema) -> None:
        if self._writer is not None:
            self._writer.close()
        self._parts.append(self.path.with_name(f".{self.path.name}.{len(self._parts)}.tmp"))
        self._schema = schema
        self._writer = pq.ParquetWriter(self._parts[-1], schema.with_metadata(self._metadata))

    def close(self) -> None:
        """Make the file whole."""
        if self._lines is not None:
            self._lines.close()
            return
        if self._writer is None:
            self._next_part(self._empty or pa.schema([]))
        assert self._writer is not None
        self._writer.close()
        if len(self._parts) == 1:
            self._parts[0].replace(self.path)
        else:
            join_tables(self._parts, self.path, self._metadata)
        self._clear()

    def _clear(self) -> None:
        for part in self._parts:
            part.unlink(missing_ok=True)

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
            return
        for open_file in (self._lines, self._writer):
            if open_file is not None:
                open_file.close()
        self._clear()


def join_tables(parts: list[Path], target: Path, metadata: dict[Any, Any] | None = None) -> None:
    """Put Parquet files together, with the columns of all of them.

    Raises:
        UserError: their types do not fit one column.
    """
    schema = joint_schema([pq.read_schema(part).remove_metadata() for part in parts], target.name)
    with pq.ParquetWriter(target, schema.with_metadata(metadata)) as writer:
        for part in parts:
            file = pq.ParquetFile(part)
            for group in range(file.num_row_groups):
                writer.write_table(promote(file.read_row_group(group), schema))


def joint_schema(schemas: list[pa.Schema], name: str) -> pa.Schema:
    """One schema for the columns of all. Integers of which some need all 64 bits, as hashes do, are unsigned.

    Arguments:
        name: of the file that they are for.

    Raises:
        UserError: the types of a column do not fit.
    """
    unsigned = {field.name for schema in schemas for field in schema if field.type == pa.uint64()}
    schemas = [
        pa.schema(
            [
                field.with_type(pa.uint64()) if field.name in unsigned and pa.types.is_integer(field.type) else field
                for field in schema
            ]
        )
        for schema in schemas
    ]
    try:
        return pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UserError(
            f"Records of '{name}' hold values of kinds that do not fit one column: {error}.",
            "Give the column one kind of value in all files, or keep fewer columns.",
        ) from None


def promote(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns and types of a schema; columns that it lacks are null."""
    columns = [
        table.column(each.name).cast(each.type) if each.name in table.column_names else pa.nulls(len(table), each.type)
        for each in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema.remove_metadata())
