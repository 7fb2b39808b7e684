"""A model of lmlab in this process, by exact log-probabilities."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lmlab.data import encode_for_answer
from lmlab.errors import UserError
from lmlab.evals import ModelScorer, Window
from lmlab.judging.judge import Question, Verdict
from lmlab.judging.judges.find import JudgeOptions
from lmlab.judging.votes import MISSING
from lmlab.runs import Model


class LocalJudge:
    """A model of lmlab in this process, by the exact log-probabilities of both labels.

    Arguments:
        place: of a model with a chat template (`Model.find`).
    """

    generations = 1

    def __init__(self, place: str | Path, precision: str = "auto") -> None:
        found = Model.find(place)
        self.tokenizer = found.tokenizer()
        self.scorer = ModelScorer(found.load(), precision)
        self.name = f"{Path(place).name}, exact log-probabilities"

    def compare(self, questions: Sequence[Question], take: Callable[[int, Verdict], None]) -> None:
        """Score both labels after each question."""
        windows, places = [], []
        for number, question in enumerate(questions):
            messages = list(question.criterion.pair_request(question.text_a, question.text_b).messages)
            prompt = encode_for_answer(self.tokenizer, messages)
            labels = [self.tokenizer.encode(label) for label in question.criterion.wording.labels]
            if len(prompt) + max(map(len, labels)) - 1 > self.scorer.max_seq_len:
                take(number, Verdict(MISSING, MISSING, "context_length_exceeded"))
                continue
            for side, ids in enumerate(labels):
                windows.append(Window([*prompt, *ids], len(ids)))
                places.append((number, side))
        masses: dict[int, list[float | None]] = {number: [None, None] for number, _ in places}
        for window, score in self.scorer.score(windows):
            number, side = places[window]
            masses[number][side] = score.log_prob
            a, b = masses[number]
            if a is not None and b is not None:
                top = max(a, b)
                take(number, Verdict(float(np.exp(a - top)), float(np.exp(b - top))))


def make(text: str, options: JudgeOptions) -> LocalJudge:
    """`exact:DIRECTORY`."""
    directory = text.partition(":")[2]
    if not directory:
        raise UserError(f"The judge '{text}' names no model.", "Write exact:DIRECTORY.")
    return LocalJudge(Path(directory))
