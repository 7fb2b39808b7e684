"""Tutors in an order, by a judge that is shown two answers at a time: each pair in both orders, and one scale for all
by Bradley and Terry.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.evals.rows import Row
from lmlab.judging import Criterion, Judge, both_orders, fit_bradley_terry, length_controlled
from lmlab.judging.answers.pairs import AnswerPair, answer_criterion, compare_answers
from lmlab.methods.tutor.config import ScoreConfig
from lmlab.methods.tutor.endpoints import redacted
from lmlab.stats import bootstrap, percentile_interval, resample

CLAUSE = (
    "teaches the student better: it is correct, makes the points that experts expect where they are listed, and"
    " explains them clearly"
)
_PRIOR = 0.1  # of a win each way: a tutor that has won everything has a finite score then
_RESAMPLES = 500  # each is a fit
_DEFAULTS = ScoreConfig()


def criterion_of(clause: str | None = None) -> Criterion:
    """What the judge is to choose by."""
    return answer_criterion(clause or CLAUSE)


class Meeting:
    """The answers of two tutors to a question. What is settled without a judge: equal answers are equally good, and an
    answer without a word loses.
    """

    def __init__(self, first: Row, second: Row, redact: Sequence[str]) -> None:
        said = [str(row["tutor"]["output"]) for row in (first, second)]
        points = "\n".join(f"- {point}" for point in first["key_points"])
        asked = first["question"] + (f"\n\nPoints that experts expect of an answer:\n{points}" if points else "")
        texts = [redacted(text, tuple(redact)) for text in (asked, *said)]
        self.pair = AnswerPair(first["id"], *texts)
        self.cluster = str(first["cluster"])
        self.lengths = len(said[0]), len(said[1])
        words = [bool(text.strip()) for text in said]
        equal = said[0].split() == said[1].split()
        self.settled = 0.5 if equal else None if all(words) else float(words[0])


def pairs_of(tutors: Mapping[str, Sequence[Row]], redact: Sequence[str] = ()) -> dict[tuple[str, str], list[Meeting]]:
    """The answers of each two tutors to the questions that both have answered, in the order of the first.

    Raises:
        UserError: two tutors share no question.
    """
    answered = {name: {row["id"]: row for row in rows if row["answer_status"] == "ok"} for name, rows in tutors.items()}
    found = {}
    for first, second in combinations(tutors, 2):
        shared = [id for id in answered[first] if id in answered[second]]
        if not shared:
            raise UserError(f"'{first}' and '{second}' share no question that both answered.", "Ask both the same set.")
        found[first, second] = [Meeting(answered[first][id], answered[second][id], redact) for id in shared]
    return found


def rank(
    judge: Judge,
    criterion: Criterion,
    tutors: Mapping[str, Sequence[Row]],
    config: ScoreConfig = _DEFAULTS,
    redact: Sequence[str] = (),
) -> tuple[dict[str, Any], list[Row]]:
    """Show every pair of answers in both orders; disagreement of the orders is a tie.

    Returns:
        the report: `tutors` with their scores (natural logits, mean 0) and intervals over chapters, best first, and
        `pairs` with the share of wins of the first, raw and at equal length (None where all lengths differ by the
        same), and what the order does; and a row a pair of answers.

    Raises:
        UserError: two tutors share no question, or the judge has no verdict on any pair of two tutors.
    """
    met = pairs_of(tutors, redact)
    asked = [each.pair for several in met.values() for each in several if each.settled is None]
    shares = iter(compare_answers(judge, criterion, asked))  # of all pairs at once, in the order of `met`
    rows, reports, wins = [], [], []
    place = {name: number for number, name in enumerate(tutors)}
    for names, several in met.items():
        own = [next(shares) if each.settled is None else (each.settled, each.settled) for each in several]
        judged = [(each, share) for each, share in zip(several, own, strict=True) if share is not None]
        if not judged:
            raise UserError(
                f"The judge has no verdict on any answers of '{names[0]}' and '{names[1]}'.", "See what it replies."
            )
        found, said = _of_pair(names, judged, len(several), config)
        reports.append(found)
        wins += [
            (place[names[0]], place[names[1]], win, each.cluster) for (each, _), win in zip(judged, said, strict=True)
        ]
        told = dict(zip((id(each) for each, _ in judged), said, strict=True))
        rows += [
            {"id": each.pair.id, "first": names[0], "second": names[1], "cluster": each.cluster,
             "asked": each.settled is None, "wins": told.get(id(each))}
            for each in several
        ]  # fmt: skip
    report = {
        "judge": {"name": judge.name, "prompt_hash": criterion.prompt_hash},
        "tutors": _scores(list(tutors), wins, config),
        "pairs": reports,
        "missing": sum(each["missing"] for each in reports),
    }
    return report, rows


def _of_pair(
    names: tuple[str, str], judged: Sequence[tuple[Meeting, tuple[float, float]]], total: int, config: ScoreConfig
) -> tuple[dict[str, Any], list[float]]:
    clusters = [each.cluster for each, _ in judged]
    orders = both_orders([a for _, (a, _) in judged], [b for _, (_, b) in judged])
    lengths = [[each.lengths[side] for each, _ in judged] for side in (0, 1)]
    equal = length_controlled(orders.wins, lengths[0], lengths[1], None, clusters, _RESAMPLES, config.seed).controlled
    wins = np.array(orders.wins)
    share = bootstrap(
        lambda chosen: float(wins[chosen].mean()), len(wins), config.level, config.resamples, config.seed, clusters
    )
    # what was settled by rule was shown in no order
    asked = [share for each, share in judged if each.settled is None]
    shown = both_orders([a for a, _ in asked], [b for _, b in asked]) if asked else None
    return {
        "first": names[0],
        "second": names[1],
        "n": len(judged),
        "missing": total - len(judged),
        "by_rule": len(judged) - len(asked),
        "chapters": len(set(clusters)),
        "wins": _bounds(share.value, share.low, share.high),
        "at_equal_length": None if equal is None else _bounds(equal.value, equal.low, equal.high),
        "ties": round(float((wins == 0.5).mean()), 10),
        "orders_disagree": None if shown is None else round(shown.disagreements, 10),
        "first_place": None if shown is None else round(shown.first_place, 10),
    }, list(orders.wins)


def _scores(
    names: Sequence[str], wins: Sequence[tuple[int, int, float, str]], config: ScoreConfig
) -> list[dict[str, Any]]:
    first, second = (np.array([each[side] for each in wins]) for side in (0, 1))
    won = np.array([each[2] for each in wins])
    clusters = [each[3] for each in wins]

    def fitted(chosen: NDArray[np.int64]) -> NDArray[np.float64]:
        table = np.full((len(names), len(names)), _PRIOR)
        np.add.at(table, (first[chosen], second[chosen]), won[chosen])
        np.add.at(table, (second[chosen], first[chosen]), 1 - won[chosen])
        return fit_bradley_terry(table)

    scores = fitted(np.arange(len(won)))
    draws: list[NDArray[np.float64]] = []

    def keep(chosen: NDArray[np.int64]) -> float:
        draws.append(fitted(chosen))
        return 0.0

    if len(set(clusters)) > 1:
        resample(keep, len(won), _RESAMPLES, config.seed, clusters)
    games = Counter(int(each) for pair in zip(first, second, strict=True) for each in pair)
    found = []
    for number, name in enumerate(names):
        value = float(scores[number])
        interval = percentile_interval(value, [each[number] for each in draws], config.level)
        found.append(
            {"tutor": name, "comparisons": games[number], "score": _bounds(value, interval.low, interval.high)}
        )
    return sorted(found, key=lambda each: -each["score"]["value"])


def _bounds(value: float, low: float, high: float) -> dict[str, float | None]:
    return {
        name: round(float(each), 10) if np.isfinite(each) else None
        for name, each in (("value", value), ("low", low), ("high", high))
    }
