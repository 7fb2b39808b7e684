"""What the commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

Folder = Annotated[Path, typer.Option("--out", "-o", help="Folder that receives the results.")]


def say(text: str) -> None:
    """Print text in which names of others, or what their code has printed, may stand."""
    from lmlab.terminal import printable

    print(printable(text))


def print_rows(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; numbers stand right."""
    from rich.table import Table

    from lmlab.commandline.options import print_table

    table = Table()
    for place, name in enumerate(columns):
        numbers = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        table.add_column(name, justify="right" if numbers else "left")
    for row in rows:
        table.add_row(*(f"{each:,}" if isinstance(each, int) else str(each) for each in row))
    print_table(table)
