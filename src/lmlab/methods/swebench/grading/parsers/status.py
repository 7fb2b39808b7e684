"""What parsers of logs share: the words for outcomes, and what they may know of the instance."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

PASSED, FAILED, SKIPPED, ERROR, XFAIL = "PASSED", "FAILED", "SKIPPED", "ERROR", "XFAIL"
WORDS = (FAILED, PASSED, SKIPPED, ERROR, XFAIL)

StatusMap = dict[str, str]
"""Test id to outcome; of a test that is reported twice, the last report."""


@dataclass(frozen=True)
class LogContext:
    """What tells variants of one runner apart: a few repositories changed theirs between versions."""

    instance_id: str = ""
    version: str = ""


Parser = Callable[[str, LogContext], StatusMap]

_ESCAPES = re.compile(r"\x1B(?:[@-Z\\-_]|\[[0-?]*[ -/]*[@-~])")


def without_escapes(text: str) -> str:
    """Text without the escape sequences of terminals (ECMA-48)."""
    return _ESCAPES.sub("", text)


# A status word with a line end in it; most logs have none, and are not looked at line by line
_BROKEN = tuple(f" {word[:cut]}\n{word[cut:]}" for word in WORDS for cut in range(2, len(word)))


def unwrapped(log: str) -> str:
    """A log whose lines a terminal of fixed width has broken, with the lines joined again.

    A log counts as broken only if the proof stands in it: a status word that is cut in two at the longest line's end
    ("PAS" / "SED"). Any other log is returned as it is.
    """
    if not any(part in log for part in _BROKEN):
        return log
    lines = log.split("\n")
    width = max(map(len, lines))
    # no terminal is so narrow
    if width < 20 or not any(_cut(lines, place, width) for place in range(len(lines) - 1)):
        return log
    joined = [""]
    for line in lines:
        joined[-1] += line
        if len(line) < width:
            joined.append("")
    return "\n".join(joined[:-1] if joined[-1] == "" else joined)


def _cut(lines: list[str], place: int, width: int) -> bool:
    if len(lines[place]) != width:
        return False
    following = lines[place + 1]
    return any(
        lines[place].endswith(f" {word[:cut]}") and re.match(rf"{word[cut:]}(?:\s|$)", following) is not None
        for word in WORDS
        for cut in range(2, len(word))
    )
