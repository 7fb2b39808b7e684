"""What a judge of answers is, and what it says of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from lmlab.endpoints import Estimate, Usage
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.rubrics.numbers import Scale

EMPTY_ANSWER = "empty_answer"
GRADED = ("ok", EMPTY_ANSWER)


@dataclass(frozen=True)
class AnswerGrades:
    """What a judge says of an answer.

    Attributes:
        grades: by criterion; None where there is none. What cannot be read is no grade, and never the lowest one.
        status: `ok`, `empty_answer` (the lowest grade of the headline by rule, without asking), or why grades are
            missing: `partial`, `missing`, `wrong_scale`, `out_of_range`, `empty`, `content_filter`, `context_length`,
            `endpoint_error`, `no_key_points`.
        flags: what is odd about the reply or the item.
        spread: standard deviation over samples by criterion; None for a single one.
        samples: the grades of each of several samples; empty for a single one.
        scores: raw figures of a judge that is no model asked for grades, such as a similarity.
        details: by key point, where the judge looks at each: its verdict or its score.
        raw: the replies, as they came.
        usage, cost_usd, requests, seconds: of all replies; no cost where the price is not known.
        attempts: how often the judge was asked at most for one reply; more than 1 after a reply that was unreadable.
    """

    grades: Mapping[str, float | None]
    status: str = "ok"
    flags: tuple[str, ...] = ()
    spread: Mapping[str, float | None] = field(default_factory=dict)
    samples: tuple[Mapping[str, float | None], ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)
    details: tuple[Mapping[str, Any], ...] = ()
    raw: tuple[str, ...] = ()
    usage: Usage = field(default_factory=Usage)
    cost_usd: float | None = None
    requests: int = 0
    seconds: float = 0.0
    attempts: int = 0

    @property
    def graded(self) -> bool:
        """Whether it enters means."""
        return self.status in GRADED

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


Take = Callable[[int, AnswerGrades], None]


class AnswerJudge(Protocol):
    """Who grades answers.

    Attributes:
        name: for tables; which model, and how it is asked.
        criteria: what is graded.
        headline: the criterion that tables show first.
        scale: of the grades.
        prompt_hash: of everything that the judge is told or set to, apart from the item.
    """

    name: str

    @property
    def criteria(self) -> tuple[str, ...]: ...

    @property
    def headline(self) -> str: ...

    @property
    def scale(self) -> Scale: ...

    @property
    def prompt_hash(self) -> str: ...

    def judge(self, items: Sequence[AnswerItem], take: Take) -> None:
        """Grade answers; `take` gets the number of each and what is said of it, as they come.

        Raises:
            UserError: an item lacks what the judge needs.
        """

    def estimate(self, items: Sequence[AnswerItem]) -> Estimate | None:
        """What asking will cost, without asking; None for a judge that asks nobody."""


def judge_answers(
    judge: AnswerJudge, items: Sequence[AnswerItem], advance: Callable[[int], None] | None = None
) -> list[AnswerGrades]:
    """Grade answers, each of several equal ones once.

    An answer without a word is not shown to anybody: it gets the lowest grade of the headline by rule.

    Arguments:
        advance: gets the number of items that are done.
    """
    found: list[AnswerGrades | None] = [None] * len(items)
    places = judged_once(items)

    def take(number: int, grades: AnswerGrades) -> None:
        for place in shown[number]:
            found[place] = grades
        if advance:
            advance(len(shown[number]))

    shown = [numbers for numbers in places if items[numbers[0]].answer.strip()]
    for numbers in places:
        if not items[numbers[0]].answer.strip():
            for place in numbers:
                found[place] = of_empty_answer(judge)
            if advance:
                advance(len(numbers))
    judge.judge([items[numbers[0]] for numbers in shown], take)
    return [each if each is not None else AnswerGrades(nothing(judge), "missing") for each in found]


def judged_once(items: Iterable[AnswerItem]) -> list[list[int]]:
    """The numbers of items, those of equal content together, in the order of their first."""
    by_content: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        by_content.setdefault(item.content_hash, []).append(number)
    return list(by_content.values())


def of_empty_answer(judge: AnswerJudge) -> AnswerGrades:
    """The lowest grade of the headline, and none of the others."""
    grades = nothing(judge) | {judge.headline: judge.scale.minimum}
    return AnswerGrades(grades, EMPTY_ANSWER, (EMPTY_ANSWER,))


def nothing(judge: AnswerJudge) -> dict[str, float | None]:
    """No grade for any criterion."""
    return dict.fromkeys(judge.criteria)
