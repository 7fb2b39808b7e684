"""A byte-level n-gram language model: the strong classical baseline for bits per byte.

- Interpolated modified Kneser-Ney smoothing (Chen & Goodman 1999, "An empirical study of smoothing techniques for
  language modeling", Computer Speech & Language 13, 359-394).
- Exact: an n-gram is its symbols packed into one integer, 9 bits each, never a hash.
- No Python loop over bytes: fitting sorts integers, scoring looks them up in sorted tables.

Symbols are the 256 byte values and a document boundary. Documents are independent: each is preceded by `order - 1`
boundaries and followed by one, which the model also learns to predict.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]
Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

BOUNDARY = 256  # beside the 256 bytes
NUM_SYMBOLS = 257  # the bytes and the boundary
SYMBOL_BITS = 9  # as many as 257 symbols take
MAX_ORDER = 64 // SYMBOL_BITS  # an n-gram is one number of 64 bits, which sorts and compares fast

_BATCH_SYMBOLS = 1 << 22  # scored in one pass by `bits`: 250 MB of working memory for source code, 600 for random bytes


class ByteNGram:
    """An interpolated modified Kneser-Ney model over bytes. Make one with `ByteNGram.fit`.

    The probability of symbol w after context h, from the longest context down to no context at all,
    below which every symbol has probability 1/257:

        p(w | h) = max(c(hw) - D(c(hw)), 0) / c(h.) + backoff(h) * p(w | h without its first symbol)

    c is the number of occurrences at the highest order and the number of distinct symbols seen before the n-gram at
    all lower orders. A context that was never seen leaves everything to the shorter context.
    """

    def __init__(self, levels: Sequence[_Level]) -> None:
        self._levels = tuple(levels)  # orders 1, 2, ...

    @classmethod
    def fit(cls, documents: Iterable[bytes], order: int = 6) -> ByteNGram:
        """Count the n-grams of `documents`.

        Args:
            documents: the training texts. An empty one teaches only that a document may end at once.
            order: the longest n-gram in symbols, 1 to 7; a byte is predicted from the `order - 1` before it.

        While it runs it needs some 20 bytes of memory per byte of source code, up to 180 for data without repeats.

        Raises:
            ValueError: `order` is not within 1 to 7, or the documents hold no bytes at all.
        """
        if not 1 <= order <= MAX_ORDER:
            raise ValueError(f"order must be between 1 and {MAX_ORDER}, not {order}")
        texts = list(documents)
        if not any(texts):
            raise ValueError("cannot fit an n-gram model: the training documents hold no bytes; pass at least one")
        keys = _pack(texts, order, include_end=True)
        del texts
        levels = []
        for length in range(order, 0, -1):
            keys.sort()
            starts = _run_starts(keys)
            counts = np.diff(starts, append=keys.size)
            ngrams = keys[starts]
            levels.append(_Level.from_counts(ngrams, counts))
            # Each distinct n-gram counts once for its suffix: the lower order's continuation count.
            keys = ngrams & _mask(length - 1)
        return cls(levels[::-1])

    @property
    def order(self) -> int:
        """The longest n-gram, in symbols."""
        return len(self._levels)

    @property
    def num_ngrams(self) -> int:
        """The number of distinct n-grams of all lengths, 1 to `order`."""
        return sum(level.ngrams.size for level in self._levels)

    def log2_probabilities(self, document: bytes, context: bytes = b"", *, include_end: bool = False) -> Floats:
        """The base-2 logarithm of the probability of each byte given the `order - 1` symbols before it.

        Args:
            document: the text to score.
            context: text that precedes it and is not scored; before the context there is only the document boundary.
            include_end: also score the end of the document, as a last element.

        Returns:
            [len(document)], or [len(document) + 1] with the end; bits, all at most 0.
        """
        tail = context[max(0, len(context) - self.order + 1) :]
        keys = _pack([tail + document], self.order, include_end)
        return self._log2_probabilities(keys[len(tail) :])

    def score(self, document: bytes, context: bytes = b"", *, include_end: bool = False) -> float:
        """The document's information in bits, at least 0. Arguments as in `log2_probabilities`.

        The end of the document is left out by default, so that the figure compares with that of any language model
        scored on the same bytes.
        """
        return 0.0 - float(self.log2_probabilities(document, context, include_end=include_end).sum())

    def bits(self, documents: Sequence[bytes], *, include_end: bool = False) -> Floats:
        """The information of each of many documents, in bits: `score` of each without a context, but much faster.

        Returns:
            [len(documents)], 0 for an empty document unless its end is included.
        """
        bits = np.zeros(len(documents))
        sizes = np.array([len(document) + self.order for document in documents], dtype=np.int64)
        firsts = np.flatnonzero(np.diff((np.cumsum(sizes) - sizes) // _BATCH_SYMBOLS, prepend=-1)).tolist()
        for first, stop in pairwise([*firsts, len(documents)]):
            batch = documents[first:stop]
            keys = _pack(batch, self.order, include_end)
            owner = np.repeat(np.arange(len(batch)), [len(document) + include_end for document in batch])
            bits[first:stop] -= np.bincount(owner, weights=self._log2_probabilities(keys), minlength=len(batch))
        return bits

    def _log2_probabilities(self, keys: Keys) -> Floats:
        """[len(keys)]; rounding must not make a near certainty more than certain."""
        return np.minimum(np.log2(self._probabilities(keys, self.order)), 0.0)

    def _probabilities(self, keys: Keys, length: int) -> Floats:
        """The probability of the last symbol of each n-gram, [len(keys)]; keys hold n-grams of `length` symbols."""
        if length == 0:
            return np.full(keys.size, 1 / NUM_SYMBOLS)
        level = self._levels[length - 1]
        # Text repeats itself: each distinct n-gram is looked up once, and sorted ones are found fastest.
        ngrams, inverse = np.unique(keys, return_inverse=True)
        shorter = self._probabilities(ngrams & _mask(length - 1), length - 1)
        share = _look_up(level.ngrams, level.shares, ngrams, absent=0.0)
        backoff = _look_up(level.contexts, level.backoffs, ngrams >> np.uint64(SYMBOL_BITS), absent=1.0)
        return (share + backoff * shorter)[inverse]


@dataclass(frozen=True)
class _Level:
    """The n-grams of one length. Both key arrays are sorted."""

    ngrams: Keys  # [num_ngrams]
    shares: Floats  # [num_ngrams] the discounted count over the context's total
    contexts: Keys  # [num_contexts] the n-grams without their last symbol
    backoffs: Floats  # [num_contexts] the share of the shorter context

    @classmethod
    def from_counts(cls, ngrams: Keys, counts: Integers) -> _Level:
        """Discount the counts of sorted distinct n-grams; both [num_ngrams]."""
        discounts = np.array([0.0, *modified_discounts(counts)])[np.minimum(counts, 3)]
        contexts = ngrams >> np.uint64(SYMBOL_BITS)
        starts = _run_starts(contexts)
        totals = np.add.reduceat(counts, starts)
        sizes = np.diff(starts, append=ngrams.size)
        shares = (counts - discounts) / np.repeat(totals, sizes)
        return cls(ngrams, shares, contexts[starts], np.add.reduceat(discounts, starts) / totals)


def modified_discounts(counts: npt.NDArray[np.integer]) -> tuple[float, float, float]:
    """The discounts D1, D2 and D3+ of n-grams counted once, twice, and three times or more.

    With n_i the number of n-grams counted i times and Y = n1 / (n1 + 2 n2):  D_i = i - (i + 1) Y n_{i+1} / n_i.
    A small or odd corpus can leave a discount undefined or outside (0, i), where it would waste or create
    probability; it is then i / 2.

    Args:
        counts: [num_ngrams] how often each distinct n-gram of one length counts, all at least 1.
    """
    n = [int(np.count_nonzero(counts == i)) for i in range(5)]
    y = n[1] / max(1, n[1] + 2 * n[2])
    estimates = [i - (i + 1) * y * n[i + 1] / n[i] if n[i] else 0.0 for i in (1, 2, 3)]
    first, second, third = (d if 0 < d < i else i / 2 for i, d in enumerate(estimates, start=1))
    return first, second, third


def _pack(documents: Sequence[bytes], order: int, include_end: bool) -> Keys:
    """The n-gram that ends at each byte of each (at least one) document, and at its end where included, in order.

    The last symbol is in the lowest bits, so that n-grams of one context are neighbors when sorted and a shorter
    context is a mask away.

    Returns:
        [total bytes], plus one for each document with ends.
    """
    sizes = np.array([len(document) + order for document in documents], dtype=np.int64)
    stops = np.cumsum(sizes)
    padding = (stops - sizes)[:, None] + np.arange(order - 1)  # [documents, order - 1]
    predicted = np.ones(stops[-1], dtype=bool)
    predicted[padding] = False
    predicted[stops - 1] = False
    symbols = np.full(predicted.size, BOUNDARY, dtype=np.uint16)
    symbols[predicted] = np.frombuffer(b"".join(documents), dtype=np.uint8)
    predicted[stops - 1] = include_end

    keys = np.zeros(symbols.size - order + 1, dtype=np.uint64)
    for offset in range(order):
        keys <<= np.uint64(SYMBOL_BITS)
        keys |= symbols[offset : offset + keys.size]
    return keys[predicted[order - 1 :]]


def _mask(length: int) -> np.uint64:
    """Keeps the last `length` symbols of an n-gram."""
    return np.uint64((1 << SYMBOL_BITS * length) - 1)


def _run_starts(values: Keys) -> Integers:
    """Where each run of equal values begins; `values` is sorted and not empty."""
    changed = np.ones(values.size, dtype=bool)
    np.not_equal(values[1:], values[:-1], out=changed[1:])
    return np.flatnonzero(changed)


def _look_up(table: Keys, values: Floats, keys: Keys, absent: float) -> Floats:
    """The value of each key in a sorted table, or `absent`; [len(keys)]."""
    positions = np.minimum(np.searchsorted(table, keys), table.size - 1)
    return np.where(table[positions] == keys, values[positions], absent)
