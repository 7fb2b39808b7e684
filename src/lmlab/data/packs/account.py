"""What packing did to documents: what it kept, cut and dropped, and how far back each kept token can look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

REASONS = {
    "document": "documents shorter than min_doc_length",
    "chunk": "ends of documents shorter than min_chunk_length",
    "intact": "ends of documents that did not fit their sequence (intact)",
    "left_over": "sequences that were not filled when the documents ended",
}
"""Why tokens are dropped."""


class PackAccount:
    """Counts that packing adds to. Always: tokens + special + repeats = packed + all that was dropped.

    Attributes:
        documents, tokens: read.
        special: tokens added around documents.
        repeats: tokens that stand in two sequences: the overlap, and the special token before what goes on.
        sequences, pieces, packed: written: sequences, documents or parts of them, tokens.
        cut: documents that did not stay whole in one sequence.
    """

    def __init__(self) -> None:
        self.documents = self.tokens = self.special = self.repeats = 0
        self.sequences = self.pieces = self.packed = self.cut = 0
        self.dropped: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()

    def read(self, size: int) -> None:
        """A document of so many tokens was read."""
        self.documents += 1
        self.tokens += size

    def wrote(self, borders: Sequence[tuple[int, int]]) -> None:
        """A sequence was written."""
        self.sequences += 1
        self.pieces += len(borders)
        self.packed += borders[-1][1]
        self.lengths.update(stop - start for start, stop in borders)

    def drop(self, reason: str, count: int) -> None:
        """So many tokens were dropped."""
        if count:
            self.dropped[reason] += count

    def tokens_beyond(self, distance: int) -> int:
        """Packed tokens with more than so many tokens of their own document before them in the sequence."""
        return sum(count * max(0, length - 1 - distance) for length, count in self.lengths.items())

    def record(self) -> dict[str, Any]:
        """For JSON: the counts, shares, and how many tokens can look back beyond each power of two."""
        longest = max(self.lengths, default=0)
        reach = {0: self.tokens_beyond(0)}
        reach |= {2**power: self.tokens_beyond(2**power) for power in range(4, longest.bit_length())}
        return {
            "documents": self.documents,
            "tokens": self.tokens,
            "special": self.special,
            "repeats": self.repeats,
            "sequences": self.sequences,
            "pieces": self.pieces,
            "packed": self.packed,
            "cut": self.cut,
            "cut_fraction": self.cut / self.documents if self.documents else 0.0,
            "dropped": {reason: self.dropped[reason] for reason in REASONS if self.dropped[reason]},
            "kept_fraction": (self.packed - self.repeats) / (self.tokens + self.special) if self.tokens else 0.0,
            "mean_piece": self.packed / self.pieces if self.pieces else 0.0,
            "tokens_with_context_beyond": {str(distance): count for distance, count in reach.items()},
        }
