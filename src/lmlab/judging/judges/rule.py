"""A judge that is a function: for rehearsals, and for rules that are to be measured like a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lmlab.judging.judge import Question, Verdict


class RuleJudge:
    """A judge that needs no model.

    Arguments:
        prefers_second: the probability that the second text of a question is the better one.
        name: for the report.
    """

    generations = 1

    def __init__(self, prefers_second: Callable[[Question], float], name: str) -> None:
        self.name, self._prefers_second = name, prefers_second

    def compare(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Apply the rule."""
        for number, question in enumerate(questions):
            p = self._prefers_second(question)
            take(number, Verdict(1 - p, p))
