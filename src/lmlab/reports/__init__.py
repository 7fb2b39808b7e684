"""HTML reports with one look: a page is sections of blocks, written as one file that needs no network.

A page with one figure:

    chart = line_chart([Series("train", steps, losses)], "step", "loss (nats per token)")
    page = Page("Pretraining run", sections=[Section("Loss", [Figure(chart, "Training loss.")])])
    page.write(Path("report.html"))
"""

from lmlab.reports.blocks import (
    Block,
    Cell,
    Code,
    Details,
    Facts,
    Figure,
    Graph,
    Note,
    Paragraph,
    Sample,
    Table,
    Tokens,
)
from lmlab.reports.figures import Series, bar_chart, funnel_chart, heat_map, line_chart
from lmlab.reports.formats import format_bytes, format_duration, format_number
from lmlab.reports.page import Page, Section

__all__ = [
    "Block",
    "Cell",
    "Code",
    "Details",
    "Facts",
    "Figure",
    "Graph",
    "Note",
    "Page",
    "Paragraph",
    "Sample",
    "Section",
    "Series",
    "Table",
    "Tokens",
    "bar_chart",
    "format_bytes",
    "format_duration",
    "format_number",
    "funnel_chart",
    "heat_map",
    "line_chart",
]
