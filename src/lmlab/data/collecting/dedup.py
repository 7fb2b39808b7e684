"""Near-duplicates by MinHash (Broder 1997) over word 5-grams, with locality-sensitive hashing, for more documents than
fit in memory. Of writing without spaces between words (Chinese, Thai) the n-grams are of 10 characters.

Signatures are kept on the disk. What stays in memory is for each document one number a band of its signature: where the
document before it with the same band is.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.data.collecting.words import run_factor, units
from lmlab.errors import missing_extra

NUM_PERMUTATIONS = 128  # a similarity of 0.8 is then estimated to within 0.035; more take memory and time in proportion
_SHINGLE_WORDS = 5  # shorter runs are shared by texts on one subject, longer ones are lost with each changed word
_SIGNATURE_BYTES = 4 * NUM_PERMUTATIONS  # uint32


@dataclass(frozen=True)
class Duplicate:
    """Which earlier document a text repeats.

    Attributes:
        of: number of the earlier document.
        similarity: the estimated Jaccard similarity of the two sets of word 5-grams.
    """

    of: int
    similarity: float


def signature(text: str) -> NDArray[np.uint32]:
    """The MinHash signature of a text, [128]: two signatures agree in about as many places as the sets of word 5-grams
    share elements.

    Raises:
        UserError: the package datasketch is not installed.
    """
    minhash = _datasketch().MinHash(num_perm=NUM_PERMUTATIONS, seed=1, hashfunc=zlib.crc32)
    minhash.update_batch(_shingles(units(text)))
    values: NDArray[np.uint32] = minhash.hashvalues.astype(np.uint32)
    return values


class NearDuplicates:
    """Finds, for one document after the other, an earlier one that it repeats.

    It takes about four bytes a document and band in memory (nine bands at a threshold of 0.8).

    Arguments:
        parts: files of signatures (`signature`), one after the other without a header; one for each row.
        order: the documents, as numbers of rows of all parts, in the order in which they will be asked for.
        threshold: Jaccard similarity from which two texts are near-duplicates, in (0, 1).
    """

    def __init__(self, parts: Sequence[Path], order: NDArray[np.int64], threshold: float) -> None:
        self.threshold, self._order = threshold, order
        self._kept = np.zeros(len(order), bool)
        self._first_rows = np.cumsum([0, *(path.stat().st_size // _SIGNATURE_BYTES for path in parts)])
        self._files = [open(path, "rb") for path in parts]  # noqa: SIM115 (closed by close)
        lsh = _datasketch().MinHashLSH(threshold=threshold, num_perm=NUM_PERMUTATIONS)
        self._previous = [self._link(parts, slice(band * lsh.r, (band + 1) * lsh.r)) for band in range(lsh.b)]

    def find(self, place: int) -> Duplicate | None:
        """The most similar of the documents kept so far, if it is similar enough; places are those in the order, and
        must rise.
        """
        candidates = {other for previous in self._previous for other in self._kept_before(previous, place)}
        if not candidates:
            return None
        mine = self._signature(place)
        similarity, other = max((float(np.mean(mine == self._signature(other))), other) for other in candidates)
        return Duplicate(int(self._order[other]), round(similarity, 3)) if similarity >= self.threshold else None

    def keep(self, place: int) -> None:
        """Remember a document: later ones may repeat it."""
        self._kept[place] = True

    def close(self) -> None:
        """Close the files."""
        for file in self._files:
            file.close()

    def _kept_before(self, previous: NDArray[np.int32], place: int) -> Iterator[int]:
        """The kept documents before a place with the same band; ways past those that were not kept are shortened for
        later.
        """
        while True:
            found = int(previous[place])
            while found >= 0 and not self._kept[found]:
                found = int(previous[found])
            previous[place] = found
            if found < 0:
                return
            yield found
            place = found

    def _link(self, parts: Sequence[Path], band: slice) -> NDArray[np.int32]:
        """For each place the one before it whose signature has the same band, -1 for none."""
        hashes = np.concatenate(
            [_hash_rows(np.memmap(path, np.uint32, "r").reshape(-1, NUM_PERMUTATIONS)[:, band]) for path in parts]
        )[self._order]
        by_hash = np.argsort(hashes, kind="stable")
        same = hashes[by_hash[1:]] == hashes[by_hash[:-1]]
        previous = np.full(len(hashes), -1, np.int32)
        previous[by_hash[1:][same]] = by_hash[:-1][same]
        return previous

    def _signature(self, place: int) -> NDArray[np.uint32]:
        row = int(self._order[place])
        part = int(np.searchsorted(self._first_rows, row, side="right")) - 1
        offset = (row - int(self._first_rows[part])) * _SIGNATURE_BYTES
        return np.frombuffer(os.pread(self._files[part].fileno(), _SIGNATURE_BYTES, offset), np.uint32)


def _hash_rows(rows: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """A 64-bit hash of each row, [n]: a polynomial with an odd base, mixed."""
    hashes = np.zeros(len(rows), np.uint64)
    for column in rows.T:
        # 2**64 over the golden ratio, and a shift that brings high bits down
        hashes = (hashes ^ column) * np.uint64(0x9E3779B97F4A7C15)
        hashes ^= hashes >> np.uint64(29)
    return hashes


def _shingles(words: list[str]) -> list[bytes]:
    length = _SHINGLE_WORDS * run_factor(words)
    count = max(1, len(words) - length + 1)
    return list({" ".join(words[start : start + length]).encode() for start in range(count)})


def _datasketch() -> Any:
    try:
        import datasketch
    except ImportError:
        raise missing_extra("datasketch", "Finding near-duplicates") from None
    return datasketch
