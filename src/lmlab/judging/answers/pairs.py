"""Two answers to one question before a judge that compares, in both orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlab.judging.judge import Judge, Question, Verdict
from lmlab.judging.rubrics.hidden import visible
from lmlab.judging.wording import Criterion, load_wording, make_criterion


@dataclass(frozen=True)
class AnswerPair:
    """Two answers to a question."""

    id: str
    question: str
    first: str
    second: str


def answer_criterion(clause: str | None = None) -> Criterion:
    """Which answer is right, in the words of `answers-v1.yaml`, or by a clause of one's own."""
    return make_criterion("correctness", clause, load_wording(Path(__file__).with_name("answers-v1.yaml")))


def questions_of(criterion: Criterion, pairs: Sequence[AnswerPair]) -> list[Question]:
    """Every pair in both orders, one after the other; without what people cannot see."""
    found = []
    for pair in pairs:
        asked = [visible(f"Question: {pair.question}\n\nAnswer: {text}") for text in (pair.first, pair.second)]
        found += [Question(criterion, asked[0], asked[1]), Question(criterion, asked[1], asked[0])]
    return found


def compare_answers(
    judge: Judge, criterion: Criterion, pairs: Sequence[AnswerPair]
) -> list[tuple[float, float] | None]:
    """Of each pair the share of votes for the first answer, where it is shown first and where it is shown second; None
    without a verdict in both orders.
    """
    questions = questions_of(criterion, pairs)
    verdicts: list[Verdict | None] = [None] * len(questions)
    judge.compare(questions, verdicts.__setitem__)
    shares = [_share(each) for each in verdicts]
    return [
        None if shown_first is None or other is None else (shown_first, 1 - other)
        for shown_first, other in zip(shares[::2], shares[1::2], strict=True)
    ]


def _share(verdict: Verdict | None) -> float | None:
    """The share of votes for the first text that is shown."""
    if verdict is None or verdict.votes_a < 0 or verdict.votes_b < 0 or verdict.votes_a + verdict.votes_b <= 0:
        return None
    return verdict.votes_a / (verdict.votes_a + verdict.votes_b)
