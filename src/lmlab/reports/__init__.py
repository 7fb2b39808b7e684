"""HTML reports with one look: a page is sections of blocks, written as one file that needs no network.

page = Page("Pretraining run", sections=[Section("Loss", [Figure(line_chart([Series("train", steps, losses)], "step", "loss"))])])
page.write(Path("report.html"))
"""

from lmlab.reports.blocks import Block, Code, Details, Facts, Figure, Note, Paragraph, Sample, Table
from lmlab.reports.figures import Series, bar_chart, funnel_chart, heat_map, line_chart
from lmlab.reports.formats import format_bytes, format_duration, format_number
from lmlab.reports.page import Page, Section

__all__ = [
    "Block",
    "Code",
    "Details",
    "Facts",
    "Figure",
    "Note",
    "Page",
    "Paragraph",
    "Sample",
    "Section",
    "Series",
    "Table",
    "bar_chart",
    "format_bytes",
    "format_duration",
    "format_number",
    "funnel_chart",
    "heat_map",
    "line_chart",
]
