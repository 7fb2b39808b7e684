"""An interval for the grade that people would give to one answer, by split conformal prediction (Vovk et al. 2005): it
holds for such a share of answers like those that it was learned from, on average and not for each kind of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lmlab.errors import UserError
from lmlab.judging.rubrics.numbers import Scale
from lmlab.judging.rubrics.parser import HALF_POINTS
from lmlab.stats import Interval


@dataclass(frozen=True)
class Conformal:
    """Intervals around a judge's grades.

    Attributes:
        radius: half the width; infinite where too few items were graded by people for the level.
        level: what share of answers they hold for.
        items: that it was learned from.
    """

    radius: float
    level: float
    items: int
    scale: Scale = HALF_POINTS

    def interval(self, grade: float) -> Interval[float]:
        """The interval around a judge's grade, cut to the scale; its middle is the better score of the answer."""
        low, high = max(self.scale.minimum, grade - self.radius), min(self.scale.maximum, grade + self.radius)
        return Interval((low + high) / 2, low, high, self.level)

    def on_grid(self, grade: float) -> Interval[float]:
        """The same, widened to grades that there are: it holds at least as often."""
        found = self.interval(grade)
        step, least = self.scale.step, self.scale.minimum
        low = least + math.floor((found.low - least) / step + 1e-9) * step
        high = min(self.scale.maximum, least + math.ceil((found.high - least) / step - 1e-9) * step)
        return Interval((low + high) / 2, low, high, self.level)


def fit_conformal(judge: ArrayLike, people: ArrayLike, level: float = 0.95, scale: Scale = HALF_POINTS) -> Conformal:
    """The radius is the ceil((n + 1) level)-th smallest of the distances between both.

    For 95 % that needs 19 items; with fewer the radius is infinite, and the interval the whole scale.

    Raises:
        UserError: there is no item with both grades.
    """
    f, y = np.asarray(judge, float), np.asarray(people, float)
    distances = np.sort(np.abs(f - y)[np.isfinite(f) & np.isfinite(y)])
    if not len(distances):
        raise UserError("There is no item that both the judge and people have graded.")
    place = math.ceil((len(distances) + 1) * level - 1e-9)
    radius = float(distances[place - 1]) if place <= len(distances) else math.inf
    return Conformal(radius, level, len(distances), scale)
