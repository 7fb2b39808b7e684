"""What is left of a reply when thoughts, quotes and decoration are taken away; every step takes linear time."""

from __future__ import annotations

import re
import unicodedata

from lmlab.judging.rubrics.hidden import visible

_THOUGHT = re.compile("</?think>", re.IGNORECASE | re.ASCII)
_VULGAR = "".join(
    chr(code)
    for code in (0xBC, 0xBD, 0xBE, *range(0x2150, 0x2160), 0x2189)
    if unicodedata.decomposition(chr(code)).startswith("<fraction>")
)
_SLASHES = str.maketrans(dict.fromkeys("\u2044\u2215\u29f8", "/"))
# A fraction alone over a denominator: without this, 1/2 of 3 would read as 1 of 2.
_ALONE = re.compile(rf"(?<![0-9])(?<![0-9]\s)([{_VULGAR}])(?=\s{{0,8}}(?:[/\u2044\u2215\u29f8\uff0f]|out\s))")
_LINE_ENDS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
_QUOTED_LINE = re.compile(r"^[^\S\n]*>.*\n?", re.MULTILINE)
_QUOTED = re.compile('"""(.*?)"""', re.DOTALL)
_TRIPLE = re.compile('"""')
_DECORATION = str.maketrans("", "", "*`$#")
_LONGEST_FORM = 4  # of a number: (10)
_MARKS_IN_A_ROW = 30  # as in the stream-safe format of Unicode; sorting longer runs takes quadratic time


def without_thoughts(text: str) -> str:
    """Leave out thoughts, and all that follows one that does not end."""
    kept: list[str] = []
    place, inside = 0, False
    for mark in _THOUGHT.finditer(text):
        opens = mark[0][1] != "/"
        if opens and not inside:
            kept.append(text[place : mark.start()])
            inside = True
        elif not opens and inside:
            place, inside = mark.end(), False
    return "".join(kept) if inside else "".join(kept) + text[place:]


def plain(text: str) -> str:
    """Compatibility forms (NFKC), one kind of slash and of line end, vulgar fractions spelled out, nothing hidden."""
    text = _LINE_ENDS.sub("\n", visible(text))
    if text.isascii():
        return text
    text = _ALONE.sub(lambda found: f"{unicodedata.numeric(found[1]):.6g}", text)
    for character in set(text).intersection(_VULGAR):
        text = text.replace(character, " " + unicodedata.normalize("NFKC", character))
    for character in set(text):
        # Signs that stand for whole phrases hold no grade, and would make a reply 18 times as long.
        if not character.isascii() and len(unicodedata.normalize("NFKC", character)) > _LONGEST_FORM:
            text = text.replace(character, " ")
    return visible(unicodedata.normalize("NFKC", _few_marks(text)).translate(_SLASHES))


def quoted_spans(text: str) -> list[tuple[int, int]]:
    """Where lines that begin with > and parts between triple quotes are."""
    lines = [found.span() for found in _QUOTED_LINE.finditer(text)]
    return lines + [found.span() for found in _QUOTED.finditer(text)]


def without_quotes(text: str) -> str:
    """Leave out quoted lines and parts, which may hold grades that the judge never gave, and decoration."""
    return _QUOTED.sub(" ", _QUOTED_LINE.sub("", text)).translate(_DECORATION)


def without_open_quote(text: str) -> str:
    """A text that was cut, without the part between triple quotes that it ends in: what stands there is quoted."""
    marks = [found.start() for found in _TRIPLE.finditer(text)]
    return text[: marks[-1]] if len(marks) % 2 else text


def _few_marks(text: str) -> str:
    kept, row = [], 0
    for character in text:
        row = row + 1 if unicodedata.combining(character) else 0
        if row <= _MARKS_IN_A_ROW:
            kept.append(character)
    return "".join(kept)
