"""Text that a judge sees: nothing hidden in it, and every quoted part within a fence that it cannot end by itself."""

from __future__ import annotations

import re

# Zero-width characters, soft hyphens, marks of direction, tags and supplementary variation selectors: what no reader
# sees, and what can carry an order to a model or turn a line around.
_HIDDEN = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufeff\uffa0"
    "\U000e0000-\U000e0fff]"
)
_QUOTES = re.compile('"{3,}')
_FENCE = '"""'


def visible(text: str) -> str:
    """The text without zero-width characters and marks of direction, by which orders are hidden from people."""
    return _HIDDEN.sub("", text)


def fenced(text: str) -> str:
    """A part of a prompt that is data: between lines of three double quotes, or of more than it has in a row itself.

    The text stands there as it is, braces, backslashes and marks of templates included.
    """
    longest = max((len(run) for run in _QUOTES.findall(text)), default=0)
    fence = _FENCE if longest < len(_FENCE) else '"' * (longest + 1)
    return f"{fence}\n{text}\n{fence}"
