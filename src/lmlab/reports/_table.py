"""How the cells of a table are written and aligned."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmlab.reports.blocks import Align, Bounds, Cell, Table
from lmlab.reports.formats import (
    MAX_DECIMALS,
    SIGNIFICANT_DIGITS,
    format_interval,
    format_number,
    interval_decimals,
    scientific,
    written_alike,
)

MISSING = "—"
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
    cells = [[row[index] for row in table.rows] for index in range(len(table.columns))]
    texts = [_texts(each) for each in cells]
    for place, bounds in enumerate(cells):
        if any(isinstance(cell, Bounds) for cell in bounds):
            figures = _figures_of(cells, place)
            texts[figures], texts[place] = _with_bounds(cells[figures], bounds)
    columns = []
    for index, title in enumerate(table.columns):
        align = table.align[index] if table.align is not None else _natural_align(cells[index])
        breaks = any(isinstance(cell, str) and len(cell) > SHORT_TEXT for cell in cells[index])
        columns.append(Column(title, texts[index], align, breaks))
    return columns


def _figures_of(cells: Sequence[Sequence[Cell]], place: int) -> int:
    """The column that the bounds in another are about: the nearest one of numbers before it."""
    for before in range(place - 1, -1, -1):
        if any(_is_number(cell) for cell in cells[before]):
            return before
    return place


def _with_bounds(figures: Sequence[Cell], bounds: Sequence[Cell]) -> tuple[list[str], list[str]]:
    """A column of figures and that of their bounds, with the same decimals; row by row where rows differ much."""
    rows = [_row(figure, bound) for figure, bound in zip(figures, bounds, strict=True)]
    known = [row for row in rows if row is not None]
    decimals = {interval_decimals(*row) for row in known if any(row)}
    shared = not decimals or (max(decimals) <= MAX_DECIMALS and max(decimals) - min(decimals) <= MAX_SPAN)
    if shared:
        written = iter(written_alike([value for row in known for value in row], max(decimals, default=0)))
    texts: tuple[list[str], list[str]] = ([], [])
    for figure, bound, row in zip(figures, bounds, rows, strict=True):
        told, around = MISSING, MISSING
        if row is not None:
            if shared:
                told, low, high = next(written), next(written), next(written)
                around = f"{low} to {high}"
            else:
                told, around = format_interval(*row)
        texts[0].append(told if _is_finite(figure) else _text(figure, format_number))
        texts[1].append(around if isinstance(bound, Bounds) else _text(bound, format_number))
    return texts


def _row(figure: Cell, bound: Cell) -> tuple[float, float, float] | None:
    """A figure with its bounds; one without them bounds itself, and so do bounds without a figure."""
    if isinstance(bound, Bounds):
        return (float(figure) if _is_finite(figure) else bound.low, bound.low, bound.high)  # type: ignore[arg-type]
    return (float(figure),) * 3 if _is_finite(figure) else None  # type: ignore[arg-type]


def _is_finite(cell: Cell) -> bool:
    return _is_number(cell) and math.isfinite(cell)  # type: ignore[arg-type]


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
    return format_interval(cell.low, cell.low, cell.high)[1] if isinstance(cell, Bounds) else cell


def _float_format(values: Sequence[float]) -> Callable[[float], str]:
    """One way to write all finite floats of a column."""
    decimals = _shared_decimals(values)
    if decimals is not None:
        return lambda value: f"{value:,.{decimals}f}"
    if max(map(abs, values)) < SMALL:
        return scientific
    return format_number


def _shared_decimals(values: Sequence[float]) -> int | None:
    """Decimals with which every value keeps its meaning, so that the decimal points line up; None if there are none."""
    magnitudes = [math.floor(math.log10(abs(value))) for value in values if value != 0]
    if not magnitudes:
        return 0
    needed = max(SIGNIFICANT_DIGITS - 1 - max(magnitudes), SMALLEST_DIGITS - 1 - min(magnitudes), 0)
    if max(magnitudes) - min(magnitudes) > MAX_SPAN or needed > MAX_DECIMALS or max(magnitudes) >= 15:
        return None
    text = written_alike(values, needed)[0]
    return len(text.partition(".")[2])
