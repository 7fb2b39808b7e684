"""What a judge is: somebody who says which of two texts is the better one, or who grades one.

Both are protocols. Another package adds a judge by an entry point in the group `lmlab.judges` (`lmlab.judging.judges`),
another form of grading by a `Rubric`: what is asked about an item, and how a reply is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lmlab.endpoints import ChatRequest
from lmlab.judging.wording import Criterion

Item = TypeVar("Item")
AnyItem = TypeVar("AnyItem", contravariant=True)


@dataclass(frozen=True)
class Question:
    """Which of two texts is better by a criterion, in the order in which they are shown."""

    criterion: Criterion
    text_a: str
    text_b: str


@dataclass(frozen=True)
class Verdict:
    """Votes for both texts (or probabilities, of one generation); `status` says why there are none, and `error` what
    was said. `reasons` are the judge's own words, where they were asked for.
    """

    votes_a: float
    votes_b: float
    status: str = "ok"
    error: str | None = None
    reasons: str | None = None


class Judge(Protocol):
    """Who compares texts.

    One that words its questions in another way than `Criterion.pair_request` has `prompt_hash(criterion)` too, the
    SHA-256 of what it is told apart from the texts.

    Attributes:
        generations: how many votes a question gets.
        name: for the report.
    """

    generations: int
    name: str

    def compare(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Answer the questions; `take` gets the number of each and its verdict, as they come."""


@dataclass(frozen=True)
class Marks:
    """One reading of an item.

    Attributes:
        grades: by criterion; None where there is none. What cannot be read is no grade, and never the lowest one.
        status: `ok`, or why grades are missing.
        flags: what is odd about the reply.
    """

    grades: tuple[float | None, ...]
    status: str = "ok"
    flags: tuple[str, ...] = ()


class Rubric(Protocol[AnyItem]):
    """What is asked about an item, and how a reply is read.

    Attributes:
        criteria: names of what is graded, in the order of `Marks.grades`.
        prompt_hash: of everything that the judge is told apart from the item.
    """

    @property
    def criteria(self) -> tuple[str, ...]: ...

    @property
    def prompt_hash(self) -> str: ...

    def request(self, item: AnyItem, generations: int) -> ChatRequest:
        """The question about an item, for so many answers."""

    def read(self, text: str) -> Marks:
        """The marks that an answer gives."""


class Grader(Protocol):
    """Who grades items by a rubric.

    Attributes:
        generations: how many readings an item gets.
        name: for the report.
    """

    generations: int
    name: str

    def grade(
        self, rubric: Rubric[Item], items: Sequence[Item], take: Callable[[int, tuple[Marks, ...]], None]
    ) -> None:
        """Grade the items; `take` gets the number of each and its readings, as they come. An item that the judge
        refused or failed has one reading without grades, whose status says why.
        """
