"""Tables of results: for the terminal, CSV, Markdown, LaTeX and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError
from lmlab.files import write_json, write_text
from lmlab.methods.ladder.tables.read import write_csv

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


def to_markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A Markdown table; bars in texts are escaped."""
    lines = [columns, ["---"] * len(columns), *([text_of(cell).replace("|", r"\|") for cell in row] for row in rows)]
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
    """Text without commands."""
    return "".join(_LATEX.get(sign, sign) for sign in text.replace("\\", "/"))


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
