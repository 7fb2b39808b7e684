"""Ranked classification: a model's answer is the option to which it gives the most probability, by one of five
normalizations.

The row of a question holds, for each option, the natural-log probability, tokens, characters and bytes; the figures are
made from rows alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import cycle
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.data import Tokenizer
from lmlab.errors import UserError
from lmlab.evals.config import TooLong
from lmlab.evals.measurement import Measurement, bootstrapped, mean
from lmlab.evals.prefix_sharing import Window
from lmlab.evals.rows import Row
from lmlab.evals.scoring import Score, Scorer
from lmlab.evals.tasks.questions import Question, encode_pairs, fit_window
from lmlab.stats import calibration_error

Normalization = Literal["none", "characters", "bytes", "tokens", "unconditional"]
NORMALIZATIONS: tuple[Normalization, ...] = ("none", "characters", "bytes", "tokens", "unconditional")


def rank_questions(
    scorer: Scorer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    unconditional: bool = False,
    too_long: TooLong = "error",
) -> Iterator[Row]:
    """The row of each question, in any order, as they come.

    Arguments:
        unconditional: also score the options without the question.
        too_long: what is done with a question that is longer than the model's window. A row tells how many tokens were
            cut, or that it was skipped.

    Raises:
        UserError: a question is longer than the window and `too_long` is `error`; an option adds no token to its
            context.
    """
    prepared = [
        _Prepared(scorer, question, windows, too_long)
        for question, windows in _encode(tokenizer, questions, unconditional)
    ]
    yield from (each.skipped() for each in prepared if each.is_skipped)
    kept = [each for each in prepared if not each.is_skipped]
    owners = [(owner, place) for owner in kept for place in range(len(owner.windows))]
    for index, score in scorer.score([owner.windows[place] for owner, place in owners]):
        owner, place = owners[index]
        owner.scores[place] = score
        if len(owner.scores) == len(owner.windows):
            yield owner.row()


def _encode(
    tokenizer: Tokenizer, questions: Sequence[Question], unconditional: bool
) -> Iterator[tuple[Question, list[Window]]]:
    """The windows of each question's options, and behind them those of its options without the question if
    asked for.
    """
    pairs = [question.pairs() + (question.pairs(unconditional=True) if unconditional else []) for question in questions]
    windows = iter(encode_pairs(tokenizer, [pair for each in pairs for pair in each]))
    for question, own in zip(questions, pairs, strict=True):
        yield question, [next(windows) for _ in own]


class _Prepared:
    """A question on its way to a row."""

    def __init__(self, scorer: Scorer, question: Question, windows: list[Window], too_long: TooLong) -> None:
        self.question, self.scores = question, dict[int, Score]()
        fitted = [fit_window(window, scorer.max_seq_len, too_long, f"Question '{question.id}'") for window in windows]
        self.is_skipped = any(window is None for window, _ in fitted)
        self.windows = [window for window, _ in fitted if window is not None]
        self.cut = sum(cut for _, cut in fitted)
        for option, window in zip(cycle(question.options), windows, strict=False):
            if window.num_scored < 1:
                raise UserError(
                    f"Question '{question.id}': the option {option!r} adds no token to its context.",
                    "Change where the context ends.",
                )

    def skipped(self) -> Row:
        return {"id": self.question.id, "domain": self.question.domain, "gold": self.question.gold, "skipped": True}

    def row(self) -> Row:
        count = len(self.question.options)
        scores = [self.scores[place] for place in range(len(self.windows))]
        row = question_row(self.question, [score.log_prob for score in scores[:count]])
        row["tokens"] = [window.num_scored for window in self.windows[:count]]
        row["greedy"] = [score.greedy for score in scores[:count]]
        if len(scores) > count:
            row["unconditional"] = [score.log_prob for score in scores[count:]]
        if self.cut:
            row["tokens_cut"] = self.cut
        return row


def question_row(question: Question, log_probs: Sequence[float]) -> Row:
    """A row from log-probabilities that any model gave."""
    return {
        "id": question.id,
        "domain": question.domain,
        "gold": question.gold,
        "log_probs": list(log_probs),
        "characters": [len(option) for option in question.options],
        "bytes": [len(option.encode()) for option in question.options],
    }


def option_scores(row: Row, normalization: Normalization) -> NDArray[np.float64]:
    """What the options are ranked by: their log-probability, a unit of length, or beyond that without the question."""
    log_probs = np.asarray(row["log_probs"], float)
    if normalization == "none":
        return log_probs
    if normalization == "unconditional":
        return log_probs - np.asarray(row["unconditional"], float)
    return log_probs / np.asarray(row[normalization], float)


def ranked_figures(rows: Sequence[Row], normalization: Normalization) -> dict[str, Measurement]:
    """All figures of a ranked task by name; rows that were skipped do not count.

    `accuracy` is that of the task's normalization, `accuracy/NAME` of another. `bits_per_byte` is the mean over
    questions of what the right option costs, `soft` the probability of the right option after a softmax over the
    options' scores, `log_soft` its logarithm and `cross_entropy` minus that. `calibration_error` is the expected
    difference between confidence and accuracy over ten equal bins (Guo et al. 2017, equation 3), with a bootstrapped
    standard error.
    """
    rows = [row for row in rows if not row.get("skipped")]
    if not rows:
        return {}
    figures = {"bits_per_byte": mean([_gold_bits(row) for row in rows])}
    if all(len(row["log_probs"]) == 1 for row in rows):
        return figures
    known = [name for name in NORMALIZATIONS if name == "none" or all(name in row for row in rows)]
    right = {
        name: np.array([option_scores(row, name).argmax() == row["gold"] for row in rows], float) for name in known
    }
    soft = [_softmax(option_scores(row, normalization)) for row in rows]
    gold = np.array([values[row["gold"]] for values, row in zip(soft, rows, strict=True)])
    confidence = np.array([values.max() for values in soft])
    return {
        "accuracy": mean(right[normalization]),
        **figures,
        "soft": mean(gold),
        "log_soft": mean(np.log(gold)),
        "cross_entropy": mean(-np.log(gold)),
        "calibration_error": bootstrapped(
            lambda chosen: calibration_error(confidence[chosen], right[normalization][chosen]), len(rows)
        ),
        **{f"accuracy/{name}": mean(values) for name, values in right.items() if name != normalization},
    }


def ranked_values(rows: Sequence[Row], metric: str, normalization: Normalization) -> list[float]:
    """`accuracy` (0 or 1) or `bits_per_byte` of each question, for comparing models question by question."""
    if metric == "accuracy":
        return [float(option_scores(row, normalization).argmax() == row["gold"]) for row in rows]
    return [_gold_bits(row) for row in rows]


def by_domain(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each domain, by name."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[str(row["domain"])].append(row)
    return dict(sorted(found.items()))


def chance_level(rows: Sequence[Row]) -> float | None:
    """The accuracy of drawing an option; None where there is nothing to choose."""
    sizes = [len(row["log_probs"]) for row in rows if not row.get("skipped")]
    return float(np.mean([1 / size for size in sizes])) if sizes and max(sizes) > 1 else None


def _gold_bits(row: Row) -> float:
    """Bits per byte of the right option."""
    bits: float = -row["log_probs"][row["gold"]] / math.log(2) / row["bytes"][row["gold"]]
    return bits


def _softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    exponentials = np.exp(scores - scores.max())
    return exponentials / exponentials.sum()


def accuracy_by_domain(rows: Sequence[Row]) -> dict[str, Any]:
    """Accuracy by bytes over all rows, and for each domain."""
    groups = {"all": list(rows)} | by_domain(rows)
    figures = {name: ranked_figures(found, "bytes").get("accuracy") for name, found in groups.items()}
    return {name: asdict(value) for name, value in figures.items() if value is not None}
