"""The columns of a file of runs as texts: of CSV, Parquet or JSON lines."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.errors import UserError, missing_extra
from lmlab.files import read_jsonl
from lmlab.methods.ladder.tables.table import Floats
from lmlab.words import counted


class Cells(dict[str, list[str]]):
    """The cells of a table as texts, by column.

    Attributes:
        rows: where each row stands in its file, for messages: from 1, the header of a CSV file being its first line.
    """

    def __init__(self, columns: Mapping[str, list[str]], rows: Iterable[int]) -> None:
        super().__init__(columns)
        self.rows = tuple(rows)


def text_of(cell: Any) -> str:
    """A cell as a CSV file would have it; nothing where there is none."""
    text = "" if cell is None else str(cell)
    return "" if text in ("nan", "NaN", "<NA>", "NaT", "None") else text


def read_json_lines(path: Path) -> Cells:
    """JSON lines: one object of plain values a line; a key that a line lacks is an empty cell."""
    rows = list(read_jsonl(path, allow_nan=True))
    for number, row in enumerate(rows, 1):
        if any(isinstance(value, dict | list) for value in row.values()):
            raise UserError(f"'{path}', row {number}: a row is one object of numbers and texts.")
    if not rows:
        raise UserError(f"'{path}' has no rows.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return Cells({name: [text_of(row.get(name)) for row in rows] for name in names}, range(1, len(rows) + 1))


def read_csv_columns(path: Path) -> Cells:
    """The cells of a CSV file (of tabs with the suffix .tsv), by column.

    Raises:
        UserError: it is missing or empty, or a row has more or fewer cells than the header.
    """
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 text (byte {error.start}).") from None
    reader = csv.reader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
    try:
        # An empty line ends with the one before it, so that lines are counted where a row ends.
        header, rows = next(reader, []), [(reader.line_num, row) for row in reader if any(row)]
    except csv.Error as error:
        raise UserError(
            f"'{path}', row {reader.line_num}: {error}.", "Is it a table of comma-separated cells?"
        ) from None
    if not header:
        raise UserError(f"'{path}' is empty.")
    twice = next((name for place, name in enumerate(header) if name in header[:place]), None)
    if twice is not None:
        raise UserError(f"'{path}': the column '{twice}' is there twice.", "Remove one of them.")
    for number, row in rows:
        if len(row) != len(header):
            raise UserError(
                f"'{path}', row {number}: {counted(len(row), 'cells')} for {counted(len(header), 'columns')}."
            )
    if not rows:
        raise UserError(f"'{path}' has a header and no rows.")
    cells = zip(*(row for _, row in rows), strict=True)
    return Cells({name: list(column) for name, column in zip(header, cells, strict=True)}, [at for at, _ in rows])


def numbers(cells: Sequence[str]) -> Floats:
    """Cells of a column as numbers; whatever is not one is nan, and is reported where it is used."""
    try:
        if (text := "".join(cells)).isascii() and "_" not in text:
            return np.array(cells, dtype=np.float64)
    except ValueError:
        pass
    return np.array([number_in(cell) for cell in cells])


def number_in(cell: str) -> float:
    """What Python takes for numbers beside those of tables, such as `1_000` and digits of other scripts, is none."""
    try:
        return float(cell) if cell.isascii() and "_" not in cell else math.nan
    except ValueError:
        return math.nan


def read_parquet(path: Path) -> Cells:
    try:
        import pyarrow.parquet as parquet
    except ImportError:
        raise missing_extra("pyarrow", f"Reading '{path}'") from None
    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except Exception as error:  # pyarrow raises errors of its own
        raise UserError(f"'{path}' is not a readable Parquet file ({str(error).splitlines()[0]}).") from None
    if not table.num_rows:
        raise UserError(f"'{path}' has no rows.")
    columns = {name: [text_of(cell) for cell in table[name].to_pylist()] for name in table.column_names}
    return Cells(columns, range(1, table.num_rows + 1))
