"""The blocks that a section is made of. They hold plain values; all text is escaped when the page is rendered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from lmlab.words import counted

if TYPE_CHECKING:
    import plotly.graph_objects as go


@dataclass(frozen=True)
class Bounds:
    """The interval of a figure as a cell of a table, written with the decimals of that figure."""

    low: float
    high: float

    @classmethod
    def of(cls, low: float | None, high: float | None) -> Bounds | None:
        """Bounds where there are some: None for missing ones and those that are no number."""
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            return None
        return cls(low, high)


Cell = str | int | float | Bounds | None
Align = Literal["left", "right"]
NoteKind = Literal["info", "good", "warning", "bad"]
Tone = Literal["good", "bad", "warning", "accent", "muted"]


@dataclass(frozen=True)
class Paragraph:
    """Running text. A blank line starts a new paragraph; there is no other markup."""

    text: str


@dataclass(frozen=True)
class Note:
    """A callout of one or a few sentences.

    Args:
        text: plain text; a blank line starts a new paragraph.
        kind: "info", "good", "warning" or "bad"; it sets the color and the label.

    Raises:
        ValueError: the kind is none of these.
    """

    text: str
    kind: NoteKind = "info"

    def __post_init__(self) -> None:
        if self.kind not in get_args(NoteKind):
            raise ValueError(f"A note's kind is one of {', '.join(get_args(NoteKind))}, not '{self.kind}'.")


@dataclass(frozen=True)
class Facts:
    """A grid of tiles, each a label with its value in large type: {"Parameters": "134.5 M"}."""

    items: Mapping[str, str]


@dataclass(frozen=True)
class Table:
    """A table with a header row.

    Numbers are right-aligned and written by column: a column with floats gets one number of decimals, one with only
    integers gets thousands separators. `None` is an em dash. A number that is a name (a year, a seed) is best given as
    a string. `Bounds` belong to the nearest column of numbers before them, and share its decimals.

    Args:
        columns: the header, one text a column.
        rows: one sequence of cells a row, each as long as `columns`.
        caption: one sentence above the table.
        highlight_row: the index of the row to stand out, counted from 0.
        align: the alignment of each column; by default columns with only numbers are right-aligned.

    Raises:
        ValueError: a row or `align` is not as long as `columns`, an alignment is neither "left" nor "right", or
            `highlight_row` is out of range.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""
    highlight_row: int | None = None
    align: Sequence[Align] | None = None

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                cells, columns = counted(len(row), "cells"), counted(len(self.columns), "columns")
                raise ValueError(f"Row {index} of a table has {cells} for {columns}.")
        if self.highlight_row is not None and not 0 <= self.highlight_row < len(self.rows):
            raise ValueError(f"highlight_row is {self.highlight_row}, but the table has {len(self.rows)} rows.")
        if self.align is not None:
            if len(self.align) != len(self.columns):
                raise ValueError(
                    f"align has {counted(len(self.align), 'entries')} for {counted(len(self.columns), 'columns')}."
                )
            for align in self.align:
                if align not in get_args(Align):
                    raise ValueError(f"A column is aligned 'left' or 'right', not '{align}'.")


@dataclass(frozen=True)
class Figure:
    """A Plotly figure, drawn in the house style and in the reader's color theme.

    Args:
        figure: the figure. Its template is replaced by the house style; colors that it sets itself are kept. In its
            texts only bare formatting tags (`<b>`, `<br>` ...) act as markup; links and other tags are shown as text.
        caption: one sentence below the figure.
        alt: what the figure shows, for readers who cannot see it; by default the caption.
    """

    figure: go.Figure
    caption: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Code:
    """Monospaced text such as a configuration, with white space kept; long lines and long texts scroll.

    Args:
        tones: what each line is told by, by its number from 0; other lines are plain.
    """

    text: str
    caption: str = ""
    tones: Mapping[int, Tone] = field(default_factory=dict)

    @property
    def lines(self) -> list[tuple[str, str]]:
        """Each line with its tone, which is empty for plain ones."""
        return [
            (line, self.tones.get(number, "")) for number, line in enumerate(self.text.removesuffix("\n").split("\n"))
        ]


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote: the prompt is dim, the completion stands out, white space is kept."""

    prompt: str
    completion: str
    caption: str = ""


@dataclass(frozen=True)
class Tokens:
    """A text with the borders of its tokens; white space is kept.

    Args:
        pieces: the text of each token.
        learned: for each token whether a model learns to write it; None where that is all of them.

    Raises:
        ValueError: `learned` is not as long as `pieces`.
    """

    pieces: Sequence[str]
    learned: Sequence[bool] | None = None
    caption: str = ""

    def __post_init__(self) -> None:
        if self.learned is not None and len(self.learned) != len(self.pieces):
            raise ValueError(
                f"learned has {counted(len(self.learned), 'entries')} for {counted(len(self.pieces), 'tokens')}."
            )


@dataclass(frozen=True)
class Graph:
    """A layered graph to explore: pan, zoom, hover, and a slider over how many of its edges are shown. Nodes without a
    shown edge are left out.

    Args:
        nodes: name, layer and place within the layer of each; layer 0 is at the bottom, and so is place 0 within a
            layer.
        edges: source and target (numbers of nodes), kind (a number) and weight (or None) of each, the most important
            first.
        kinds: for each kind its name for the legend, a CSS color, and a letter; the first three enter a node side by
            side.
        total: how many edges there are in all; those given may be the first of them.
        kept: how many belong to what is shown; of many, the first 150 are drawn until the reader asks for more.
        weight: what the weight of an edge is called.
        links: pairs of nodes that are joined by a dashed line where both are shown, and count as no edge.
        whole: what the edges that are kept are together.

    Raises:
        ValueError: an edge names a node or a kind that is not there, or there is none to show.
    """

    nodes: Sequence[tuple[str, int, int]]
    edges: Sequence[tuple[int, int, int, float | None]]
    kinds: Sequence[tuple[str, str, str]]
    total: int
    kept: int
    weight: str = "weight"
    caption: str = ""
    links: Sequence[tuple[int, int]] = ()
    whole: str = "the circuit"

    def __post_init__(self) -> None:
        if not 1 <= self.kept <= len(self.edges) <= self.total:
            raise ValueError(f"A graph keeps between 1 and all of its {len(self.edges)} edges, not {self.kept}.")
        for edge in self.edges:
            if not (
                0 <= edge[0] < len(self.nodes) and 0 <= edge[1] < len(self.nodes) and 0 <= edge[2] < len(self.kinds)
            ):
                raise ValueError(f"The edge {edge} names a node or a kind that is not there.")


@dataclass(frozen=True)
class Details:
    """Blocks that stay folded under one line until the reader opens them."""

    summary: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Columns:
    """Blocks side by side, and one below the other where there is not room enough."""

    columns: Sequence[Sequence[Block]]


Block = Paragraph | Note | Facts | Table | Figure | Code | Sample | Tokens | Graph | Details | Columns
