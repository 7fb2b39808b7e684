"""From what a judge says to soft labels: the share of votes in both orders, so that a preference for a place cancels
(QuRating, section 3.1).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.endpoints import Choice
from lmlab.judging.rubrics.objects import last_object

Floats = NDArray[np.float64]
MISSING = -100.0  # as published data sets of judgments mark a pair without labels
_TRIM = " \t\r\n\"'`*.\u2018\u2019\u201c\u201d\u00ab\u00bb\u201e()[]{}<>"
_THINKING = re.compile(r"<think>.*?</think>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE)
_THOUGHT_BEGIN = re.compile(r"<think>|\[THINK\]", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</think>|\[/THINK\]", re.IGNORECASE)
_LEADING = re.compile(r"(the answer is|answer\s*:|option)(?![a-z0-9])\s*:?\s*", re.IGNORECASE)


def without_thoughts(text: str) -> str | None:
    """A text without the thoughts before its answer; None where a thought has no end.

    Templates of some models open the thought in the prompt, so that the text has only its end.
    """
    answer = _THINKING.sub("", text)
    *_, answer = _THOUGHT_END.split(answer)
    return None if _THOUGHT_BEGIN.search(answer) else answer


def parse_vote(text: str, labels: Sequence[str] = ("A", "B")) -> int | None:
    """The number of the label that an answer gives; None for a void vote: both labels, a label twice, another sentence,
    an unclosed thought.
    """
    answer = without_thoughts(unicodedata.normalize("NFKC", text))
    if answer is None:
        return None
    before = None
    while answer != before:
        before = answer
        answer = answer.strip(_TRIM)
        if found := _LEADING.match(answer):
            answer = answer[found.end() :]
    folded = [unicodedata.normalize("NFKC", label).casefold() for label in labels]
    return folded.index(answer.casefold()) if answer.casefold() in folded else None


def parse_reasons(text: str, labels: Sequence[str] = ("A", "B")) -> tuple[int | None, str]:
    """The number of the label that an answer with reasons chooses, None for a void one, and the reasons.

    The last object of JSON that has `reasons` and `choice` counts, whatever stands around it. Both are texts; a list of
    texts is read as reasons too, as models like to write it.
    """
    answer = without_thoughts(text)
    found = None if answer is None else last_object(answer, ("reasons", "choice"))
    if found is None:
        return None, ""
    choice, reasons = found.values["choice"], found.values["reasons"]
    if isinstance(reasons, list) and all(isinstance(each, str) for each in reasons):
        reasons = " ".join(reasons)
    if not isinstance(choice, str) or not isinstance(reasons, str):
        return None, ""
    return parse_vote(choice, labels), reasons


def label_masses(choice: Choice, labels: Sequence[str] = ("A", "B")) -> tuple[float, float] | None:
    """The probabilities of both labels at the first token of an answer, summed over the tokens that are one.

    None if neither is among the likeliest.
    """
    if not choice.log_probs:
        return None
    first = choice.log_probs[0]
    masses = [0.0, 0.0]
    for token, log_prob in {**dict(first.top), first.token: first.log_prob}.items():
        vote = parse_vote(token, labels)
        if vote is not None:
            masses[vote] += float(np.exp(log_prob))
    return (masses[0], masses[1]) if sum(masses) > 0 else None


def preference(votes_a: ArrayLike, votes_b: ArrayLike, generations: int) -> Floats:
    """p[i, j] = share of the valid votes for j when i is shown as A.

    NaN where no more than half of the generations are valid, and on the diagonal.
    """
    a, b = (np.asarray(votes, np.float64) for votes in (votes_a, votes_b))
    total = np.where((a >= 0) & (b >= 0), a + b, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(total > generations // 2, b / total, np.nan)
    np.fill_diagonal(p, np.nan)
    return p


def soft_labels(votes_a: ArrayLike, votes_b: ArrayLike, generations: int) -> Floats:
    """P[i, j], the probability that text j is better than text i, from the votes of both orders; -100 where either is
    missing, and on the diagonal.

    Arguments:
        votes_a, votes_b: [k, k], how many chose the first and the second text when i was shown first and j second;
            negative for missing.
        generations: G, how many were asked for.
    """
    p = preference(votes_a, votes_b, generations)
    both = (p + 1 - p.T) / 2
    return np.where(np.isnan(both), MISSING, both)
