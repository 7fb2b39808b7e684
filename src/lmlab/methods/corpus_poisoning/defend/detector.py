"""What every detector is: fitted on clean documents, it gives each passage a score, higher meaning more suspicious.

Detectors are found by entry point (group `lmlab.detectors`, or the manifest of a method): a name leads to a function
that makes one from a `DetectorContext`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lmlab import plugins
from lmlab.errors import UserError
from lmlab.retrieval import AnyEncoder, ExactIndex

Scores = NDArray[np.float64]

COSTLY = frozenset({"perplexity", "gmtp", "mask_collapse", "norm"})
"""Detectors that run a network again for each passage: they are measured on a sample of clean documents."""


@dataclass
class DetectorContext:
    """What detectors may use.

    Attributes:
        encoder: the retriever that is defended.
        index: its clean corpus; needed to fit, not to score.
        sentinels: questions of one's own, disjoint from the attacker's.
        sentinel_vectors: vectors of some of them.
        language_model: where a causal language model is; for `perplexity`.
        masked_model: where a masked language model of `transformers` is; for `gmtp`.
    """

    encoder: AnyEncoder
    index: ExactIndex | None = None
    sentinels: Sequence[str] = ()
    sentinel_vectors: NDArray[np.float32] | None = None
    language_model: str | None = None
    masked_model: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Passages:
    """Texts with their vectors, so that no detector encodes them again."""

    texts: Sequence[str]
    vectors: NDArray[np.float32]

    @classmethod
    def of(cls, texts: Sequence[str], encoder: AnyEncoder) -> Passages:
        """Encode texts."""
        return cls(texts, encoder.encode_text(list(texts)))

    def __len__(self) -> int:
        return len(self.texts)

    def part(self, rows: Sequence[int]) -> Passages:
        """Some of them."""
        return Passages([self.texts[row] for row in rows], self.vectors[list(rows)])


class Detector(Protocol):
    """Tells crafted passages."""

    def fit(self, clean: Passages) -> None:
        """Learn what clean passages are like."""
        ...

    def score(self, passages: Passages) -> Scores:
        """How suspicious each is, [N]."""
        ...

    def state(self) -> dict[str, Any]:
        """What was learned, as JSON and arrays."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what was learned."""
        ...


def make_detector(name: str, context: DetectorContext) -> Detector:
    """The detector of a name.

    Raises:
        UserError: there is none, with the nearest name; or it lacks something.
    """
    protocol, has = "lmlab.methods.corpus_poisoning.Detector", ("fit", "score", "state", "restore")
    made: Detector = plugins.make("detectors", name, "detector", "--detector", protocol, has, context)
    return made


@dataclass(frozen=True)
class Threshold:
    """Above which score a passage is refused.

    Attributes:
        rate: the share of clean passages that are to be refused.
    """

    value: float
    rate: float

    @classmethod
    def at(cls, clean: Scores, rate: float) -> Threshold:
        """The smallest value that at most a share `rate` of clean scores is above.

        Raises:
            UserError: there are none.
        """
        if not len(clean):
            raise UserError("A threshold cannot be set on 0 clean passages.", "Give more of them.")
        order = np.sort(clean)[::-1]
        return cls(float(order[min(len(order) - 1, int(np.floor(rate * len(order))))]), rate)


def average_precision(clean: Scores, crafted: Scores) -> float:
    """Mean precision over the crafted passages, from the most suspicious down; clean ones first among equals."""
    values = np.concatenate([clean, crafted])
    crafted_here = np.concatenate([np.zeros(len(clean), bool), np.ones(len(crafted), bool)])
    hit = crafted_here[np.lexsort((crafted_here, -values))]
    return float((np.cumsum(hit)[hit] / (np.flatnonzero(hit) + 1)).mean())
