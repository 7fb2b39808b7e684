"""What scores key points: the protocol, and the judge that makes grades of scores."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from lmlab.endpoints import Estimate
from lmlab.files import sha256_json
from lmlab.judging.answers.grades import AnswerGrades, Take
from lmlab.judging.answers.item import AnswerItem
from lmlab.judging.measures.calibration import Calibration
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.parser import HALF_POINTS

_SEVERAL = 3  # answers to one question from which a spread can be told


@dataclass(frozen=True)
class Range:
    """Between which scores an answer goes from nothing to all: how figures of different kinds are put on one scale."""

    low: float
    high: float

    def share(self, score: float) -> float:
        """0 at the low end and 1 at the high one; beyond them too, so that answers can still be ordered."""
        return (score - self.low) / (self.high - self.low)


class PointScorer(Protocol):
    """What says how far an answer makes each of its key points.

    Attributes:
        name: of its figure.
        range: where its figure says nothing and all.
        fingerprint: all that decides on a figure: models, prompts, rules.
    """

    name: str
    range: Range
    fingerprint: Mapping[str, Any]

    def score(self, items: Sequence[AnswerItem]) -> list[list[float]]:
        """A figure for each key point of each item, the higher the better."""


class PointJudge:
    """A judge by one or several figures of key points: the grade of the headline alone.

    A grade is the mean over key points (by weight) of the mean share of the figures, on the scale. It orders answers;
    how high it is means little before it is calibrated with grades of people (`calibration`).

    Arguments:
        scorers: the figures.
        calibration: from the share to the grade that people are expected to give, on the scale.
    """

    criteria = ("correctness",)
    headline = "correctness"

    def __init__(
        self, scorers: Sequence[PointScorer], scale: Scale = HALF_POINTS, calibration: Calibration | None = None
    ) -> None:
        self.scorers, self.scale, self.calibration = list(scorers), scale, calibration
        self.name = "+".join(each.name for each in self.scorers)

    @property
    def prompt_hash(self) -> str:
        """Of the models, the prompts and the rules."""
        parts = [[each.name, dict(each.fingerprint), each.range.low, each.range.high] for each in self.scorers]
        learned = None if self.calibration is None else [self.calibration.kind, self.calibration.x, self.calibration.y]
        return sha256_json([parts, learned, self.scale.minimum, self.scale.maximum])

    def judge(self, items: Sequence[AnswerItem], take: Take) -> None:
        """Score all items, then grade each."""
        known = [number for number, item in enumerate(items) if item.key_points]
        started = time.perf_counter()
        figures = [scorer.score([items[number] for number in known]) for scorer in self.scorers if known]
        seconds = (time.perf_counter() - started) / max(1, len(known))  # they are scored together
        for number, item in enumerate(items):
            if not item.key_points:
                take(number, AnswerGrades({self.headline: None}, "no_key_points", ("no_key_points",)))
        for place, number in enumerate(known):
            grades = self._grades(items[number], [each[place] for each in figures])
            take(number, replace(grades, seconds=seconds))

    def estimate(self, items: Sequence[AnswerItem]) -> Estimate | None:
        """Nobody is asked."""
        return None

    def _grades(self, item: AnswerItem, figures: Sequence[Sequence[float]]) -> AnswerGrades:
        names = [each.name for each in self.scorers]
        values_FP = np.array(figures, float)
        if not np.isfinite(values_FP).all():
            return AnswerGrades({self.headline: None}, "context_length", ("context_length",))
        shares_P = np.array(
            [[scorer.range.share(value) for value in row] for scorer, row in zip(self.scorers, values_FP, strict=True)]
        ).mean(0)
        weights = np.array(item.weights or [1.0] * len(item.key_points), float)
        whole = weights[weights > 0].sum()
        if not whole:
            return AnswerGrades({self.headline: None}, "no_key_points", ("no_key_points",))
        share = float((weights * np.clip(shares_P, 0, 1)).sum() / whole)
        grade = self.scale.minimum + min(1.0, max(0.0, share)) * (self.scale.maximum - self.scale.minimum)
        if self.calibration is not None:
            grade = float(np.clip(self.calibration([grade])[0], self.scale.minimum, self.scale.maximum))
        details = tuple(
            {"key_point": point, **dict(zip(names, values_FP[:, place].tolist(), strict=True))}
            for place, point in enumerate(item.key_points)
        )
        scores = dict(zip(names, values_FP.mean(1).tolist(), strict=True))
        scores["order"] = float((weights * shares_P).sum() / whole)
        return AnswerGrades({self.headline: grade}, scores=scores, details=details)


def comparable_scores(judge: PointJudge, grades: Sequence[AnswerGrades]) -> list[float]:
    """Figures by which several answers to one question are ordered, the higher the better.

    From three answers on, each figure of each key point is first standardized over the answers, which takes out how
    likely or how common the words of a point are; of two answers the figures are put on their ranges.
    """
    names = [each.name for each in judge.scorers]
    if any(not each.details for each in grades):
        return [each.scores.get("order", math.nan) for each in grades]
    table_APF = np.array([[[point[name] for name in names] for point in each.details] for each in grades], float)
    if len(grades) < _SEVERAL:
        return [each.scores["order"] for each in grades]
    spread = table_APF.std(0, ddof=1)
    centered = table_APF - table_APF.mean(0)
    standard = np.divide(centered, spread, out=np.zeros_like(centered), where=spread > 1e-12)
    found: list[float] = standard.mean((1, 2)).tolist()
    return found
