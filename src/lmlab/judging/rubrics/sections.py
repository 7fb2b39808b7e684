"""Grades in prose: each criterion has sections, which begin with a header and hold grades."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from lmlab.judging.rubrics.numbers import ends_of_grades

_MARK = r"(?:[-+\u2022\u2023\u25e6\u00b7|]|\(?[0-9]{1,3}[.):]?\)?)"


@dataclass(frozen=True)
class Section:
    """A part of a reply about one criterion, by its number."""

    criterion: int
    text: str


@dataclass(frozen=True)
class _Headers:
    """Headers at the start of a line, those right after a completed grade, and where one of the latter could be."""

    at_line: re.Pattern[str]
    after_grade: re.Pattern[str]
    anywhere: re.Pattern[str]


@lru_cache(maxsize=64)
def _patterns(criteria: tuple[str, ...]) -> _Headers:
    spelled = sorted(range(len(criteria)), key=lambda number: -len(criteria[number]))
    names = "|".join(
        f"(?P<c{number}>{re.escape(criteria[number]).replace('_', '[ _]').replace(re.escape(' '), '[ _]')})"
        for number in spelled
    )
    end = r"(?:[:|\-\u2013\u2014=]|(?=\n)|\Z)"
    header = rf"(?:{names})(?:[ \t]{{1,8}}(?P<label>score|grade))?[ \t]{{0,8}}{end}"
    return _Headers(
        re.compile(rf"^[ \t]*(?:{_MARK}[ \t]{{0,8}}){{0,2}}{header}", re.IGNORECASE | re.MULTILINE),
        re.compile(rf"(?:[^\w\n]{{0,8}}and\b)?[^\w\n]{{0,8}}{header}", re.IGNORECASE),
        re.compile(header, re.IGNORECASE),
    )


def sections(text: str, criteria: Sequence[str]) -> list[Section]:
    """The sections of a reply, in their order."""
    patterns = _patterns(tuple(criteria))
    headers = {found.end(): found for found in patterns.at_line.finditer(text)}
    for start, end in _lines_with(
        text, [f.start() for f in patterns.anywhere.finditer(text) if f.end() not in headers]
    ):
        for place in ends_of_grades(text, start, end):
            if found := patterns.after_grade.match(text, place):
                headers.setdefault(found.end(), found)
    rows = [headers[end] for end in sorted(headers)]
    limits = [*(found.start() for found in rows), len(text)][1:]
    return [
        Section(
            next(number for number in range(len(criteria)) if found[f"c{number}"]),
            # "Presentation score: 2" is a header and a label in one.
            (f"{found['label']}: " if found["label"] else "") + text[found.end() : limit],
        )
        for found, limit in zip(rows, limits, strict=True)
    ]


def _lines_with(text: str, places: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The lines that hold some of the places (rising), each once, with the line before: a grade may begin there."""
    end = -1
    for place in places:
        if place < end:
            continue
        start = text.rfind("\n", 0, max(0, text.rfind("\n", 0, place))) + 1
        end = text.find("\n", place)
        end = len(text) if end < 0 else end
        yield start, end
