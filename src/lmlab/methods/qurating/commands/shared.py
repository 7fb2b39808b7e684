"""What the commands of `lmlab quality` share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.data.sources.reading.fields import ReadingOptions
from lmlab.errors import UserError
from lmlab.words import counted


def documents_at(location: str, fields: ReadingOptions) -> list[Any]:
    """All documents at a location of the data layer; records that cannot be read are counted and told."""
    from lmlab.config import validate
    from lmlab.data import Document, SourceConfig, source_settings
    from lmlab.progress import console

    settings = source_settings(location, fields.given())
    source = validate(SourceConfig, settings, f"'{location}'")
    documents, rejects = list[Any](), list[Any]()
    for item in source.read():
        (documents if isinstance(item, Document) else rejects).append(item)
    if rejects:
        console.print(
            f"{counted(len(rejects), 'records')} cannot be read, the first: {rejects[0].where}: {rejects[0].reason}",
            style="yellow",
        )
    return documents


def parse_criteria(texts: Sequence[str]) -> list[Any]:
    """Criteria from NAME, NAME=CLAUSE or NAME=@FILE."""
    from lmlab.methods.qurating import criterion

    found = []
    for text in texts:
        name, equals, clause = text.partition("=")
        if clause.startswith("@"):
            path = Path(clause[1:])
            if not path.is_file():
                raise UserError(f"The clause of '{name}' is to be in '{path}', which is not there.")
            clause = path.read_text("utf-8")
        found.append(criterion(name, clause if equals else None))
    return found


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Print a table."""
    from rich.table import Table

    from lmlab.commandline.options import print_table

    table = Table(title=title or None, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(
            column, justify="right" if any(isinstance(row[number], int | float) for row in rows) else "left"
        )
    for row in rows:
        table.add_row(*(_text(cell) for cell in row))
    print_table(table)


def _text(cell: Any) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
