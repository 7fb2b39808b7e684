"""What the commands of ladders share: showing tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


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
