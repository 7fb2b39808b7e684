"""Plotly figures as JSON that is safe inside an HTML page."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from lmlab.reports._style import house_template

if TYPE_CHECKING:
    import plotly.graph_objects as go

from lmlab.redaction import redact

# Plotly renders a subset of HTML in every label. Tags without attributes that only format text may pass.
_BARE_TAG = re.compile(r"</?(?:b|i|em|strong|sub|sup|s|u|br|extra)\s*/?>", re.IGNORECASE)
_UNSAFE_IN_SCRIPT = {
    "<": "\\u003c",
    ">": "\\u003e",
    "&": "\\u0026",
    "\u2028": "\\u2028",
    "\u2029": "\\u2029",
}


def figure_json(figure: go.Figure) -> str:
    """Return the data and layout of a figure in the house style, to be put inside a `<script>` element.

    Markup in its texts is neutralized, and so is every character that could end the script.
    """
    import plotly.graph_objects as go
    import plotly.io

    described = neutralize(figure.to_plotly_json())
    layout = {**described.get("layout", {}), "template": house_template()}
    # `to_json` knows arrays, dates and not-a-number; `skip_invalid` is not set, so a broken figure is an error here.
    return escape_json(str(plotly.io.to_json(go.Figure({"data": described.get("data", []), "layout": layout}))))


def escape_json(text: str) -> str:
    """Replace in JSON text each character that has a meaning in HTML by its JSON escape; the value stays the same."""
    return re.sub("[<>&\u2028\u2029]", lambda match: _UNSAFE_IN_SCRIPT[match[0]], text)


def escape_label(text: str) -> str:
    """Return plain text as Plotly label markup that shows it as it is."""
    return redact(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def neutralize(value: Any) -> Any:
    """Copy nested dictionaries and lists, turning to text every `<` that is no bare formatting tag."""
    if isinstance(value, dict):
        return {key: neutralize(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [neutralize(item) for item in value]
    if isinstance(value, str) and "<" in value:
        return _neutralize_text(value)
    if getattr(value, "dtype", None) is not None and value.dtype.kind in "OU":
        return [neutralize(item) for item in value.tolist()]
    return value


def _neutralize_text(text: str) -> str:
    kept, position = [], 0
    for match in _BARE_TAG.finditer(text):
        kept += [text[position : match.start()].replace("<", "&lt;"), match[0]]
        position = match.end()
    return "".join([*kept, text[position:].replace("<", "&lt;")])
