"""Charts in the house style. Names, categories and titles are plain text: markup in them is shown, not obeyed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from lmlab.reports._axes import category_axis, number_axis, shorten
from lmlab.reports._figure_json import escape_label
from lmlab.reports._palette import REFERENCE_LIGHT, color, dash
from lmlab.reports._style import house_template
from lmlab.reports.formats import format_number
from lmlab.words import counted

BAND_OPACITY = 0.18  # two or three bands may lie over one another and lines still show through
FEW_POINTS = 12  # a line with at most this many points shows them
COLOR_BAR_SPACE = 60  # CSS pixels above a heat map
STEP_HEIGHT = 46  # CSS pixels for one step of a funnel
MAX_STEP_LABEL = 48  # characters that fit above a bar on a phone
STEP_HOVER = "<b>%{customdata[0]}</b><br>%{x:,d}, %{customdata[1]}<br>%{customdata[2]} of step before<extra></extra>"
BAR_SHARE = 0.58  # of the width; the rest is for the counts, on a phone too


@dataclass(frozen=True)
class Series:
    """One line of a line chart.

    Args:
        name: its name in the legend.
        x, y: its points, equally many; not-a-number leaves a gap.
        band: lower and upper bounds around the line, each as long as `x`, such as a confidence interval.
        dashed: draw the line dashed, for a target, a prediction or a baseline.

    Raises:
        ValueError: the lengths differ.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None
    dashed: bool = False

    def __post_init__(self) -> None:
        lengths = [len(self.x), len(self.y), *(len(bound) for bound in self.band or ())]
        if len(set(lengths)) > 1:
            raise ValueError(f"x, y and the band of series '{self.name}' have different lengths: {lengths}.")


def line_chart(
    series: Sequence[Series],
    x_title: str,
    y_title: str,
    log_x: bool = False,
    log_y: bool = False,
) -> go.Figure:
    """Draw lines over a common pair of axes.

    Args:
        series: the lines, drawn in the order of the palette.
        x_title, y_title: what the axes measure, with the unit.
        log_x, log_y: use a logarithmic axis; points at or below zero are then left out.
    """
    figure = _figure()
    for index, one in enumerate(series):
        if one.band is not None:
            figure.add_trace(_band(one, one.band, color(index), log_x, log_y))
    for index, one in enumerate(series):
        figure.add_trace(
            go.Scatter(
                name=escape_label(one.name),
                x=list(one.x),
                y=list(one.y),
                mode="lines+markers" if len(one.x) <= FEW_POINTS and not one.dashed else "lines",
                line={"color": color(index), "width": 2, "dash": "dash" if one.dashed else dash(index)},
                marker={"color": color(index), "size": 6},
                cliponaxis=False,  # a point at 0 is whole
            )
        )
    figure.update_layout(
        hovermode="x unified",
        showlegend=len(series) > 1,
        xaxis=number_axis(x_title, [value for one in series for value in one.x], log_x),
        yaxis=number_axis(y_title, [value for one in series for value in one.y], log_y),
    )
    return figure


def bar_chart(
    categories: Sequence[str],
    groups: Mapping[str, Sequence[float]],
    errors: Mapping[str, Sequence[float]] | None,
    y_title: str,
    reference: tuple[str, float] | None,
) -> go.Figure:
    """Draw grouped bars.

    Args:
        categories: the places on the horizontal axis.
        groups: for each group (a model, a setting) its name and one height a category.
        errors: for some or all groups, half the length of each error bar, in the unit of the heights.
        y_title: what the heights measure, with the unit.
        reference: the label and height of a dashed horizontal line, such as ("chance", 0.25).

    Raises:
        ValueError: a group or its errors are not as long as `categories`, or errors name an unknown group.
    """
    errors = errors or {}
    for name in errors:
        if name not in groups:
            raise ValueError(f"Errors are given for '{name}', which is not a group; groups: {', '.join(groups)}.")
    for name, values in [*groups.items(), *errors.items()]:
        if len(values) != len(categories):
            raise ValueError(
                f"Group '{name}' has {counted(len(values), 'values')} for {counted(len(categories), 'categories')}."
            )
    places = list(range(len(categories)))
    figure = _figure()
    for index, (name, heights) in enumerate(groups.items()):
        figure.add_trace(
            go.Bar(
                name=escape_label(name),
                x=places,
                y=list(heights),
                error_y={"array": list(errors[name])} if name in errors else None,
                marker={"color": color(index), "cornerradius": 2},
            )
        )
    if reference is not None:
        _add_reference(figure, *reference)
    figure.update_layout(
        barmode="group",
        bargap=0.28,
        bargroupgap=0.06,
        hovermode="x unified",
        showlegend=len(groups) > 1 or reference is not None,
        xaxis=category_axis("", categories),
        yaxis={**number_axis(y_title, [], log=False), "rangemode": "tozero"},
    )
    return figure


