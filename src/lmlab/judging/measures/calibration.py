"""Bringing a judge's grades to people's scale, learned from items that both have graded.

A calibrated judge has people's mean and spread on items like those; it orders no better than before. Show both figures.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lmlab.errors import UserError, reads
from lmlab.files import read_json, write_json
from lmlab.judging.measures.config import CalibrationKind

Floats = NDArray[np.float64]
_FOLDS = 5  # the usual number: more calibrate on more items each, and measure on fewer


@dataclass(frozen=True)
class Calibration:
    """A function of a judge's grade: lines between points, flat beyond the ends if it is isotonic.

    Attributes:
        x, y: two points of the line, or the corners of the steps.
    """

    kind: CalibrationKind
    x: tuple[float, ...]
    y: tuple[float, ...]

    def __call__(self, grades: ArrayLike) -> Floats:
        """The grades that people are expected to give."""
        values = np.asarray(grades, float)
        if self.kind == "isotonic":
            return np.interp(values, self.x, self.y)
        (x0, x1), (y0, y1) = self.x, self.y
        return y0 + (values - x0) * ((y1 - y0) / (x1 - x0))


def fit_calibration(judge: ArrayLike, people: ArrayLike, kind: CalibrationKind = "linear") -> Calibration:
    """Least squares of people's grades on a judge's: a line, or the best rising steps.

    Raises:
        UserError: the judge gave one grade to all items, of which no line can be learned.
    """
    x, y = np.asarray(judge, float), np.asarray(people, float)
    values, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    if kind == "isotonic":
        from scipy.optimize import isotonic_regression

        means = np.bincount(place, y) / counts
        steps = isotonic_regression(means, weights=counts).x
        return Calibration(kind, tuple(values.tolist()), tuple(steps.tolist()))
    if len(values) < 2:
        raise UserError(
            f"The judge gave the grade {values[0]:g} to all items: there is no line to learn.", "Use another judge."
        )
    slope, start = np.polyfit(x, y, 1)
    ends = float(values[0]), float(values[-1])
    return Calibration(kind, ends, tuple(float(start + slope * each) for each in ends))


def cross_calibrated(
    judge: ArrayLike,
    people: ArrayLike,
    kind: CalibrationKind = "linear",
    clusters: Sequence[Hashable] | None = None,
    folds: int = _FOLDS,
    seed: int = 0,
) -> Floats:
    """Each grade calibrated on items of other folds, so that agreement may be measured on the result.

    Arguments:
        clusters: what each item belongs to; a cluster is never in two folds.

    Raises:
        UserError: there are fewer clusters than folds.
    """
    x, y = np.asarray(judge, float), np.asarray(people, float)
    labels = list(range(len(x))) if clusters is None else list(clusters)
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels))}
    if len(numbers) < folds:
        raise UserError(f"{len(numbers)} independent items do not make {folds} folds.", "Grade more, or fold less.")
    fold_of = np.random.default_rng(seed).permutation(len(numbers)) % folds
    fold = fold_of[[numbers[label] for label in labels]]
    found = np.zeros(len(x))
    for number in range(folds):
        found[fold == number] = fit_calibration(x[fold != number], y[fold != number], kind)(x[fold == number])
    return found


def write_calibration(calibration: Calibration, path: str | Path) -> None:
    """Write a calibration as JSON."""
    write_json(Path(path), asdict(calibration))


@reads("a calibration")
def read_calibration(path: str | Path) -> Calibration:
    """Read what `write_calibration` wrote.

    Raises:
        UserError: it is not one.
    """
    found = read_json(Path(path))
    x, y = (tuple(float(each) for each in found[name]) for name in ("x", "y"))
    rising = all(first < second for first, second in pairwise(x))
    if found["kind"] not in ("linear", "isotonic") or len(x) != len(y) or not x or not rising:
        raise ValueError("its points do not rise, or are of no known kind")
    if found["kind"] == "linear" and len(x) != 2:
        raise ValueError("a line has two points")
    return Calibration(found["kind"], x, y)
