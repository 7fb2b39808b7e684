"""What is printed on a terminal: text from outside stands there as it is, and commands nobody.

A string that a `Terminal` prints, also in a table, is data: brackets are no markup, `:names:` no emoji, and control
characters, by which a file's name could move the cursor or change colors, are left out. What lmlab itself wants bold or
dim is said by `markup`, whose template is our own text and whose arguments are data again.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from rich.console import Console
from rich.text import Span, Text

_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Embeddings, overrides and isolates, which show what stands behind them in another order."""
_PLACE = re.compile(r"\{\}")


class Terminal(Console):
    """A console of `rich` that takes strings as data."""

    def __init__(self, stderr: bool = False, width: int | None = None) -> None:
        super().__init__(stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=stderr)

    def render_str(self, text: str, **options: Any) -> Text:
        """Every string that is printed comes through here, cells of tables too."""
        return super().render_str(printable(text), **options | {"markup": False, "emoji": False, "highlight": False})


def printable(text: str) -> str:
    """Text without control characters and those that reorder a line, and with half characters spelled out; line ends
    and tabs stay.
    """
    kept = "".join(
        character
        for character in text
        if character in "\n\t" or not (unicodedata.category(character) == "Cc" or character in _REORDERING)
    )
    return kept.encode("utf-8", "backslashreplace").decode("utf-8")


def markup(template: str, *data: object) -> Text:
    """Styled text: `markup("[bold]{}[/bold] in {}", name, place)`.

    Arguments:
        template: our own text, in the markup of `rich`.
        data: what replaces each `{}`, as plain text in the style that holds there.
    """
    styled = Text.from_markup(template, emoji=False)
    pieces = [printable(str(each)) for each in data]
    places = list(_PLACE.finditer(styled.plain))
    assert len(places) == len(pieces), template

    def moved(offset: int) -> int:
        return offset + sum(
            len(piece) - 2 for place, piece in zip(places, pieces, strict=True) if place.end() <= offset
        )

    replacements = iter(pieces)
    plain = _PLACE.sub(lambda _: next(replacements), styled.plain)
    return Text(plain, spans=[Span(moved(span.start), moved(span.end), span.style) for span in styled.spans])
