from .blocks import Block, Bounds, Cell, Code, Details, Facts, Figure, Graph, Note, Paragraph, Sample, Table, Tokens
from .figures import Series, bar_chart, funnel_chart, heat_map, line_chart
from .formats import format_bytes, format_duration, format_interval, format_moment, format_number
from .page import Page, Section

__all__ = [
    "Block",
    "Bounds",
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
    "format_interval",
    "format_moment",
    "format_number",
    "funnel_chart",
    "heat_map",
    "line_chart",
]
