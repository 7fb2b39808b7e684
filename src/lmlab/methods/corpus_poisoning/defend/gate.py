"""The gate before a corpus: several detectors with one threshold, in milliseconds a passage.

Each detector's score becomes the share of clean passages below it; a passage is as suspicious as its most suspicious
detector finds it. Shares and threshold are those of other clean passages than the ones that detectors are fitted on:
what a detector has seen looks cleaner to it than what will come, and to some detectors much more than to others.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.config import differences
from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, read_mapping, write_json
from lmlab.methods.corpus_poisoning.defend.detector import (
    Detector,
    DetectorContext,
    Passages,
    Scores,
    Threshold,
    make_detector,
)
from lmlab.retrieval import AnyEncoder
from lmlab.words import counted

_VERSION = 2  # of what is stored: before, shares were of the passages that detectors are fitted on
_FITTED = "fitted"  # beside the arrays of detectors, whose names hold a slash
_TAIL = 1e-3  # beyond the most suspicious clean passage, distances still count a little
_ROUNDING = 1e-5  # of a share: a text has other last digits alone than in a batch, and one lies at the threshold


@dataclass(frozen=True)
class Verdict:
    """What the gate says of a passage.

    Attributes:
        suspicion: share of clean passages that its most suspicious detector finds less suspicious.
        reasons: detectors whose own score is above the gate's threshold.
    """

    admit: bool
    suspicion: float
    scores: dict[str, float]
    reasons: tuple[str, ...]


class AdmissionGate:
    """Admits passages, or says why not.

    Attributes:
        rate: the share of clean passages that it refuses.
        fitted: digests of the passages that its detectors were fitted on, sorted; None where it does not say.
    """

    def __init__(self, encoder: AnyEncoder, detectors: dict[str, Detector]) -> None:
        if not detectors:
            raise UserError("A gate needs at least one detector.")
        self.encoder, self.detectors = encoder, detectors
        self.rate = 0.0
        self.fitted: NDArray[np.uint64] | None = None
        self._clean: dict[str, Scores] = {}
        self.threshold = Threshold(np.inf, 0.0)

    @classmethod
    def fit(
        cls,
        names: Sequence[str],
        context: DetectorContext,
        fitting: Passages,
        calibration: Passages,
        rate: float = 0.01,
    ) -> AdmissionGate:
        """Fit detectors on clean passages, and shares and the threshold on others.

        Raises:
            UserError: too few passages, or a rate that so few cannot tell.
        """
        require_clean(len(calibration) if len(fitting) else 0, rate)
        gate = cls(context.encoder, {name: make_detector(name, context) for name in dict.fromkeys(names)})
        for detector in gate.detectors.values():
            detector.fit(fitting)
        gate.calibrate(gate.scores(calibration), rate)
        gate.fitted = np.unique(_digests(fitting.texts))
        return gate

    def calibrate(self, scores: dict[str, Scores], rate: float) -> None:
        """Take shares and the threshold from each detector's scores of clean passages that it was not fitted on.

        Raises:
            UserError: they are too few to tell the rate.
        """
        require_clean(len(next(iter(scores.values()))), rate)
        self._clean = {name: np.sort(values) for name, values in scores.items()}
        self.threshold = Threshold(Threshold.at(self.suspicion_of(scores), rate).value + _ROUNDING, rate)
        self.rate = rate

    def unseen(self, passages: Passages) -> list[int]:
        """The numbers of passages that its detectors were not fitted on: those alone tell how well it parts.

        Raises:
            UserError: the gate does not say what it was fitted on, or it was fitted on all of them.
        """
        if self.fitted is None:
            raise UserError(
                "The gate does not say which documents it was fitted on: how well it parts cannot be told on those.",
                "Fit it again: lmlab poison detect fit",
            )
        found: list[int] = np.flatnonzero(~np.isin(_digests(passages.texts), self.fitted)).tolist()
        if not found:
            raise UserError(
                f"The gate was fitted on all of {counted(len(passages), 'documents')}, which look clean to it for that"
                " reason.",
                "Give --data with others.",
            )
        return found

    def scores(self, passages: Passages) -> dict[str, Scores]:
        """Each detector's scores."""
        return {name: detector.score(passages) for name, detector in self.detectors.items()}

    def excess(self, passages: Passages, names: Sequence[str] | None = None) -> Scores:
        """How far scores of some detectors, by default all, are above what the gate's rate of clean passages exceeds,
        in standard deviations of clean scores and summed, [N]; 0 for what none of them would refuse.
        """
        total = np.zeros(len(passages))
        for name in self.detectors if names is None else names:
            clean = self._clean[name]
            border = float(np.quantile(clean, max(0.0, 1 - 2 * self.rate)))  # stay a little below what is refused
            scores = self.detectors[name].score(passages)
            total += np.maximum(scores - border, 0) / (float(clean.std()) or 1.0)
        return total

    def suspicion(self, passages: Passages) -> Scores:
        """How suspicious each passage is, [N]."""
        return self.suspicion_of(self.scores(passages))

    def suspicion_of(self, scores: dict[str, Scores]) -> Scores:
        """The same of what its detectors have scored, [N]."""
        return np.max(np.stack(list(self._shares(scores).values())), 0)

    def _shares(self, scores: dict[str, Scores]) -> dict[str, Scores]:
        return {name: _share_below(self._clean[name], values) for name, values in scores.items()}

    def check_all(self, passages: Passages) -> list[Verdict]:
        """The verdict on each of many."""
        scores = self.scores(passages)
        worst, each = self.suspicion_of(scores), self._shares(scores)
        return [
            Verdict(
                bool(worst[row] <= self.threshold.value),
                float(worst[row]),
                {name: float(values[row]) for name, values in scores.items()},
                tuple(name for name, values in each.items() if values[row] > self.threshold.value),
            )
            for row in range(len(passages))
        ]

    def check(self, passage: str, vector: NDArray[np.float32] | None = None) -> Verdict:
        """The verdict on one passage.

        Arguments:
            vector: of the passage, if it is encoded already.
        """
        if vector is None:
            return self.check_all(Passages.of([passage], self.encoder))[0]
        return self.check_all(Passages([passage], np.asarray(vector, np.float32)[None]))[0]

    def save(self, directory: str | Path) -> None:
        """Write it: JSON and arrays, no pickle."""
        directory = Path(directory)
        arrays: dict[str, NDArray[Any]] = {} if self.fitted is None else {_FITTED: self.fitted}
        states: dict[str, dict[str, Any]] = {}
        for name, detector in self.detectors.items():
            states[name] = {}
            arrays[f"{name}/clean"] = self._clean[name]
            for key, value in detector.state().items():
                if isinstance(value, np.ndarray):
                    arrays[f"{name}/{key}"] = value
                else:
                    states[name][key] = value
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        with atomic_file(directory / "gate.npz") as file:
            file.write(buffer.getvalue())
        about = {
            "version": _VERSION,
            "encoder": self.encoder.fingerprint,
            "threshold": self.threshold.value,
            "rate": self.rate,
            "detectors": states,
        }
        write_json(directory / "gate.json", about)

    @classmethod
    @reads("a gate")
    def load(cls, directory: str | Path, context: DetectorContext) -> AdmissionGate:
        """Read it.

        Raises:
            UserError: it is for another encoder, or was written by another version of this program.
        """
        directory = Path(directory)
        about = read_mapping(directory / "gate.json")
        if about.get("version", 1) != _VERSION:
            age = "an earlier" if about.get("version", 1) == 1 else "another"
            raise UserError(
                f"The gate '{directory}' was written by {age} version of this program, and its figures mean other"
                " things.",
                "Fit it again: lmlab poison detect fit",
            )
        if told := differences(about["encoder"], context.encoder.fingerprint):
            raise UserError(
                f"The gate '{directory}' is for another encoder: {told}.",
                "Name that encoder, or fit the gate again: lmlab poison detect fit",
            )
        with np.load(directory / "gate.npz", allow_pickle=False) as file:
            arrays = {key: file[key] for key in file.files}
        fitted = arrays.pop(_FITTED, None)
        detectors: dict[str, Detector] = {}
        clean = {}
        for name, state in about["detectors"].items():
            own = {key.partition("/")[2]: value for key, value in arrays.items() if key.partition("/")[0] == name}
            clean[name] = own.pop("clean")
            if "sentinels" in own:
                context.sentinel_vectors = own["sentinels"]
            context.sentinels = context.sentinels or ("",)
            if context.language_model is None and "language_model" in state:
                context.language_model = str(state["language_model"])
            if context.masked_model is None and "masked_model" in state:
                context.masked_model = str(state["masked_model"])
            detectors[name] = make_detector(name, context)
            detectors[name].restore({**state, **own})
        gate = cls(context.encoder, detectors)
        gate._clean, gate.rate, gate.fitted = clean, float(about["rate"]), fitted
        gate.threshold = Threshold(float(about["threshold"]), gate.rate)
        return gate


