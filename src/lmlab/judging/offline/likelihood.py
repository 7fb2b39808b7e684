"""What a small language model thinks of key points after it has read an answer: how likely they have become, and
whether they or their contraries have become likelier.

At this size, models order better by likelihoods than by the opinions that they give when asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.data import Tokenizer
from lmlab.evals import ModelScorer, Scorer, Window
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.offline import negation
from lmlab.judging.offline.scorers import Range
from lmlab.models import weights_fingerprint
from lmlab.runs import Model


class LocalModel:
    """A language model with the log-probabilities that the figures need.

    Arguments:
        scorer: of windows.
        identity: stands for its weights.
    """

    def __init__(self, scorer: Scorer, tokenizer: Tokenizer, identity: str) -> None:
        self.scorer, self.tokenizer, self.identity = scorer, tokenizer, identity

    @classmethod
    def load(cls, place: str | Path) -> LocalModel:
        """The model at a place (`Model.find`).

        Raises:
            UserError: there is none.
        """
        found = Model.find(place)
        model = found.load()
        return cls(ModelScorer(model, "fp32"), found.tokenizer(), weights_fingerprint(model))

    def mean_log_probs(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The mean log-probability of a token of each continuation after its context; not-a-number where both together
        are longer than the model's window. Equal pairs are computed once.
        """
        different = list(dict.fromkeys(pairs))
        windows, places = [], []
        values = dict.fromkeys(different, float("nan"))
        for pair in different:
            context, continuation = (self.tokenizer.encode(text) for text in pair)
            if context and continuation and len(context) + len(continuation) - 1 <= self.scorer.max_seq_len:
                windows.append(Window([*context, *continuation], len(continuation)))
                places.append(pair)
        for number, score in self.scorer.score(windows):
            values[places[number]] = score.log_prob / windows[number].num_scored
        return [values[pair] for pair in pairs]


class Likelihood:
    """How much likelier a key point is after question and answer than after the question alone, in nats a token.

    Arguments:
        model: that reads.
    """

    name = "likelihood"
    range = Range(0.0, 1.5)

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self.fingerprint: Mapping[str, Any] = {"model": model.identity, "prompt": _question("Q", "A"), "version": 1}

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """About -0.5 to 3 a key point."""
        pairs = [
            (_question(item.question, answer), f" {point}")
            for item in items
            for point in item.key_points
            for answer in (item.answer, None)
        ]
        values = np.array(self.model.mean_log_probs(pairs)).reshape(-1, 2)
        return _by_item(items, (values[:, 0] - values[:, 1]).tolist())


class Contrast:
    """Whether an answer makes a key point likelier, or its contrary.

    With l(k | a) the mean log-probability of a token of k after the answer, k the key point and n a contrary by rules:
    [l(k | a) - l(n | a)] - [l(k) - l(n)], averaged over the contraries. It sees contradictions, to which similarity is
    blind. It orders answers to one question; as a fixed threshold it is weak.

    Arguments:
        model: that reads.
    """

    name = "contrast"
    range = Range(-0.1, 0.1)

    def __init__(self, model: LocalModel) -> None:
        self.model = model
        self.fingerprint: Mapping[str, Any] = {
            "model": model.identity,
            "prompt": _statement("A"),
            "rules": negation.VERSION,
            "version": 1,
        }

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """About -1 to 1 a key point."""
        statements = [
            (item.answer, (point, *negation.contraries(point))) for item in items for point in item.key_points
        ]
        pairs = [
            (_statement(said), f" {statement}")
            for answer, several in statements
            for said in (answer, "")
            for statement in several
        ]
        values = iter(self.model.mean_log_probs(pairs))
        gains = []
        for _, several in statements:
            after, alone = ([next(values) for _ in several] for _ in range(2))
            against = [(after[0] - after[n]) - (alone[0] - alone[n]) for n in range(1, len(several))]
            gains.append(sum(against) / len(against))
        return _by_item(items, gains)


def _question(question: str, answer: str | None) -> str:
    said = "" if answer is None else f"Answer: {answer}\n"
    return f"Question: {question}\n{said}In short:"


def _statement(answer: str) -> str:
    return f"Statement: {answer}\nThis means:"


def _by_item(items: Sequence[AnswerItem], values: Sequence[float]) -> list[list[float]]:
    found, place = [], 0
    for item in items:
        found.append(list(values[place : place + len(item.key_points)]))
        place += len(item.key_points)
    return found
