"""An answer that is to be judged, with what it is judged by."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lmlab.files import sha256_json
from lmlab.files.parsing import ParseError, json_value

# A mark without a space after it is one before a word with a capital: "-5" and "1.5" are numbers, "-x" a formula.
_MARK = re.compile(
    r"^(?:(?:[-*+\u2022\u2023\u25e6\u00b7]|\(?[0-9]{1,3}[.)])(?:\s+|(?=[A-Z][a-z]+[\s,]))|[\u2022\u2023\u25e6])"
)
_LONGEST_LITERAL = 100_000  # characters; Python's parser of literals takes much memory for long ones


@dataclass(frozen=True)
class AnswerItem:
    """An answer to a question.

    Attributes:
        id: of the question; answers of several systems to one question share it.
        key_points: what experts expect of an answer.
        chapter: what the question is about; None for a question that stands alone.
        system: who answered.
        group: what the item shares with others, so that they are not independent: the chapter's name.
        weights: of the key points; empty for equal ones, and below 0 for what an answer must not say.
        fields: what else is known (domain, difficulty), by which tables are broken down.
    """

    id: str
    question: str
    answer: str
    key_points: tuple[str, ...] = ()
    chapter: str | None = None
    system: str = ""
    group: str = ""
    weights: tuple[float, ...] = ()
    fields: Mapping[str, Any] = field(default_factory=dict)

    @property
    def content_hash(self) -> str:
        """Of everything that a judge may see of it."""
        return sha256_json([self.question, self.answer, self.key_points, self.chapter, self.weights])


def key_points_of(value: Any) -> tuple[str, ...]:
    """Key points as they are published: a list, a text of lines with or without list marks, or a list written as text.

    Lines that are indented go on with the line before. Blank ones are dropped; nothing gives no points.
    """
    if _is_nothing(value):
        return ()
    if isinstance(value, str):
        literal = _literal(value)
        if literal is None:
            return _lines(value)
        value = literal
    if not isinstance(value, list | tuple) and hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return _lines(str(value))
    return tuple(point for each in value if not _is_nothing(each) and (point := " ".join(_unmarked(str(each)).split())))


def without_blanks(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with None for the not-a-number by which tables of numbers mark an empty cell: else it would be a text
    `nan`, and all such rows of one name.
    """
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in record.items()}


def _is_nothing(value: Any) -> bool:
    """None, a truth value, or the not-a-number that tables write for an empty cell."""
    return value is None or isinstance(value, bool) or (isinstance(value, float) and math.isnan(value))


def _lines(text: str) -> tuple[str, ...]:
    points: list[str] = []
    margin: int | None = None
    for line in text.replace("\r\n", "\n").replace("\r", "\n").expandtabs(4).split("\n"):
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        margin = indent if margin is None else min(margin, indent)
        if points and indent > margin and not _MARK.match(line.strip()):
            points[-1] += " " + " ".join(line.split())
        elif point := " ".join(_unmarked(line).split()):
            points.append(point)
    return tuple(points)


def _unmarked(line: str) -> str:
    return _MARK.sub("", line.strip(), count=1)


def _literal(text: str) -> list[Any] | tuple[Any, ...] | None:
    """The list that a text spells, in JSON or in Python."""
    stripped = text.strip()
    if not (stripped.startswith(("[", "(")) and stripped.endswith(("]", ")"))) or len(stripped) > _LONGEST_LITERAL:
        return None
    try:
        value = json_value(stripped)
    except ParseError:
        try:
            value = ast.literal_eval(stripped)
        except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return None
    if not isinstance(value, list | tuple) or not all(each is None or isinstance(each, str) for each in value):
        return None
    return value if not value or any(value) else ()