def _digests(texts: Sequence[str]) -> NDArray[np.uint64]:
    """Eight bytes of a hash of each text: enough to know it again among millions."""
    found = [hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(found), np.uint64)


def require_clean(count: int, rate: float, of: int = 1) -> None:
    """Refuse to set a threshold on so few clean passages that the share to be refused is less than one of them.

    Arguments:
        of: each of how many documents of a collection is kept for the threshold.

    Raises:
        UserError: they are too few, or the share is none.
    """
    if not 0 < rate < 1:
        raise UserError(
            f"The rate {rate} of refused clean passages is not between 0 and 1.", "Give a share, such as 0.005."
        )
    if count * rate < 1:
        needed = of * int(np.ceil(1 / rate))
        documents = f"a collection of {needed:,} documents, 1 of {of} for this" if of > 1 else f"{needed:,} of them"
        passages = counted(count, "clean passages")
        raise UserError(
            f"{passages} cannot tell a threshold at which {100 * rate:g} % are refused.",
            f"Give at least {documents}, or a larger --rate.",
        )


def _share_below(clean: Scores, values: Scores) -> Scores:
    """The share of clean scores below each value, between two of them in proportion: ranks alone would make equals of
    all that lie in a wide gap, and a threshold among equals refuses none of them. Beyond all of them it is a little
    more with the distance.
    """
    points, counts = np.unique(clean, return_counts=True)
    share = np.interp(values, points, (np.cumsum(counts) - counts) / len(clean))
    spread = float(clean[-1] - clean[0]) or 1.0
    return share + np.where(values > clean[-1], _TAIL * (1 - np.exp(-(values - clean[-1]) / spread)), 0.0)


def to_json(id: str, verdict: Verdict) -> str:
    """A line of verdicts."""
    row = {"_id": id, "admit": verdict.admit, "suspicion": verdict.suspicion, "reasons": list(verdict.reasons)}
    return json.dumps({**row, "scores": verdict.scores}, ensure_ascii=False)
