"""Deduplication: exact by hash, near-duplicates by MinHash and locality-sensitive hashing (Broder 1997) over word 5-grams."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass

from lmlab.errors import missing_extra

_NUM_PERMUTATIONS = 128
_SHINGLE_WORDS = 5


@dataclass(frozen=True)
class Duplicate:
    """Which earlier document a text repeats.

    Attributes:
        of: id of the earlier document.
        similarity: 1.0 for exact duplicates, else the estimated Jaccard similarity of the two sets of word 5-grams.
    """

    of: str
    similarity: float


class Deduplicator:
    """Remembers texts and tells which later ones repeat them.

    Arguments:
        threshold: Jaccard similarity from which two texts are near-duplicates, in (0, 1); None finds exact duplicates only.
    """

    def __init__(self, threshold: float | None) -> None:
        self._exact: dict[bytes, str] = {}
        self._threshold = threshold
        if threshold is not None:
            try:
                from datasketch import MinHash, MinHashLSH
            except ImportError:
                raise missing_extra("datasketch", "data", "Finding near-duplicates") from None
            self._minhash = MinHash
            self._index = MinHashLSH(threshold=threshold, num_perm=_NUM_PERMUTATIONS)
            self._signatures: dict[str, MinHash] = {}

    def find(self, id: str, text: str) -> Duplicate | None:
        """Return what `text` duplicates; a text that duplicates nothing is remembered under `id`, which must be unique."""
        words = text.split()
        digest = hashlib.sha256(" ".join(words).encode()).digest()
        if digest in self._exact:
            return Duplicate(self._exact[digest], 1.0)
        if self._threshold is not None:
            signature = self._minhash(num_perm=_NUM_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
            signature.update_batch(_shingles(words))
            similar = [(signature.jaccard(self._signatures[other]), other) for other in self._index.query(signature)]
            best = max(similar, default=(0.0, ""))
            if best[0] >= self._threshold:
                return Duplicate(best[1], round(float(best[0]), 3))
            self._index.insert(id, signature)
            self._signatures[id] = signature
        self._exact[digest] = id
        return None


def _shingles(words: list[str]) -> list[bytes]:
    count = max(1, len(words) - _SHINGLE_WORDS + 1)
    return list({" ".join(words[start : start + _SHINGLE_WORDS]).encode() for start in range(count)})
