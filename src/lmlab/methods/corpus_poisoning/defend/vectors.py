"""Detectors that look at vectors: hubness and lengths.

Shapes: N passages, s sentinels, H width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.defend.detector import DetectorContext, Passages, Scores

_DEPTH = 10  # results that a reader is usually given: what reaches them for many questions is a hub
_MOST_EXCERPTS, _EXCERPT_WORDS = 1500, 9  # each is compared with every passage; a question has about nine words


class Hubness:
    """How many sentinel questions a passage would be among the first k of (`N_k`), and its mean similarity with them
    as what parts equal counts (Radovanovic et al. 2010). A universal passage is near to many unrelated questions; a
    clean one is not.
    """

    def __init__(self, context: DetectorContext, by_mean: bool = False) -> None:
        if context.sentinel_vectors is None:
            raise UserError("The detector hubness needs sentinel questions.", "Give --sentinels.")
        self._sentinels = np.ascontiguousarray(context.sentinel_vectors, np.float32)
        self._index, self._by_mean = context.index, by_mean
        self._tau: Any = None

    def fit(self, clean: Passages) -> None:
        """Learn what a passage must pass for each sentinel: the score of its k-th best clean document."""
        if self._index is None:
            raise UserError("The detector hubness is fitted on a corpus.", "Give --data.")
        if len(self._index) < _DEPTH:
            raise UserError(f"Hubness needs {_DEPTH} clean documents; there are {len(self._index)}.")
        self._tau = self._index.topk(self._sentinels, _DEPTH).scores_QK[:, -1].copy()

    def score(self, passages: Passages) -> Scores:
        """`N_k` and the mean similarity, which is below 1 for unit vectors."""
        similar = passages.vectors @ self._sentinels.T
        mean = similar.mean(1).astype(np.float64)
        # a document of the corpus is itself the k-th best of some: counted, as a new one in its place would be above it
        return mean if self._by_mean else (similar >= self._tau - 1e-6).sum(1) + np.tanh(mean)

    def state(self) -> dict[str, Any]:
        """Sentinels and thresholds."""
        return {"sentinels": self._sentinels, "tau": self._tau}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._sentinels, self._tau = state["sentinels"], state["tau"]


class MeanSimilarity(Hubness):
    """The mean similarity with sentinel questions alone: what the attack by centroids raises."""

    def __init__(self, context: DetectorContext) -> None:
        super().__init__(context, by_mean=True)

    def fit(self, clean: Passages) -> None:
        """Nothing is to be learned."""
        self._tau = np.zeros(len(self._sentinels), np.float32)


class Excerpts:
    """The mean similarity with short excerpts of the clean documents themselves. A passage that is near to many
    questions about a collection is near to many of its excerpts, and of those a defender has enough: no questions are
    needed, and none that differ from what will be asked.
    """

    def __init__(self, context: DetectorContext) -> None:
        self._encoder = context.encoder
        self._excerpts: Any = None

    def fit(self, clean: Passages) -> None:
        """Draw excerpts of fitting documents, at most one of each, and encode them as questions are."""
        generator = np.random.default_rng(0)
        picked = [clean.texts[row] for row in generator.permutation(len(clean))[:_MOST_EXCERPTS]]
        drawn = [_excerpt(text, generator) for text in picked if text.strip()]
        if not drawn:
            raise UserError("The detector excerpts is fitted on documents with text.")
        self._excerpts = self._encoder.encode_text(drawn, "query")

    def score(self, passages: Passages) -> Scores:
        """The mean similarity."""
        found: Scores = (passages.vectors @ self._excerpts.T).mean(1).astype(np.float64)
        return found

    def state(self) -> dict[str, Any]:
        """Vectors of excerpts."""
        return {"excerpts": self._excerpts}

    def restore(self, state: dict[str, Any]) -> None:
        """Take them up."""
        self._excerpts = state["excerpts"]


def _excerpt(text: str, generator: np.random.Generator) -> str:
    """Some words in a row, lower-cased, about as many as a question has."""
    words = text.lower().split()
    start = int(generator.integers(max(1, len(words) - _EXCERPT_WORDS + 1)))
    return " ".join(words[start : start + _EXCERPT_WORDS])


class Norm:
    """The length of a vector before it gets length 1, for its number of tokens: of retrievers by dot product, crafted
    passages have long ones. Short texts have longer vectors under mean pooling, so lengths are compared at equal
    numbers of tokens.
    """

    def __init__(self, context: DetectorContext) -> None:
        self._encoder = context.encoder
        self._fitted = np.zeros(4)

    def fit(self, clean: Passages) -> None:
        """Regress lengths on the logarithm of the number of tokens, and its square."""
        norms, design = self._measure(clean)
        weights, *_ = np.linalg.lstsq(design, norms, rcond=None)
        spread = float((norms - design @ weights).std()) or 1.0
        self._fitted = np.array([*weights, spread])

    def score(self, passages: Passages) -> Scores:
        """Deviations above what is usual, in standard deviations."""
        norms, design = self._measure(passages)
        found: Scores = (norms - design @ self._fitted[:3]) / self._fitted[3]
        return found

    def _measure(self, passages: Passages) -> tuple[Scores, Scores]:
        texts = list(passages.texts)
        norms = np.linalg.norm(self._encoder.raw(texts), axis=1).astype(np.float64)
        counts = np.log([max(1, len(ids)) for ids in self._encoder.tokenize(texts)])
        return norms, np.stack([np.ones_like(counts), counts, counts**2], 1)

    def state(self) -> dict[str, Any]:
        """The regression."""
        return {"fitted": self._fitted}

    def restore(self, state: dict[str, Any]) -> None:
        """Take it up."""
        self._fitted = state["fitted"]
