"""JudgeBench (Tan et al. 2024): pairs of answers of which one is right, for judges that compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmlab.errors import UserError
from lmlab.files import read_jsonl
from lmlab.judging.answers.pairs import AnswerPair, compare_answers
from lmlab.judging.judge import Judge
from lmlab.judging.measures.length import BothOrders, LengthControlled, both_orders, length_controlled
from lmlab.judging.wording import Criterion
from lmlab.stats import Interval, bootstrap

_BETTER = {"A>B": 1.0, "A<B": 0.0, "B>A": 0.0, "B<A": 1.0}


@dataclass(frozen=True)
class LabeledPair(AnswerPair):
    """Two answers to a question of which one is right.

    Attributes:
        first_wins: whether the first is the right one.
        source: of the question.
    """

    first_wins: bool
    source: str


def read_judgebench(path: str | Path) -> list[LabeledPair]:
    """The pairs of a file of JSON lines with `question`, `response_A`, `response_B` and `label` (A>B or B>A).

    Raises:
        UserError: a line has another form; with its number.
    """
    found = []
    for number, row in enumerate(read_jsonl(Path(path)), 1):
        texts = [row.get(name) for name in ("question", "response_A", "response_B")]
        label = str(row.get("label", "")).replace(" ", "")
        if not all(isinstance(text, str) for text in texts) or label not in _BETTER:
            raise UserError(
                f"'{path}', line {number} has no question, response_A, response_B and label A>B or B>A.",
                "Name a file in JudgeBench's form.",
            )
        question, first, second = (str(text) for text in texts)
        source = str(row.get("source", ""))
        found.append(
            LabeledPair(str(row.get("pair_id", number)), question, first, second, _BETTER[label] == 1.0, source)
        )
    if not found:
        raise UserError(f"'{path}' has no pairs.")
    return found


@dataclass(frozen=True)
class PairScore:
    """How a judge that compares does on labeled pairs.

    Attributes:
        accuracy: the right answer wins in both orders together; where the orders disagree, half a point.
        orders: what the order of answers does.
        missing: pairs without a verdict in both orders, which count as wrong.
        by_source: accuracy with the number of pairs, by the source of the questions.
        lengths: the accuracy at equal length of both answers, of the pairs with a verdict.
        right: of each pair: 1, 0, or 1/2 where the orders disagree; None without a verdict.
    """

    accuracy: Interval[float]
    orders: BothOrders
    missing: int
    by_source: Mapping[str, tuple[Interval[float], int]]
    lengths: LengthControlled
    right: tuple[float | None, ...]


def score_pairs(judge: Judge, criterion: Criterion, pairs: Sequence[LabeledPair]) -> PairScore:
    """Show every pair in both orders.

    Raises:
        UserError: the judge has no verdict on any pair.
    """
    shares = compare_answers(judge, criterion, pairs)
    both = [each for each in shares if each is not None]
    if not both:
        raise UserError("The judge has no verdict on any pair.", "See what it replies.")
    orders = both_orders([a for a, _ in both], [b for _, b in both])
    wins = iter(orders.wins)
    said = [None if each is None else next(wins) for each in shares]
    right = [
        None if win is None else win if pair.first_wins else 1 - win for win, pair in zip(said, pairs, strict=True)
    ]
    sources: dict[str, list[float]] = {}
    for pair, value in zip(pairs, right, strict=True):
        sources.setdefault(pair.source, []).append(value or 0.0)
    judged = [(pair, value) for pair, value in zip(pairs, right, strict=True) if value is not None]
    sizes = [sorted((len(pair.first), len(pair.second)), reverse=_longer_first(pair)) for pair, _ in judged]
    return PairScore(
        _accuracy([value or 0.0 for value in right]),
        orders,
        len(shares) - len(both),
        {source: (_accuracy(values), len(values)) for source, values in sorted(sources.items())},
        length_controlled([value for _, value in judged], [each[0] for each in sizes], [each[1] for each in sizes]),
        tuple(right),
    )


def _longer_first(pair: LabeledPair) -> bool:
    """Whether the right answer is the longer one."""
    return (len(pair.first) > len(pair.second)) == pair.first_wins


def _accuracy(right: Sequence[float]) -> Interval[float]:
    return bootstrap(lambda chosen: float(sum(right[each] for each in chosen) / len(chosen)), len(right))
