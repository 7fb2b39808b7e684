"""The axes of charts: which ticks they have and how these are written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lmlab.reports._figure_json import escape_label
from lmlab.reports.formats import format_number

SMALLEST_PLAIN_TICK = 0.01  # axes below this write powers of ten rather than "10µ"
MAX_LOG_TICKS = 6  # more overlap on a phone
CLOSEST_LOG_TICKS = 1.2  # ratio of neighbors: closer ones would overlap
MAX_LABEL = 24  # characters: longer labels would leave no room for the plot on a phone
MAX_NUMBER_LABELS = 12  # more overlap on a phone


def number_axis(title: str, values: Sequence[float], log: bool) -> dict[str, Any]:
    """An axis of numbers: its title, its scale, and ticks that fit the values."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    axis: dict[str, Any] = {"type": "log" if log else "linear"}
    if title:
        axis["title"] = {"text": escape_label(title)}
    if sizes and (min(sizes) if log else max(sizes)) < SMALLEST_PLAIN_TICK:
        axis["exponentformat"] = "power"
    return axis | (_log_ticks(values) if log else _whole_ticks(values))


def _whole_ticks(values: Sequence[float]) -> dict[str, Any]:
    """A tick at each of a few whole numbers, such as layers: nothing is between them."""
    if (
        len(set(values)) > 1
        and all(float(value).is_integer() for value in values)
        and max(values) - min(values) <= MAX_NUMBER_LABELS
    ):
        return {"dtick": 1}
    return {}


def _log_ticks(values: Sequence[float]) -> dict[str, Any]:
    """Ticks of a logarithmic axis, as dense as leaves them legible on a phone: at a few values the values themselves;
    below one decade even steps, as Plotly would write single digits there.
    """
    positive = [value for value in values if math.isfinite(value) and value > 0]
    known = sorted(set(positive))
    near = any(after < before * CLOSEST_LOG_TICKS for before, after in pairwise(known))
    if 1 <= len(known) <= MAX_LOG_TICKS and not near and all(float(each).is_integer() for each in known):
        return {"tickmode": "array", "tickvals": known}
    if not positive:
        return {}
    if max(positive) < 10 * min(positive):
        return {"tickmode": "array", "tickvals": _even_ticks(min(positive), max(positive))}
    decades = range(math.floor(math.log10(min(positive))), math.floor(math.log10(max(positive))) + 1)
    for leading in ((1, 2, 5), (1, 3), (1,)):
        ticks = [digit * 10.0**decade for decade in decades for digit in leading]
        ticks = [tick for tick in ticks if min(positive) <= tick * 1.01 and tick <= max(positive) * 1.01]
        if len(ticks) <= MAX_LOG_TICKS:
            return {"tickmode": "array", "tickvals": ticks} if ticks else {}
    return {"dtick": math.ceil(len(decades) / MAX_LOG_TICKS)}


def _even_ticks(low: float, high: float) -> list[float]:
    """A few round numbers from one value to another; the value itself where there is but one."""
    if low == high:
        return [low]
    rough = (high - low) / (MAX_LOG_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough)
    first, last = math.ceil(low / step - 0.01), math.floor(high / step + 0.01)
    return [number * step for number in range(first, last + 1)]


def category_axis(title: str, labels: Sequence[str | float]) -> dict[str, Any]:
    """An axis of positions with names: unlike Plotly's categories these may repeat and never pass for numbers."""
    numbers = not any(isinstance(label, str) for label in labels)
    every = math.ceil(len(labels) / MAX_NUMBER_LABELS) if numbers else 1
    axis: dict[str, Any] = {
        "tickmode": "array",
        "tickvals": list(range(0, len(labels), max(every, 1))),
        "ticktext": [escape_label(shorten(_label(label), MAX_LABEL)) for label in labels[:: max(every, 1)]],
    }
    return axis | ({"title": {"text": escape_label(title)}} if title else {})


def _label(value: str | float) -> str:
    return value if isinstance(value, str) else format_number(value)


def shorten(text: str, length: int) -> str:
    """The text, with an ellipsis in place of what is beyond `length` characters."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
