"""The key above which a domain's budget is spent, found by histograms of keys with sums of tokens, finer and finer, in
bounded memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_BINS = 2**20  # over all domains
_LEAST_BINS = 16  # of a domain, however many there are; fewer take more passes
_CANDIDATES = 2**20  # rows near the thresholds that are sorted in memory
_LEVELS = 12  # passes at most: each divides what is open by the bins, so that a few are enough

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class KeyedRows(Protocol):
    """Rows with `domain` and `length`, and their keys; can be gone through again and again."""

    def all(self) -> Iterator[tuple[NDArray[Any], Floats]]: ...


class _Level:
    """One division of the keys of each domain into bins; `crossing` is the bin in which the budget is spent, -1 for
    none.

    The number of a bin rises with the key, whatever rounding does, so that bins and not their edges decide.
    """

    def __init__(self, low_D: Floats, high_D: Floats, bins: int) -> None:
        self.bins = bins
        with np.errstate(over="ignore"):
            self.factor = np.where(np.isfinite(high_D - low_D), 1.0, 0.5)  # half a difference is always a number
        self.low = low_D * self.factor
        span = high_D * self.factor - self.low
        self.span = np.where(span > 0, span, np.inf)
        self.crossing = np.full(len(low_D), -1, np.int64)

    def bin_of(self, keys: Floats, domain: NDArray[np.int32]) -> NDArray[np.int64]:
        place = (keys * self.factor[domain] - self.low[domain]) / self.span[domain]
        return np.clip(place * self.bins, 0, self.bins - 1).astype(np.int64)


def find_thresholds(
    source: KeyedRows, budgets_D: NDArray[np.int64], domains: int, allowed: Bools | None
) -> tuple[NDArray[Any], Floats, Bools]:
    """The rows above the thresholds of their domains and those of the bins in which budgets are spent.

    Returns:
        the rows, their keys, and whether each is above; of the others, the best are to be taken until the budget is
        spent.
    """
    levels: list[_Level] = []
    left_D, open_D = budgets_D.copy(), budgets_D > 0
    bins = max(_LEAST_BINS, _BINS // max(1, domains))
    while open_D.any() and len(levels) < _LEVELS:
        low_D, high_D = _range(source, levels, domains, allowed)
        if levels and not (high_D > low_D).any():  # the keys that are left are equal
            break
        level = _Level(low_D, high_D, bins)
        tokens, counts = _histogram(source, levels, level, domains, allowed)
        above = np.cumsum(tokens[:, ::-1], 1)[:, ::-1] - tokens  # tokens in higher bins
        waiting = 0
        for domain in np.flatnonzero(open_D).tolist():
            bin = int(np.flatnonzero(above[domain] < left_D[domain])[0])
            level.crossing[domain] = bin
            left_D[domain] -= int(above[domain, bin])
            waiting += int(counts[domain, bin])
        levels.append(level)
        if waiting <= _CANDIDATES:
            break
    return _collect(source, levels, open_D, allowed)


def _place(levels: list[_Level], keys: Floats, domain: NDArray[np.int32]) -> tuple[Bools, Bools]:
    """Which rows are above the crossing bins, and which in them."""
    inside, above = np.ones(len(keys), bool), np.zeros(len(keys), bool)
    for level in levels:
        bin, crossing = level.bin_of(keys, domain), level.crossing[domain]
        above |= inside & (bin > crossing) & (crossing >= 0)
        inside &= bin == crossing
    return above, inside


def _passes(source: KeyedRows, allowed: Bools | None) -> Iterator[tuple[NDArray[Any], Floats]]:
    start = 0
    for rows, keys in source.all():
        stop = start + len(rows)
        yield (rows, keys) if allowed is None else (rows[allowed[start:stop]], keys[allowed[start:stop]])
        start = stop


def _range(source: KeyedRows, levels: list[_Level], domains: int, allowed: Bools | None) -> tuple[Floats, Floats]:
    low_D, high_D = np.full(domains, np.inf), np.full(domains, -np.inf)
    for rows, keys in _passes(source, allowed):
        _, inside = _place(levels, keys, rows["domain"])
        domain, keys = rows["domain"][inside], keys[inside]
        if domains == 1 and len(keys):
            low_D[0], high_D[0] = min(low_D[0], keys.min()), max(high_D[0], keys.max())
        else:
            np.minimum.at(low_D, domain, keys)
            np.maximum.at(high_D, domain, keys)
    seen = low_D <= high_D
    return np.where(seen, low_D, 0), np.where(seen, high_D, 0)


def _histogram(
    source: KeyedRows, levels: list[_Level], level: _Level, domains: int, allowed: Bools | None
) -> tuple[Any, Any]:
    size = domains * level.bins
    tokens, counts = np.zeros(size), np.zeros(size, np.int64)
    for rows, keys in _passes(source, allowed):
        _, inside = _place(levels, keys, rows["domain"])
        domain = rows["domain"][inside]
        index = domain.astype(np.int64) * level.bins + level.bin_of(keys[inside], domain)
        tokens += np.bincount(index, rows["length"][inside].astype(np.float64), size)
        counts += np.bincount(index, minlength=size)
    return tokens.astype(np.int64).reshape(domains, -1), counts.reshape(domains, -1)


def _collect(
    source: KeyedRows, levels: list[_Level], open_D: Bools, allowed: Bools | None
) -> tuple[NDArray[Any], Floats, Bools]:
    parts = []
    for rows, keys in _passes(source, allowed):
        above, inside = _place(levels, keys, rows["domain"])
        wanted = (above | inside) & open_D[rows["domain"]]
        parts.append((rows[wanted], keys[wanted], above[wanted]))
    rows, keys, above = (np.concatenate(columns) for columns in zip(*parts, strict=True)) if parts else _nothing()
    return rows, keys, above


def _nothing() -> tuple[Any, Any, Any]:
    kind = [("position", "<i8"), ("id64", "<u8"), ("length", "<i8"), ("domain", "<i4")]
    return np.zeros(0, kind), np.zeros(0), np.zeros(0, bool)
