"""How much the order of two texts changes a judge's mind."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmlab.stats import Interval, t_interval, wilson


@dataclass(frozen=True)
class OrderEffects:
    """How much the order of texts changes a judge's mind; figures are not-a-number where nothing is known.

    Attributes:
        pairs: that were judged in both orders.
        position_bias: mean of (p[i, j] + p[j, i] - 1) / 2 with Student's interval over pairs: above zero for a judge
            that likes the second place. The first place wins a share of 1/2 less this.
        swap_consistency: share of pairs with the same winner in both orders, with Wilson's interval. Pairs without a
            winner in either order say nothing and are left out; one with a winner in one order only is inconsistent.
    """

    pairs: int
    position_bias: Interval[float]
    swap_consistency: Interval[float]


def order_effects(preferences: Sequence[Any], level: float = 0.95) -> OrderEffects:
    """The effects over matrices of `preference`."""
    forward, backward = [], []
    for p in preferences:
        for i, j in zip(*np.triu_indices(len(p), 1), strict=True):
            if np.isfinite(p[i, j]) and np.isfinite(p[j, i]):
                forward.append(p[i, j])
                backward.append(p[j, i])
    unknown = Interval(math.nan, math.nan, math.nan, level)
    if not forward:
        return OrderEffects(0, unknown, unknown)
    there, back = np.array(forward), np.array(backward)
    # p is the share for the second place, so the same text wins where it is above one half once and below it once.
    first, second = np.sign(there - 0.5), np.sign(0.5 - back)
    decided = (first != 0) | (second != 0)
    same = int((decided & (first == second)).sum())
    consistency = wilson(same, int(decided.sum()), level) if decided.any() else unknown
    return OrderEffects(len(there), t_interval((there + back - 1) / 2, level), consistency)
