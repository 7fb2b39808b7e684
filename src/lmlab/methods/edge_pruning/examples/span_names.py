"""Spans of tokens as the lines of a file name them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lmlab.errors import UserError

REST = "rest"
"""The span of tokens that are in none."""


def names_of_tokens(value: Any, where: str, offsets: Sequence[tuple[int, int]], unit: str) -> list[str]:
    """The span of each token.

    Arguments:
        value: [start, end) by name.
        offsets: where each token begins and ends, in the unit of the spans; (0, 0) for one that is in none.

    Raises:
        UserError: a span is no such pair, is empty, or shares a token with another.
    """
    if not isinstance(value, dict) or not value:
        raise UserError(f'{where}: spans must be given by name, such as {{"subject": [4, 9]}}.')
    found, end = [REST] * len(offsets), max(stop for _, stop in offsets)
    for name, pair in value.items():
        if not name or "@" in name or name == REST:
            raise UserError(f"{where}: a span cannot be called '{name}'.", "Take another name, without @.")
        whole = isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)
        if not whole or not 0 <= pair[0] < pair[1] <= end:
            raise UserError(
                f"{where}: the span '{name}' must be [start, end] in {unit}, within 0 and {end}, not {pair!r}."
            )
        inside = [n for n, (start, stop) in enumerate(offsets) if start < pair[1] and stop > pair[0]]
        taken = next((found[n] for n in inside if found[n] != REST), None)
        if taken is not None:
            raise UserError(
                f"{where}: the spans '{taken}' and '{name}' share a token.", "A token belongs to one span at most."
            )
        for n in inside:
            found[n] = name
    return found


def numbered(rows: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[list[int]]]:
    """Names in the order in which they are first met, and for each token the number of its own."""
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return names, [[names.index(name) for name in row] for row in rows]
