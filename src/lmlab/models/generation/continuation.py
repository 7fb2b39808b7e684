"""One row of a batch: what was added to a prompt so far, and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from lmlab.errors import LmlabError
from lmlab.models.generation.config import DecodingConfig, Guide

Decode = Callable[[Sequence[int]], str]


FinishReason = Literal["stop", "length", "repetition"]


TopTokens = list[tuple[int, float]]


_LONGEST_BLOCK = 64  # tokens: longer loops than a paragraph are text


@dataclass(frozen=True)
class PromptScores:
    """What the model says of a prompt.

    Attributes:
        log_probs: natural-log probability of each token after those before it; None for the first, which follows
            nothing.
        top: the likeliest tokens at each place with their log-probabilities, best first; none for the first.
    """

    log_probs: list[float | None]
    top: list[TopTokens]


@dataclass(eq=False)
class Continuation:
    """One row: what was added to a prompt so far.

    Attributes:
        sample: which of the prompt's continuations it is.
        ids: the new tokens, without an end token.
        log_probs: natural-log probability of each under the model itself, that is at temperature 1, unfiltered and
            without bias.
        top: for each new token the likeliest ones at its place, best first; none unless they were asked for.
        finish_reason: None as long as it goes on.
        failure: why it cannot go on.
    """

    prompt: Sequence[int]
    config: DecodingConfig
    sample: int
    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    top: list[TopTokens] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    failure: LmlabError | None = None
    prompt_scores: PromptScores | None = None
    last: int = -1
    dropped: bool = False
    _draws: np.random.Generator | None = None
    guide: Guide | None = None

    def __post_init__(self) -> None:
        if self.config.guide is not None:
            self.guide = self.config.guide()
        seed = self.config.seed
        if self.config.temperature > 0:
            self._draws = np.random.default_rng([abs(seed), int(seed < 0), self.sample, *self.prompt])

    @property
    def done(self) -> bool:
        """Whether it will not grow any more."""
        return self.dropped or self.finish_reason is not None or self.failure is not None

    @property
    def remaining(self) -> int:
        """How many tokens may still come."""
        return 0 if self.done else self.config.max_new_tokens - len(self.ids)

    def uniform(self) -> float:
        """The number in [0, 1) behind the next draw."""
        return 0.0 if self._draws is None else self._draws.random()

    def append(self, token: int, log_prob: float, top: TopTokens, decode: Decode | None) -> None:
        """Take a token, and see whether the continuation ends with it."""
        config, self.last = self.config, token
        if token in config.eos_ids:
            self.finish_reason = "stop"
            return
        self.ids.append(token)
        self.log_probs.append(log_prob)
        if config.top_log_probs:
            self.top.append(top)
        if self.guide is not None:
            self.guide.take(token)
            if self.guide.done:
                self.finish_reason = "length" if self.guide.failed else "stop"
                return
        if config.stop and decode is not None:
            tail = self.ids[
                -max(len(stop.encode()) for stop in config.stop) - 8 :
            ]  # a token holds at least a byte, a special one none
            text = decode(tail)
            if any(stop in text for stop in config.stop):
                self.finish_reason = "stop"
                return
        if config.max_repetitions is not None and _repeats(self.ids, config.max_repetitions):
            self.finish_reason = "repetition"
        elif len(self.ids) == config.max_new_tokens:
            self.finish_reason = "length"


def _repeats(ids: list[int], times: int) -> bool:
    """Whether the tail is a block of at most 64 tokens, `times` times."""
    sizes = range(1, min(_LONGEST_BLOCK, len(ids) // times) + 1)
    return any(ids[-size * times : -size] == ids[-size * (times - 1) :] for size in sizes)
