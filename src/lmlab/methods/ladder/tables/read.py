"""Reading and writing tables of runs: the reference's CSV files and configurations, and lmlab's own tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.methods.ladder.tables.cells import Cells, read_csv_columns, read_json_lines, read_parquet, text_of
from lmlab.methods.ladder.tables.own_table import from_own_table
from lmlab.methods.ladder.tables.reference_config import read_reference_config
from lmlab.methods.ladder.tables.table import RunTable


def read_table(path: Path) -> RunTable:
    """Read a configuration of the reference (JSON), a run table (CSV or Parquet), or a folder that `lmlab ladder
    collect` wrote.

    Raises:
        UserError: the file is missing or broken; the message says where.
    """
    if path.is_dir():
        path = path / "runs.csv"
    match path.suffix:
        case ".json":
            return read_reference_config(path)
        case ".parquet":
            columns = read_parquet(path)
        case ".csv" | ".tsv":
            columns = read_csv_columns(path)
        case ".jsonl":
            columns = read_json_lines(path)
        case _:
            raise UserError(
                f"'{path}': a run table is a .csv, .tsv, .jsonl or .parquet file, or the .json configuration of the"
                " reference."
            )
    return from_own_table(columns, path)


def table_from_frame(frame: Any) -> RunTable:
    """The run table of a data frame, of pandas or another library with `columns` and `frame[name]`.

    Raises:
        UserError: it is no frame, or a column is missing or broken.
    """
    try:
        columns = {str(name): [text_of(cell) for cell in frame[name]] for name in frame.columns}
    except (AttributeError, TypeError):
        raise UserError(f"A run table is a file or a data frame, not {type(frame).__name__}.") from None
    count = len(next(iter(columns.values()), []))
    if not count:
        raise UserError("The data frame has no rows.")
    return from_own_table(Cells(columns, range(1, count + 1)), Path("the data frame"))
