"""CSV files whose texts a spreadsheet does not take for formulas."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from lmlab.files import atomic_file


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Write a CSV file whose texts no spreadsheet takes for formulas."""
    with atomic_file(path, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([guarded(column) for column in columns])
        writer.writerows([[guarded(cell) for cell in row] for row in rows])
    return path


_FORMULAS = ("=", "+", "-", "@", "\t", "\r")


def unguarded(text: str) -> str:
    """A text as it was before `guarded`."""
    return text[1:] if text.startswith("'") and text[1:].startswith(_FORMULAS) else text


def guarded(cell: Any) -> Any:
    """A text that begins like a formula gets a quote in front."""
    if isinstance(cell, str) and cell.startswith(_FORMULAS):
        return "'" + cell
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 1e15:  # spreadsheets keep 15 digits
        return int(cell)
    return cell