def heat_map(
    z: Sequence[Sequence[float]],
    x: Sequence[str | float],
    y: Sequence[str | float],
    x_title: str,
    y_title: str,
    z_title: str,
) -> go.Figure:
    """Draw a matrix as colored cells, the first row on top; values are written in cells that are large enough.

    Args:
        z: the values, one row for each of `y`, each with one value for each of `x`. With values of both signs the
            colors diverge from zero.
        x, y: the labels of columns and rows.
        x_title, y_title, z_title: what columns, rows and values are.

    Raises:
        ValueError: the shape of `z` is not that of the labels.
    """
    if len(z) != len(y) or any(len(row) != len(x) for row in z):
        shape = f"{counted(len(z), 'rows')} of {sorted({len(row) for row in z})} values"
        raise ValueError(f"A heat map of {len(y)} x {len(x)} labels needs as many values, not {shape}.")
    finite = [value for row in z for value in row if math.isfinite(value)]
    figure = _figure()
    figure.add_trace(
        go.Heatmap(
            z=[list(row) for row in z],
            x=list(range(len(x))),
            y=list(range(len(y))),
            autocolorscale=True,
            **_one_color(finite),
            zmid=0 if finite and min(finite) < 0 < max(finite) else None,
            text=[[format_number(value) if math.isfinite(value) else "-" for value in row] for row in z],
            texttemplate="%{text}" if len(x) <= 16 else None,
            customdata=[[[escape_label(str(column)), escape_label(str(row))] for column in x] for row in y],
            hovertemplate="%{customdata[1]} · %{customdata[0]}: <b>%{text}</b><extra></extra>",
            xgap=1,
            ygap=1,
            colorbar={
                "orientation": "h",
                "title": {"text": escape_label(z_title), "side": "top"},
                "thickness": 10,
                "lenmode": "pixels",
                "len": 200,
                "nticks": 5,
                "xref": "container",
                "x": 0,
                "xanchor": "left",
                "xpad": 14,
                "yref": "container",
                "y": 1,
                "yanchor": "top",
                "ypad": 0,
                "outlinewidth": 0,
            },
        )
    )
    figure.update_layout(
        height=min(max(150 + 30 * len(y), 260), 900),
        margin={"t": COLOR_BAR_SPACE},
        xaxis=category_axis(x_title, x),
        yaxis={**category_axis(y_title, y), "autorange": "reversed", "showgrid": False},
    )
    return figure


def funnel_chart(steps: Sequence[tuple[str, int]]) -> go.Figure:
    """Draw what remains after each step of a filter as horizontal bars with counts and shares of the first step.

    Args:
        steps: the name of each step and the count that remains after it, the whole first.

    Raises:
        ValueError: a count is negative.
    """
    for name, count in steps:
        if count < 0:
            raise ValueError(f"The count of step '{name}' is negative: {count}.")
    places = list(range(len(steps)))
    counts = [count for _, count in steps]
    shares = [_share(count, counts[0]) for count in counts]
    kept = [_share(count, before) for count, before in zip(counts, counts[:1] + counts[:-1], strict=True)]
    figure = _figure()
    figure.add_trace(
        go.Bar(
            orientation="h",
            x=counts,
            y=places,
            width=0.3,
            text=[f" <b>{format_number(count)}</b>  {share}" for count, share in zip(counts, shares, strict=True)],
            textposition="outside",
            cliponaxis=False,
            marker={"color": color(0), "cornerradius": 3},
            customdata=[[escape_label(name), *rest] for (name, _), *rest in zip(steps, shares, kept, strict=True)],
            hovertemplate=STEP_HOVER,
        )
    )
    label = {"xref": "paper", "x": 0, "xanchor": "left", "yanchor": "bottom", "yshift": 6, "showarrow": False}
    for place, (name, _) in zip(places, steps, strict=True):
        figure.add_annotation(text=escape_label(shorten(name, MAX_STEP_LABEL)), y=place, **label)
    figure.update_layout(
        height=24 + STEP_HEIGHT * max(len(steps), 1),
        margin={"l": 2, "r": 2, "t": 12, "b": 0},
        showlegend=False,
        xaxis={"visible": False, "range": [0, max([1, *counts]) / BAR_SHARE], "fixedrange": True},
        yaxis={"visible": False, "range": [len(steps) - 0.5, -0.7], "fixedrange": True},
    )
    return figure


def _figure() -> go.Figure:
    return go.Figure(layout={"template": house_template()})


def _band(
    series: Series,
    band: tuple[Sequence[float], Sequence[float]],
    fill: str,
    log_x: bool,
    log_y: bool,
) -> go.Scatter:
    points = [
        (x, low, high)
        for x, low, high in zip(series.x, *band, strict=True)
        if all(map(math.isfinite, (x, low, high))) and not (log_x and x <= 0) and not (log_y and low <= 0)
    ]
    outward, lower, upper = ([point[part] for point in points] for part in range(3))
    return go.Scatter(
        x=outward + outward[::-1],
        y=upper + lower[::-1],
        mode="lines",
        line={"width": 0, "color": fill},
        fill="toself",
        fillcolor=fill,
        opacity=BAND_OPACITY,
        hoverinfo="skip",
        showlegend=False,
    )


def _add_reference(figure: go.Figure, label: str, height: float) -> None:
    figure.add_shape(
        type="line",
        xref="paper",
        x0=0,
        x1=1,
        y0=height,
        y1=height,
        line={"color": REFERENCE_LIGHT, "width": 1.5, "dash": "dash"},
        showlegend=True,
        name=escape_label(f"{label} ({format_number(height)})"),
    )


def _one_color(values: Sequence[float]) -> dict[str, float]:
    """The range of colors where all values are the same, as in a matrix of zeros: from zero, not around the value."""
    if not values or min(values) != max(values):
        return {}
    value = values[0]
    return {"zmin": min(value, 0), "zmax": max(value, 0) if value else 1}


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "—"
