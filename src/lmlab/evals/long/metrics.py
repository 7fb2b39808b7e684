"""How right an answer is. All figures are from 0 to 1, but counts."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from lmlab.evals.generation import exact_match, normalized, token_f1

_RANKING = re.compile(r"\d+(?:\s*>\s*\d+)*")
_REFUSAL = re.compile(
    r"\b(?:i(?:'m| am) sorry|i can(?:no|')t|i am unable|i'm unable|as an ai|(?:is|are|was|were) not (?:mentioned|given|"
    r"provided|stated)|no information|cannot be (?:found|determined))",
    re.IGNORECASE,
)
_MARK = re.compile(r"\s*\[\d+(?:\s*[,;]\s*\d+)*\]")  # of documents, as [1][2] or [1, 2]
_DIGITS = 18  # no number of a document has more
_RANKS = 10  # as HELMET measures rerankers
_TOP = 5  # answers of QAMPARI of which no more are expected


def substring_match(output: str, answers: Sequence[str]) -> float:
    """1 where an answer stands within the output, both normalized (SubEM)."""
    found = normalized(output)
    return float(any(normalized(answer) and normalized(answer) in found for answer in answers))


def best_exact(output: str, answers: Sequence[str]) -> float:
    """1 where the output is an answer, both normalized."""
    return max(exact_match(output, answer) for answer in answers)


def best_f1(output: str, answers: Sequence[str]) -> float:
    """The best F1 of words with an answer."""
    return max(token_f1(output, answer) for answer in answers)


def share_found(output: str, values: Sequence[str]) -> float:
    """What share of several values stands within the output."""
    return sum(substring_match(output, [value]) for value in values) / len(values)


def share_of_words(output: str, values: Sequence[str]) -> float:
    """What share of several values stands within the output as words of their own: 3 is not in 2013, nor 3.5 in 35."""
    return sum(re.search(rf"(?<![\w.]){re.escape(value)}(?!\.?\w)", output) is not None for value in values) / len(
        values
    )


def right_choice(output: str, first: str, answers: Sequence[str]) -> float:
    """1 where an output is the letter of the right option, or the letter with its text, or holds the latter."""
    right = {normalized(answer) for answer in answers}
    if normalized(first) in right or normalized(output) in right:
        return 1.0
    return float(len(answers) > 1 and answers[1].lower() in output.lower())


def share_of_groups(output: str, groups: Sequence[Sequence[str]]) -> float:
    """What share of several questions is answered: of each, one of its short answers stands within the output (the
    string match of ALCE, Gao et al. 2023).
    """
    return sum(substring_match(output, group) for group in groups) / len(groups)


def listed_answers(output: str, groups: Sequence[Sequence[str]]) -> dict[str, float]:
    """How right a list with commas is, as ALCE measures it on QAMPARI: recall of at most five answers, recall of all,
    and precision.
    """
    listed = [text for each in output.strip().rstrip(".,").split(",") if (text := normalized(each))]
    known = {normalized(answer) for group in groups for answer in group}
    right = sum(any(normalized(answer) in listed for answer in group) for group in groups)
    precision = sum(text in known for text in listed) / len(listed) if listed else 0.0
    most = min(_TOP, len(groups))
    return {"rec_top5": min(_TOP, right) / most, "recall": right / len(groups), "precision": precision}


def without_citations(output: str) -> str:
    """An output without its marks [1] or [1, 2]."""
    return _MARK.sub("", output)


def citations(output: str) -> list[int]:
    """The numbers in an output's marks, in order."""
    # Python refuses to read thousands of digits, which a model that repeats itself may write
    return [int(number[:_DIGITS]) for mark in _MARK.findall(output) for number in re.findall(r"\d+", mark)]


def parse_ranking(output: str) -> list[str]:
    """The identifiers of the longest chain `a > b > c` in an output, each once; empty where there is none."""
    text = re.sub(r"(?i)\bid\b|[\[\]:]", " ", output)
    chains = [re.findall(r"\d+", chain) for chain in _RANKING.findall(re.sub(r"[ \t]+", " ", text))]
    longest = max(chains, key=len, default=[])
    return list(dict.fromkeys(longest))


def ndcg(ranking: Sequence[str], labels: Mapping[str, int], ranks: int = _RANKS) -> float:
    """Normalized discounted cumulative gain of the first ranks, with linear gain (Järvelin and Kekäläinen 2002)."""
    best = _gain(sorted(labels.values(), reverse=True)[:ranks])
    return _gain([labels.get(name, 0) for name in ranking[:ranks]]) / best if best else 0.0


def chance_of_ranking(labels: Mapping[str, int], ranks: int = _RANKS) -> float:
    """The mean nDCG of all orders: at every rank stands the mean label."""
    ideal = _gain(sorted(labels.values(), reverse=True)[:ranks])
    if not ideal:
        return 0.0
    mean = sum(labels.values()) / len(labels)
    return mean * _gain([1] * min(ranks, len(labels))) / ideal


def _gain(labels: Sequence[int]) -> float:
    """Of labels in their order, discounted by rank."""
    return sum(label / math.log2(rank + 2) for rank, label in enumerate(labels))


def row_f1(output: str, reference: str) -> float:
    """F1 of lines, repeats counted, without white space at their ends."""
    ours, theirs = (Counter(_rows(text)) for text in (output, reference))
    common = sum((ours & theirs).values())
    return 2 * common / (sum(ours.values()) + sum(theirs.values())) if common else 0.0


def right_before_error(output: str, reference: str) -> float:
    """What share of the reference's lines stands at the beginning of the output, in order, before the first wrong
    one.
    """
    ours, theirs = _rows(output), _rows(reference)
    right = next((place for place, row in enumerate(theirs) if ours[place : place + 1] != [row]), len(theirs))
    return right / len(theirs)


def edit_similarity(output: str, reference: str) -> float:
    """1 less the Levenshtein distance over the length of the longer text."""
    before = list(range(len(reference) + 1))
    for row, a in enumerate(output, 1):
        now = [row]
        for column, b in enumerate(reference, 1):
            now.append(min(before[column] + 1, now[-1] + 1, before[column - 1] + (a != b)))
        before = now
    longest = max(len(output), len(reference))
    return 1 - before[-1] / longest if longest else 1.0


def is_refusal(output: str) -> bool:
    """Whether an output declines to answer."""
    return _REFUSAL.search(output) is not None


def _rows(text: str) -> list[str]:
    return [re.sub(r"\s*\t\s*", "\t", line.strip()) for line in text.splitlines() if line.strip()]
