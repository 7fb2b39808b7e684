"""A judge that needs no model: it compares by counts of words and signs.

For rehearsals and demonstrations; its opinions are a rule, not a perception.
"""

from __future__ import annotations

import math
import re

from lmlab.judging import JudgeOptions, Question, RuleJudge

_WORD = re.compile(r"[^\W\d_]+")
_EXPLAINING = frozenset(
    (
        "because",
        "therefore",
        "thus",
        "hence",
        "example",
        "means",
        "explains",
        "returns",
        "note",
        "why",
        "how",
        "when",
        "if",
        "whether",
        "instead",
        "otherwise",
        "called",
        "defined",
        "first",
        "then",
        "finally",
        "step",
    )
)


def utility(text: str, criterion: str) -> float:
    """How good a text is by the rule for a criterion: in units of the logit of being preferred."""
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return -4.0
    characters = max(1, len(text))
    long_share = sum(len(word) >= 8 for word in words) / len(words)
    explaining = sum(word in _EXPLAINING for word in words) / len(words)
    letters = sum(len(word) for word in words) / characters
    numbers = len(re.findall(r"\d+", text)) / len(words)
    variety = len(set(words)) / math.sqrt(len(words))
    match criterion:
        case "required_expertise":
            # weights set by hand: a known answer to learn, no opinion on texts
            return 10 * long_share - 2
        case "facts_and_trivia":
            return 8 * numbers + 4 * long_share - 1
        case "educational_value":
            return 30 * explaining + 4 * letters - 3
        case _:
            return 6 * letters + 0.3 * variety - 5


def prefers_second(text_a: str, text_b: str, criterion: str) -> float:
    """The probability that the second text is the better one."""
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, utility(text_b, criterion) - utility(text_a, criterion)))))


def offline_judge(text: str = "offline", options: JudgeOptions | None = None) -> RuleJudge:
    """The judge `offline`: the rule, for whatever criterion is asked."""

    def prefers(question: Question) -> float:
        return prefers_second(question.text_a, question.text_b, question.criterion.name)

    return RuleJudge(prefers, "offline: a rule over words and signs")
