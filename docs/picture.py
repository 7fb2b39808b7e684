"""A drawing of which things lead to which, as SVG: rows from top to bottom, arrows that go round boxes.

No script and no network is needed to see it, and equal input gives equal text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from html import escape
from itertools import pairwise

_ROW, _HEIGHT, _MARGIN, _GAP = 74, 30, 16, 18
_LETTER = 7.4  # about the width of a letter of 13 pixels
_BEND = 10  # the room that an arrow needs where it passes a row
_SWEEPS = 24  # enough for the order of a few dozen boxes to settle

Node = tuple[str, int]  # a box is (name, 0); an arrow's passage through row n is ("from>to", n)


def draw(names: Collection[str], arrows: Iterable[tuple[str, str]]) -> str:
    """The SVG of boxes with these names; every arrow points down.

    Raises:
        ValueError: arrows go in a circle.
    """
    arrows = sorted(arrows)
    row_of = _rows(sorted(names), arrows)
    rows: list[list[Node]] = [[] for _ in range(max(row_of.values()) + 1)]
    for name in sorted(names):
        rows[row_of[name]].append((name, 0))
    chains: list[list[Node]] = []
    for a, b in arrows:
        passages: list[Node] = [(f"{a}>{b}", row) for row in range(row_of[a] + 1, row_of[b])]
        for node in passages:
            rows[node[1]].append(node)
        chains.append([(a, 0), *passages, (b, 0)])
    _order(rows, chains)
    width = max(sum(map(_width, row)) + _GAP * (len(row) - 1) for row in rows) + 2 * _MARGIN
    places: dict[Node, tuple[float, float]] = {}
    for number, row in enumerate(rows):
        free = width - 2 * _MARGIN - sum(map(_width, row))
        x, space = float(_MARGIN), free / (len(row) + 1)
        for node in row:
            x += space
            places[node] = x + _width(node) / 2, _MARGIN + number * _ROW + _HEIGHT / 2
            x += _width(node)
    height = 2 * _MARGIN + (len(rows) - 1) * _ROW + _HEIGHT
    lines = [_line([places[node] for node in chain]) for chain in chains]
    boxes = [_box(name, *places[name, 0]) for name in sorted(names)]
    return "\n".join([_HEAD.format(width=round(width), height=height), *lines, *boxes, "</svg>\n"])


_HEAD = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}">
<rect width="100%" height="100%" rx="8" fill="#ffffff"/>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">\
<path d="M0 0 8 4 0 8z" fill="#7a86a8"/></marker></defs>"""


def _rows(names: list[str], arrows: list[tuple[str, str]]) -> dict[str, int]:
    """The row of each name: one below the lowest that leads to it."""
    row_of: dict[str, int] = {}
    while len(row_of) < len(names):
        ready = [name for name in names if name not in row_of and all(a in row_of for a, b in arrows if b == name)]
        if not ready:
            raise ValueError(f"a circle: {', '.join(name for name in names if name not in row_of)}")
        found = {name: max((row_of[a] + 1 for a, b in arrows if b == name), default=0) for name in ready}
        row_of |= found
    return row_of


def _order(rows: list[list[Node]], chains: list[list[Node]]) -> None:
    """Put each node of a row near the middle of its neighbors, which leaves few arrows that cross."""
    beside: dict[Node, list[Node]] = {node: [] for row in rows for node in row}
    for chain in chains:
        for a, b in pairwise(chain):
            beside[a].append(b)
            beside[b].append(a)
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            at = {node: (place + 0.5) / len(each) for each in rows for place, node in enumerate(each)}
            row.sort(key=lambda node: sum(at[each] for each in beside[node]) / max(1, len(beside[node])))


def _width(node: Node) -> float:
    return _BEND if ">" in node[0] else len(node[0]) * _LETTER + 24


def _line(points: list[tuple[float, float]]) -> str:
    """A smooth arrow from the lower edge of the first box, through passages, to the upper edge of the last."""
    (x, y), (last_x, last_y) = points[0], points[-1]
    stops = [(x, y + _HEIGHT / 2), *points[1:-1], (last_x, last_y - _HEIGHT / 2)]
    path = f"M{stops[0][0]:.0f} {stops[0][1]:.0f}"
    for (x, y), (to_x, to_y) in pairwise(stops):
        middle = (y + to_y) / 2
        path += f" C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path d="{path}" fill="none" stroke="#7a86a8" stroke-width="1.2" marker-end="url(#tip)"/>'


def _box(name: str, x: float, y: float) -> str:
    width = _width((name, 0))
    frame = f'x="{x - width / 2:.0f}" y="{y - _HEIGHT / 2:.0f}" width="{width:.0f}" height="{_HEIGHT}" rx="6"'
    words = f'x="{x:.0f}" y="{y + 4:.0f}" text-anchor="middle" font-family="system-ui, sans-serif" font-size="13"'
    return f'<rect {frame} fill="#eef1fb" stroke="#3f51b5"/><text {words} fill="#1c2340">{escape(name)}</text>'
