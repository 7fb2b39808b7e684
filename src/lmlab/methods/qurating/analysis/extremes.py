"""The texts that a rater places highest, lowest and in the middle, to be read by people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

_CHARACTERS = 600  # of each text: enough to see what was rated, few enough to read many


@dataclass(frozen=True)
class Extreme:
    """One text with its place: `highest`, `median` or `lowest`."""

    criterion: str
    domain: str
    place: str
    rating: float
    id: str
    text: str


def extremes(
    criterion: str, ratings: Any, ids: Sequence[Any], domains: Sequence[str], count: int = 3
) -> list[tuple[str, str, int]]:
    """Which rows to read: (domain, place, number of the row), a few of each."""
    values = np.asarray(ratings, np.float64)
    labels = np.array(domains)
    found = []
    for domain in sorted(set(domains)):
        rows = np.flatnonzero((labels == domain) & np.isfinite(values))
        rows = rows[np.argsort(values[rows], kind="stable")]
        middle = len(rows) // 2
        for place, chosen in (
            ("highest", rows[::-1][:count]),
            ("median", rows[middle : middle + count]),
            ("lowest", rows[:count]),
        ):
            found += [(domain, place, int(row)) for row in chosen]
    return found


def markdown(found: Sequence[Extreme]) -> str:
    """The texts as a page of Markdown; they stand in fences that they cannot close."""
    return "\n".join(_lines(found)) + "\n"


def _lines(found: Sequence[Extreme]) -> Iterator[str]:
    heading = None
    for each in found:
        if heading != (each.criterion, each.domain, each.place):
            heading = (each.criterion, each.domain, each.place)
            yield f"## {each.criterion}, {each.domain or 'all'}: {each.place}\n"
        excerpt = each.text[:_CHARACTERS]
        fence = "`" * max(3, 1 + max((len(run) for run in _runs(excerpt)), default=0))
        yield f"`{each.id}`, rating {each.rating:.3f}\n\n{fence}text\n{excerpt}\n{fence}\n"


def _runs(text: str) -> list[str]:
    import re

    return re.findall("`+", text)
