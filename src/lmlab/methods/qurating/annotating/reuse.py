"""Ratings that an earlier annotation made, found again by the content of rows: of a corpus that grows or changes only
new texts are rated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
"""128 bits of each row, [N, 2]."""
Rating = tuple[list[int], NDArray[np.float32]]
"""The lengths of a row's segments, and their scores, [segments, C]."""

SOURCE = b"lmlab.source"  # in the metadata of an output: which file of the corpus, in which state, it annotates
ROWS = b"lmlab.rows"  # in that of a part: the hashes of its rows
_MOST_BYTES = 2**30  # of tables that are kept in memory


def content_hashes(contents: Sequence[str | Sequence[int] | None]) -> Hashes:
    """What tells rows apart that are rated differently: their text, or their token ids."""
    digests = [blake2b(_bytes(content), digest_size=16).digest() for content in contents]
    return np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)


def _bytes(content: str | Sequence[int] | None) -> bytes:
    if content is None or isinstance(content, str):
        return b"t" + (content or "").encode("utf-8", "surrogatepass")
    return b"i" + json.dumps([int(id) for id in content]).encode()


def source_of(path: Path) -> str | None:
    """What an output annotates; None where it does not say, or cannot be read."""
    try:
        found = (pq.read_schema(path).metadata or {}).get(SOURCE)
    except (OSError, pa.ArrowException):
        return None
    return None if found is None else found.decode()


class RatedRows:
    """The rows of outputs that were set aside.

    Arguments:
        folder: with the outputs.
        hashes: folder with the hashes of their rows, a file of the same stem for each.
    """

    def __init__(self, folder: Path, hashes: Path, criteria: Sequence[str]) -> None:
        self._criteria = list(criteria)
        self._files = [path for path in sorted(folder.glob("*.parquet")) if (hashes / f"{path.stem}.npy").exists()]
        parts = [np.load(hashes / f"{path.stem}.npy", allow_pickle=False) for path in self._files]
        sizes = [len(part) for part in parts]
        found: Hashes = np.concatenate([np.zeros((0, 2), np.uint64), *parts])
        order = np.argsort(found[:, 0], kind="stable")
        self._hash = found[order]
        self._file = np.repeat(np.arange(len(parts)), sizes)[order]
        self._row = np.concatenate([np.zeros(0, np.int64), *map(np.arange, sizes)])[order]
        self._tables: dict[int, pa.Table] = {}

    def __len__(self) -> int:
        return len(self._hash)

    def find(self, hashes: Hashes) -> dict[int, Rating]:
        """The ratings of the rows that are known, by their place."""
        if not len(self):
            return {}
        first = np.searchsorted(self._hash[:, 0], hashes[:, 0])
        known = []
        for place, start in enumerate(first.tolist()):
            while start < len(self._hash) and self._hash[start, 0] == hashes[place, 0]:
                if self._hash[start, 1] == hashes[place, 1]:
                    known.append((int(self._file[start]), int(self._row[start]), place))
                    break
                start += 1
        # File by file: rows that were mixed among shards would otherwise read a whole file each.
        return {place: self._rating(file, row) for file, row, place in sorted(known)}

    def _rating(self, file: int, row: int) -> Rating:
        table = self._tables.get(file)
        if table is None:
            columns = [*(f"{name}_chunks" for name in self._criteria), "chunk_lengths"]
            while sum(each.nbytes for each in self._tables.values()) > _MOST_BYTES:
                del self._tables[next(iter(self._tables))]
            table = self._tables[file] = pq.read_table(self._files[file], columns=columns).combine_chunks()
        lengths: Any = table.column("chunk_lengths")[row].as_py()
        scores = [table.column(f"{name}_chunks")[row].as_py() for name in self._criteria]
        return lengths, np.array(scores, np.float32).reshape(len(self._criteria), len(lengths)).T
