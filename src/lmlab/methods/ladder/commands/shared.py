"""What the commands of ladders share: where they write to, and showing tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import require_writable

TABLES = (".csv", ".md", ".tex", ".json")


def place_for(what: str, *suffixes: str) -> Callable[[Path | None], Path | None]:
    """A check of an option that names a file to be written, before any work is done for it.

    Arguments:
        what: is written, as the sentence of a refusal begins.

    Raises:
        UserError: from the check: another suffix, a folder, or a place where nothing can be written.
    """

    def checked(path: Path | None) -> Path | None:
        if path is None:
            return None
        if path.suffix not in suffixes:
            *most, last = suffixes
            known = f"{', '.join(most)} or {last}" if most else last
            raise UserError(f"'{path}': {what} is written as {known}.", "Name the file with that ending.")
        require_writable(path)
        return path

    return checked


def show(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], output: Path | None, title: str, details: Any = None
) -> None:
    """Print a table, its notes below; write it too where a path is given."""
    from rich.table import Table

    from lmlab.commandline.options import print_table
    from lmlab.methods.ladder.tables.write import text_of, write

    shown = Table(title=title, title_justify="left")
    noted = len(columns) - (columns[-1] == "notes")
    for number, column in enumerate(columns[:noted]):
        numeric = any(isinstance(row[number], int | float) for row in rows)
        shown.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(text_of(cell) for cell in row[:noted]))
    print_table(shown)
    for row in rows if noted < len(columns) else ():
        if row[-1]:
            print(f"{text_of(row[0])}: {row[-1]}.")
    if output is not None:
        write(output, columns, rows, details)
        print(output)
