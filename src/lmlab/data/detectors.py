"""Detectors by name: who tells texts that do not belong into a corpus, such as passages crafted to be retrieved.

Any installed package adds one by an entry point in the group `lmlab.detectors`, a method by its manifest:

    [project.entry-points."lmlab.detectors"]
    mine = "mypackage.detector:make"

`make(text)` gets the whole text that names the detector, such as `perplexity:models/smollm2`, and returns a `Detector`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lmlab import plugins
from lmlab.errors import UserError


class Detector(Protocol):
    """Who scores texts; what is suspicious is decided by a threshold (`clean_threshold`).

    Attributes:
        name: for the report.
    """

    name: str

    def fit(self, texts: Sequence[str]) -> None:
        """Learn what clean texts of the corpus look like; a detector that needs none does nothing."""

    def scores(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """A score for each text, [texts]: the higher, the more suspicious."""


class DetectorMaker(Protocol):
    """What an entry point names."""

    def __call__(self, text: str) -> Detector:
        """The detector of this name.

        Raises:
            UserError: the text lacks something.
        """


def make_detector(text: str) -> Detector:
    """The detector that a text names: an entry point, and what it needs after a colon.

    Raises:
        UserError: no such detector, or what is registered is none.
    """
    kind = text.partition(":")[0]
    has = ("name", "fit", "scores")
    made: Detector = plugins.make("detectors", kind, "detector", f"'{text}'", "lmlab.data.Detector", has, text)
    return made


def clean_threshold(scores: NDArray[np.float64], false_positive_rate: float) -> float:
    """The lowest score above which at most this share of clean texts lies.

    Arguments:
        scores: [texts], of clean texts alone: fitted on others too, a threshold promises what it does not keep.

    Raises:
        UserError: there is no score, one is not a number, or the rate is no share.
    """
    if not 0 <= false_positive_rate < 1:
        raise UserError(f"The false-positive rate {false_positive_rate} is not at least 0 and below 1.")
    if not len(scores) or np.isnan(scores).any():
        raise UserError("A threshold needs scores of clean texts, each a number.")
    ordered = np.sort(np.asarray(scores, float))
    return float(ordered[len(ordered) - 1 - int(false_positive_rate * len(ordered))])
