"""The part of the figures' look that does not depend on the color theme; the page adds the colors of the theme."""

from __future__ import annotations

from typing import Any

from lmlab.reports._palette import LIGHT

FONT_SIZE = 12  # CSS pixels
FIGURE_HEIGHT = 380  # CSS pixels

_AXIS: dict[str, Any] = {
    "automargin": True,
    "showline": False,
    "zeroline": False,
    "ticks": "",
    "ticklabelstandoff": 6,
    "title": {"standoff": 12},
    "exponentformat": "B",
    "minexponent": 4,
    "separatethousands": True,
    "autotickangles": [0, -45, -90],
    "ticklabeloverflow": "allow",
}


def house_template() -> dict[str, Any]:
    """The Plotly template of every figure: small margins, legend below the plot, one hover label for all series."""
    return {
        "layout": {
            "autosize": True,
            "height": FIGURE_HEIGHT,
            "margin": {"l": 8, "r": 12, "t": 16, "b": 8, "pad": 0},
            "font": {"size": FONT_SIZE, "family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "colorway": list(LIGHT),
            "legend": {
                "orientation": "h",
                "xref": "container",
                "x": 0,
                "xanchor": "left",
                "yref": "container",
                "y": 0,
                "yanchor": "bottom",
                "bgcolor": "rgba(0,0,0,0)",
                "title": {"text": ""},
            },
            "hoverlabel": {"align": "left", "namelength": -1},
            "dragmode": False,
            "xaxis": {**_AXIS, "showgrid": False},
            "yaxis": {**_AXIS, "showgrid": True},
        },
        "data": {
            "bar": [{"type": "bar", "marker": {"line": {"width": 0}}, "error_y": {"thickness": 1.5, "width": 4}}],
        },
    }
