"""Grades as the reference implementation of TutorEval reads them, for comparisons only: by position, by the longest
stretch up to the last "/3" of a line, and 0 for both where anything fails.
"""

from __future__ import annotations

from lmlab.judging.judge import Marks


def parse_like_reference(reply: str | None) -> Marks:
    """The first two grades as the reference would read them; where it fails, both are 0 with the flag `failed`."""
    try:
        if reply is None:
            raise ValueError
        grades = [float(text) for text in _stretches(reply)]
        return Marks((grades[0], grades[1]), "ok", ("compat_reference",))
    except (ValueError, IndexError):
        return Marks((0.0, 0.0), "ok", ("compat_reference", "failed"))


def _stretches(text: str) -> list[str]:
    """What stands between a colon followed by a digit and the last "/3" of that line."""
    found: list[str] = []
    place, line_end, last = text.find(":"), -1, -1
    while place >= 0:
        start = place + 1 + (text[place + 1 : place + 2].isspace())
        if start > line_end:
            line_end = text.find("\n", start)
            line_end = len(text) if line_end < 0 else line_end
            last = text.rfind("/3", start, line_end)
        if text[start : start + 1].isdecimal() and last > start:
            found.append(text[start:last])
            place = last + 1
        place = text.find(":", place + 1)
    return found
