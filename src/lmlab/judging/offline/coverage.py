"""Key-point coverage: how close the nearest sentence of an answer comes to each key point, by a small encoder.

It finds what is there and what is missing. It is blind to contradiction: "is" and "is not" are close to each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.offline.scorers import Range
from lmlab.judging.offline.sentences import numbers, sentences
from lmlab.retrieval import AnyEncoder, load_encoder


class Coverage:
    """For each key point the largest cosine with a sentence of the answer, or with all of it; where the point has
    numbers, times (1 + the share of them that the answer has) / 2.

    Arguments:
        encoder: of texts.
    """

    name = "coverage"
    range = Range(0.2, 0.8)

    def __init__(self, encoder: AnyEncoder) -> None:
        self.encoder = encoder
        self.fingerprint: Mapping[str, Any] = {"encoder": encoder.fingerprint, "version": 1}

    @classmethod
    def load(cls, place: str = "minilm") -> Coverage:
        """By the encoder at a place, or `minilm` of an installed package.

        Raises:
            UserError: there is none.
        """
        return cls(load_encoder(place))

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """From about -0.1 to 1 a key point."""
        parts = [[*sentences(item.answer), item.answer] for item in items]
        texts = list(
            dict.fromkeys(text for item, part in zip(items, parts, strict=True) for text in (*part, *item.key_points))
        )
        vectors = np.asarray(self.encoder.encode_text(texts), float)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        rows = {text: number for number, text in enumerate(texts)}
        found = []
        for item, part in zip(items, parts, strict=True):
            said = vectors[[rows[text] for text in part]]
            has = set(numbers(item.answer))
            closest = [float((said @ vectors[rows[point]]).max()) for point in item.key_points]
            found.append(
                [each * _share_of_numbers(point, has) for each, point in zip(closest, item.key_points, strict=True)]
            )
        return found


def _share_of_numbers(point: str, has: set[float]) -> float:
    wanted = set(numbers(point))
    return 0.5 + 0.5 * len(wanted & has) / len(wanted) if wanted else 1.0
