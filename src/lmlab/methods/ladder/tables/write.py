"""Tables of results: for the terminal, CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import write_json, write_text
from lmlab.methods.ladder.tables.spreadsheets import write_csv

Cell = str | int | float | None
_LATEX = {
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def text_of(cell: Cell) -> str:
    """A cell for people."""
    if cell is None:
        return "-"
    if isinstance(cell, float):
        return f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def in_one_line(text: str) -> str:
    """Text whose line ends would end the row of a table."""
    return " ".join(text.split())


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table; bars and what could be HTML in texts are escaped."""

    def escaped(cell: Cell) -> str:
        return in_one_line(text_of(cell)).replace("|", r"\|").replace("<", "&lt;")

    lines = [[escaped(column) for column in columns], ["---"] * len(columns), *([escaped(c) for c in r] for r in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_latex(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A LaTeX table with booktabs; texts are escaped."""
    body = [" & ".join(escape_latex(text_of(cell)) for cell in row) + r" \\" for row in [columns, *rows]]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}",
        r"\toprule",
        body[0],
        r"\midrule",
        *body[1:],
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Text without commands, in one line."""
    text = "".join(_LATEX.get(sign, sign) for sign in in_one_line(text).replace("\\", "/"))
    return "{[}" + text[1:] if text.startswith("[") else text  # the end of a row takes a bracket after it


def write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[Cell]], details: Any = None) -> None:
    """Write a table by its suffix: .csv, .md, .tex, or .json with all details.

    Raises:
        UserError: another suffix.
    """
    match path.suffix:
        case ".csv":
            write_csv(path, columns, rows)
        case ".md":
            write_text(path, to_markdown(columns, rows))
        case ".tex":
            write_text(path, to_latex(columns, rows))
        case ".json":
            write_json(path, [dict(zip(columns, row, strict=True)) for row in rows] if details is None else details)
        case _:
            raise UserError(f"'{path}': a table is written as .csv, .md, .tex or .json.")
