"""How the cells of a table are written and aligned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmlab.reports.blocks import Align, Cell, Table
from lmlab.reports.formats import SIGNIFICANT_DIGITS, format_number

MISSING = "—"
MAX_DECIMALS = 6  # longer numbers are easier to read in scientific notation
MAX_SPAN = 4  # orders of magnitude that may share their decimals
SMALL = 0.01  # a column that stays below and spans too much for decimals is in scientific notation
SHORT_TEXT = 14  # characters that stay on one line
SMALLEST_DIGITS = 2  # significant digits that the smallest value of a column keeps


@dataclass(frozen=True)
class Column:
    """A rendered column: its header, its cells as text, how they are aligned, and whether they may break into lines."""

    title: str
    cells: Sequence[str]
    align: Align
    breaks: bool


def columns_of(table: Table) -> list[Column]:
    """Render a table column by column."""
    columns = []
    for index, title in enumerate(table.columns):
        cells = [row[index] for row in table.rows]
        align = table.align[index] if table.align is not None else _natural_align(cells)
        texts = _texts(cells)
        breaks = any(isinstance(cell, str) and len(cell) > SHORT_TEXT for cell in cells)
        columns.append(Column(title, texts, align, breaks))
    return columns


def _natural_align(cells: Sequence[Cell]) -> Align:
    given = [cell for cell in cells if cell is not None]
    return "right" if given and all(_is_number(cell) for cell in given) else "left"


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _texts(cells: Sequence[Cell]) -> list[str]:
    floats = [float(cell) for cell in cells if isinstance(cell, float) and math.isfinite(cell)]
    write = _float_format(floats)
    return [_text(cell, write) for cell in cells]


def _text(cell: Cell, write: Callable[[float], str]) -> str:
    if cell is None:
        return MISSING
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    if isinstance(cell, float) and math.isfinite(cell):
        return write(float(cell))
    if isinstance(cell, int | float):
        return format_number(cell)
    return cell


def _float_format(values: Sequence[float]) -> Callable[[float], str]:
    """One way to write all finite floats of a column."""
    decimals = _shared_decimals(values)
    if decimals is not None:
        return lambda value: f"{value:,.{decimals}f}"
    if max(map(abs, values)) < SMALL:
        return _scientific
    return format_number


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}" if value else "0"


def _shared_decimals(values: Sequence[float]) -> int | None:
    """Decimals with which every value keeps its meaning, so that the decimal points line up; None if there are none."""
    magnitudes = [math.floor(math.log10(abs(value))) for value in values if value != 0]
    if not magnitudes:
        return 0
    needed = max(SIGNIFICANT_DIGITS - 1 - max(magnitudes), SMALLEST_DIGITS - 1 - min(magnitudes), 0)
    if max(magnitudes) - min(magnitudes) > MAX_SPAN or needed > MAX_DECIMALS or max(magnitudes) >= 15:
        return None
    texts = [f"{value:.{needed}f}" for value in values]
    while needed and all(text.endswith("0") for text in texts):
        texts = [text[:-1] for text in texts]
        needed -= 1
    return needed
