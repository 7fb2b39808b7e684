"""An attacker who knows a gate, or has fitted one of their own: passages pay for what its detectors would see.

A defense that was only measured against an attacker who does not know it was not measured.

Shapes: B passages, H width of a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.files import content_digest
from lmlab.methods.corpus_poisoning.defend.detector import COSTLY, DetectorContext, Passages, Scores
from lmlab.methods.corpus_poisoning.defend.gate import AdmissionGate
from lmlab.retrieval import AnyEncoder

_LOOKED_AT = 8  # candidates that detectors with a network of their own are asked about; the others are not taken


class GateKnown:
    """The price of what a gate sees, for `Problem.penalty`.

    Attributes:
        weight: of the logarithm of a passage's excess, in units of the objective.
    """

    def __init__(self, gate: AdmissionGate, spell: Callable[[list[int]], str], weight: float) -> None:
        self.gate, self.weight, self._spell = gate, weight, spell
        self._cheap = [name for name in gate.detectors if name not in COSTLY]
        self._costly = [name for name in gate.detectors if name in COSTLY]

    def __call__(self, ids: Sequence[NDArray[np.int64]], vectors_BH: NDArray[np.float32], values_B: Scores) -> Scores:
        """What is subtracted from each passage's value, [B]."""
        texts = [self._spell(each.tolist()) for each in ids]
        passages = Passages(texts, vectors_BH)
        price = self._price(passages, self._cheap)
        if not self._costly:
            return price
        order = np.argsort(-(values_B - price), kind="stable")
        seen, others = order[:_LOOKED_AT], order[_LOOKED_AT:]
        price[seen] += self._price(passages.part(seen.tolist()), self._costly)
        if len(others):
            least = float((values_B[seen] - price[seen]).min())
            price[others] = np.maximum(price[others], values_B[others] - least)
        return price

    def _price(self, passages: Passages, names: list[str]) -> Scores:
        if not names:
            return np.zeros(len(passages))
        found: Scores = self.weight * np.log1p(self.gate.excess(passages, names))
        return found


def open_known_gate(place: Path, encoder: AnyEncoder, language_model: str | None = None) -> AdmissionGate:
    """The gate that an attacker knows.

    Arguments:
        language_model: where that of `perplexity` is, if it is not where the gate was fitted.

    Raises:
        UserError: there is none, or it compares new passages with one another, which one at a time cannot be known.
    """
    if not (place / "gate.json").exists():
        raise UserError(f"'{place}' holds no gate.", "Run: lmlab poison detect fit")
    gate = AdmissionGate.load(place, DetectorContext(encoder, language_model=language_model))
    if "near_duplicate" in gate.detectors:
        raise UserError(
            f"The gate '{place}' has the detector near_duplicate, which one passage at a time says nothing of.",
            "Fit one without it.",
        )
    return gate


def gate_digest(place: Path) -> list[str]:
    """Digests of a gate's files, for the run's id."""
    return [content_digest(place / name) for name in ("gate.json", "gate.npz") if (place / name).exists()]
