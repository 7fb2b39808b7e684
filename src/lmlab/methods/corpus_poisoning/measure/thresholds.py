"""What a passage must pass to be seen: for each query the score of its k-th best clean document, computed once for an
encoder, a corpus and a set of queries, and stored.

Shapes: Q queries, K depth.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, reads
from lmlab.files import atomic_file, parse_json
from lmlab.retrieval import ExactIndex, LateIndex, Queries

K_VALUES = (1, 3, 5, 10, 20, 50, 100, 1000)  # those of the reference


@dataclass(frozen=True)
class CleanHits:
    """The best clean documents of each query, its own document removed.

    Attributes:
        scores_QK, rows_QK: best first.
        self_matches: queries whose own document was removed (ArguAna, Quora).
    """

    scores_QK: NDArray[np.float32]
    rows_QK: NDArray[np.int64]
    document_ids: list[str]
    self_matches: int

    def of(self, queries: Sequence[int]) -> CleanHits:
        """Those of some queries, by their numbers."""
        rows = list(queries)
        return CleanHits(self.scores_QK[rows], self.rows_QK[rows], self.document_ids, self.self_matches)

    def to(self, depth: int) -> CleanHits:
        """The first of them alone: what follows from hits must not depend on how deep another command has looked."""
        return CleanHits(self.scores_QK[:, :depth], self.rows_QK[:, :depth], self.document_ids, self.self_matches)

    @property
    def depth(self) -> int:
        """How many documents of each query are known."""
        return self.scores_QK.shape[1]

    def tau(self, k: int) -> NDArray[np.float32]:
        """The clean score at rank k of each query, [Q].

        Raises:
            UserError: the corpus has fewer documents: everything would be seen.
        """
        if k > self.depth:
            raise UserError(
                f"The success at {k} cannot be told: {self.depth} clean documents of each query are known.",
                "A corpus with fewer documents than k shows every passage to every query.",
            )
        return self.scores_QK[:, k - 1]


def clean_hits(index: ExactIndex | LateIndex, vectors: Any, queries: Queries, depth: int) -> CleanHits:
    """Search the clean corpus.

    Arguments:
        vectors: of the queries, [Q, H]; of late interaction a matrix for each.

    Raises:
        UserError: there are no queries.
    """
    if not len(queries):
        raise UserError("There are 0 queries.")
    ids = index.ids
    known = set(ids)
    own = [id if id in known else None for id in queries.ids]
    removed = sum(each is not None for each in own)
    hits = index.topk(vectors, min(depth + (removed > 0), len(index)))
    rows, scores = hits.rows_QK, hits.scores_QK
    if removed:
        count = rows.shape[1] - 1
        kept = [
            [place for place, row in enumerate(line) if ids[row] != mine][:count]
            for line, mine in zip(rows, own, strict=True)
        ]
        places = np.array(kept, np.int64)
        rows, scores = np.take_along_axis(rows, places, 1), np.take_along_axis(scores, places, 1)
    return CleanHits(scores, rows, list(ids), removed)


def stored_hits(
    path: str | Path,
    about: dict[str, Any],
    index: ExactIndex,
    vectors_QH: NDArray[np.float32],
    queries: Queries,
    depth: int,
) -> CleanHits:
    """`clean_hits`, from a file if it holds those of the same encoder, corpus and queries to this depth or beyond."""
    path = Path(path)
    if path.exists():
        found, known = _read(path)
        if known == about and found.depth >= min(depth, len(index) - bool(found.self_matches)):
            return found.to(depth)
    found = clean_hits(index, vectors_QH, queries, depth)
    buffer = io.BytesIO()
    np.savez(
        buffer,
        scores=found.scores_QK,
        rows=found.rows_QK,
        self_matches=np.int64(found.self_matches),
        text=np.frombuffer(json.dumps({"about": about, "ids": found.document_ids}).encode(), np.uint8),
    )
    with atomic_file(path) as file:
        file.write(buffer.getvalue())
    return found


@reads("a file of thresholds")
def _read(path: Path) -> tuple[CleanHits, dict[str, Any]]:
    with np.load(path, allow_pickle=False) as file:
        text = parse_json(file["text"].tobytes(), f"'{path}'")
        found = CleanHits(file["scores"], file["rows"], text["ids"], int(file["self_matches"]))
    return found, text["about"]
