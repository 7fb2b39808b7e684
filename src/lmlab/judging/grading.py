"""Grades of single texts by one criterion, for comparison with pairs."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.endpoints import ChatRequest
from lmlab.judging.judge import Grader, Marks
from lmlab.judging.pairs import Text, as_text
from lmlab.judging.votes import MISSING
from lmlab.judging.wording import Criterion

_GRADE = re.compile(r"\W*(10|[1-9])\W*(?:/\s*10)?\W*")
_TOKENS = 16  # of an answer that is a number and nothing else


@dataclass(frozen=True)
class SingleGrade:
    """The rubric of one criterion whose wording asks for a number from 1 to 10."""

    criterion: Criterion

    @property
    def criteria(self) -> tuple[str, ...]:
        """The criterion's name."""
        return (self.criterion.name,)

    @property
    def prompt_hash(self) -> str:
        """That of the criterion."""
        return self.criterion.prompt_hash

    def request(self, item: Text, generations: int) -> ChatRequest:
        """The question for a grade."""
        return self.criterion.single_request(item.text, n=generations, temperature=1.0, max_tokens=_TOKENS)

    def read(self, text: str) -> Marks:
        """A number alone, also over 10; anything else is unreadable."""
        found = _GRADE.fullmatch(text)
        return Marks((float(found[1]),)) if found else Marks((None,), "unreadable")


@dataclass(frozen=True)
class Graded:
    """Grades of one text from 1 to 10; `average` is -100 where there are none."""

    index: str
    text: str
    scores: tuple[float, ...]

    @property
    def average(self) -> float:
        """Their mean."""
        return float(np.mean(self.scores)) if self.scores else MISSING

    def row(self) -> dict[str, Any]:
        """The layout of single grades."""
        return {"index": self.index, "text": self.text, "scores": list(self.scores), "average": self.average}


def grade(grader: Grader, criterion: Criterion, texts: Sequence[Text | str]) -> list[Graded]:
    """Let a judge grade texts one by one."""
    whole = [as_text(text) for text in texts]
    scores: list[tuple[float, ...]] = [()] * len(whole)

    def take(number: int, readings: tuple[Marks, ...]) -> None:
        scores[number] = tuple(marks.grades[0] for marks in readings if marks.grades and marks.grades[0] is not None)

    grader.grade(SingleGrade(criterion), whole, take)
    return [Graded(each.id, each.text, values) for each, values in zip(whole, scores, strict=True)]
