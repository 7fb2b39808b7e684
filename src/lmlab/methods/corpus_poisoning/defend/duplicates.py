"""Near duplicates among new passages: several texts for one question, and templates.

Work grows nearly in step with the number of passages. Exact comparison of all with all is for few; of many, each is
compared with those that share a neighborhood (vectors), or one of its rarest 3-grams (words).

Shapes: N passages, H width of a vector, P pivots, G pairs of a 3-gram and a passage.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.methods.corpus_poisoning.defend.detector import DetectorContext, Passages, Scores

_WORD = re.compile(r"\w+")
_GRAM = 3  # words: pairs are shared by unrelated texts, longer runs are lost with each changed word
_ALL_PAIRS = 20_000  # passages up to which each vector is compared with every other
_ROWS = 1024  # compared at once: more take memory for their similarities
_NEIGHBORHOODS = 3  # that a vector belongs to: two near ones share one of them, else they are not very near
_HOLDERS = 32  # passages that a 3-gram is followed to: of a common one there are thousands
_COMPARED = 4  # passages whose 3-grams are then counted exactly


class NearDuplicate:
    """How near the nearest other new passage is, by vectors and by word 3-grams: several passages for one question, and
    templates.
    """

    def __init__(self, context: DetectorContext) -> None:
        del context

    def fit(self, clean: Passages) -> None:
        """Nothing is to be learned but the threshold."""

    def score(self, passages: Passages) -> Scores:
        """The larger of the cosine with, and the share of 3-grams in, the nearest other passage; 0 for a passage
        without words, of which there may be many that mean nothing.
        """
        if len(passages) < 2:
            return np.zeros(len(passages))
        grams = [_grams(text) for text in passages.texts]
        found = np.maximum(nearest_cosine(passages.vectors), most_shared(grams))
        found[[not _WORD.search(text) for text in passages.texts]] = 0.0
        return found

    def state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing."""


def nearest_cosine(vectors_NH: NDArray[np.float32], all_pairs: int = _ALL_PAIRS) -> Scores:
    """The cosine of each vector with its nearest other, [N]; above `all_pairs` vectors that of the nearest which shares
    one of the few pivots that are nearest to it.
    """
    unit = vectors_NH / np.maximum(np.linalg.norm(vectors_NH, axis=1, keepdims=True), 1e-12)
    found = np.full(len(unit), -1.0)
    if len(unit) <= all_pairs:
        _compare(unit, np.arange(len(unit)), found)
        return found
    # pivots: to find them, and to compare within them, then takes about as long
    pivots = unit[np.sort(np.random.default_rng(0).choice(len(unit), int(4 * np.sqrt(len(unit))), replace=False))]
    own = np.concatenate(
        [
            np.argpartition(-(unit[start : start + _ROWS] @ pivots.T), _NEIGHBORHOODS, axis=1)[:, :_NEIGHBORHOODS]
            for start in range(0, len(unit), _ROWS)
        ]
    )
    order = np.argsort(own.ravel(), kind="stable")
    rows, ends = order // _NEIGHBORHOODS, np.cumsum(np.bincount(own.ravel(), minlength=len(pivots)))
    for members in np.split(rows, ends[:-1]):
        _compare(unit, members, found)
    return found


def _compare(unit_NH: NDArray[np.float32], rows: NDArray[np.int64], found_N: Scores) -> None:
    """Raise what was found to the largest cosine with another of these rows."""
    members = unit_NH[rows]
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        similar = members[start : start + _ROWS] @ members.T
        similar[np.arange(len(part)), start + np.arange(len(part))] = -1
        found_N[part] = np.maximum(found_N[part], similar.max(1, initial=-1))


def most_shared(grams: Sequence[NDArray[np.int64]]) -> Scores:
    """The largest share of each passage's 3-grams that one other has, [N].

    The others are found by 3-grams of which each is followed to a few of its passages, the next in the order given, so
    that of a long row of copies each finds another; those found most often are compared whole.
    """
    found = np.zeros(len(grams))
    sizes = np.array([len(each) for each in grams])
    rows_G = np.repeat(np.arange(len(grams)), sizes)
    grams_G = np.concatenate([*grams, np.zeros(0, np.int64)]).astype(np.int64)
    order = np.lexsort((rows_G, grams_G))
    sorted_G = grams_G[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_G[1:] != sorted_G[:-1]])) if len(order) else order
    counts = np.diff(np.append(starts, len(order)))
    group_G, place_G = np.empty(len(order), np.int64), np.empty(len(order), np.int64)
    group_G[order] = np.repeat(np.arange(len(starts)), counts)
    place_G[order] = np.arange(len(order))
    held = rows_G[order]
    bounds = np.concatenate([[0], np.cumsum(sizes)])
    for row, own in enumerate(grams):
        if not len(own):
            continue
        span = slice(bounds[row], bounds[row + 1])
        groups, places = group_G[span], place_G[span]
        shared = counts[groups] > 1
        if not shared.any():
            continue
        first, size = starts[groups[shared]], np.minimum(counts[groups[shared]], _HOLDERS + 1)
        # the passages around this one among those of the same 3-gram, itself too
        begin = np.clip(places[shared] - size // 2, first, first + counts[groups[shared]] - size)
        steps = np.arange(size.sum()) - np.repeat(np.cumsum(size) - size, size)
        others = held[np.repeat(begin, size) + steps]
        names, often = np.unique(others[others != row], return_counts=True)
        for other in names[np.argsort(-often, kind="stable")[:_COMPARED]]:
            both = np.intersect1d(own, grams[other], assume_unique=True)
            found[row] = max(found[row], len(both) / len(own))
    return found


def _grams(text: str) -> NDArray[np.int64]:
    """The 3-grams of a text's words as numbers, each once; of fewer than three words all of them are one."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - _GRAM + 1) if words else 0
    return np.unique(np.array([hash(tuple(words[start : start + _GRAM])) for start in range(last)], np.int64))
