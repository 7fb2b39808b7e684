"""Exact search, and the one rule by which every index here answers.

The rule: documents by score, those of equal score by id, descending (as trec_eval sorts); each query gets min(k, live
documents) of them, never a filler; removed documents are not found; an order never depends on how many queries or
documents are compared at once. For that a fast matrix product finds candidates, and their scores are computed again one
by one, summed in fp64 and rounded to fp32.

Shapes: Q queries, N documents, H width, K results.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]

_QUERIES_AT_ONCE = 256  # more share a reading of the vectors, and take memory for candidates
_ROWS_AT_ONCE = 50_000  # with 256 queries 51 MB of scores; fewer rows make smaller, slower products
SLACK = 32  # candidates beyond k, so that ties at the border are seen
ROUNDING = 4e-6  # what fp32 products of unit vectors may differ by; of others, times their lengths


@dataclass(frozen=True)
class Hits:
    """What a search found.

    Attributes:
        rows_QK: documents by their row, best first.
        scores_QK: their scores.
        asked: the k that was asked for; with fewer documents than that, K is smaller.
    """

    rows_QK: Rows
    scores_QK: Floats
    asked: int

    @property
    def notice(self) -> str:
        """A sentence where there are fewer results than were asked for; else nothing."""
        found = self.rows_QK.shape[1]
        return f"{self.asked} results were asked for, and the index holds {found}." if found < self.asked else ""

    def run(self, query_ids: Sequence[str], document_ids: Sequence[str]) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score."""
        return {
            query: {document_ids[row]: float(score) for row, score in zip(rows, scores, strict=True)}
            for query, rows, scores in zip(query_ids, self.rows_QK, self.scores_QK, strict=True)
        }


class ExactIndex:
    """Documents' vectors, compared with every query by dot product.

    Arguments:
        vectors: [N, H], or chunks of rows, which may be memory-mapped.
    """

    def __init__(self, ids: Sequence[str], vectors: NDArray[np.generic] | Sequence[NDArray[np.generic]]) -> None:
        self.chunks = [vectors] if isinstance(vectors, np.ndarray) else list(vectors)
        self.ids = list(ids)
        if sum(map(len, self.chunks)) != len(self.ids):
            raise UserError(f"{len(self.ids):,} ids stand beside {sum(map(len, self.chunks)):,} vectors.")
        self._live = np.ones(len(self.ids), bool)
        self._order = tie_order(self.ids)

    def __len__(self) -> int:
        """How many documents are live."""
        return int(self._live.sum())

    @property
    def dim(self) -> int:
        """Width of vectors."""
        return self.chunks[0].shape[1] if self.chunks else 0

    def add(self, ids: Sequence[str], vectors: Floats) -> None:
        """Add documents.

        Raises:
            UserError: an id is there already.
        """
        if doubled := set(ids) & {id for id, live in zip(self.ids, self._live, strict=True) if live}:
            raise UserError(f"The id '{min(doubled)}' is in the index already.")
        self.chunks.append(np.asarray(vectors, np.float32))
        self.ids += list(ids)
        self._live = np.concatenate([self._live, np.ones(len(ids), bool)])
        self._order = tie_order(self.ids)

    def remove(self, ids: Iterable[str]) -> None:
        """Remove documents: they are not found any more.

        Raises:
            UserError: an id is not there.
        """
        place = {id: row for row, id in enumerate(self.ids) if self._live[row]}
        for id in ids:
            if id not in place:
                raise UserError(f"The index holds no document '{id}'.")
            self._live[place[id]] = False

    def topk(self, queries: Floats, k: int) -> Hits:
        """The k best documents of each query, by the rule.

        Arguments:
            queries: [Q, H].
        """
        if k < 1:
            raise UserError(f"k is {k}; at least 1 result must be asked for.")
        queries = np.asarray(queries, np.float32)
        count = min(k, len(self))
        rows = np.zeros((len(queries), count), np.int64)
        scores = np.zeros((len(queries), count), np.float32)
        if count:
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                some = queries[start : start + _QUERIES_AT_ONCE]
                for number, candidates in enumerate(self._candidates(some, count)):
                    found = self._best(some[number], candidates, count)
                    rows[start + number], scores[start + number] = found
        return Hits(rows, scores, k)

    def scores(self, query: Floats, rows: Rows) -> Floats:
        """Scores of some documents, summed in fp64, [len(rows)]."""
        wide = self._gather(rows).astype(np.float64) @ query.astype(np.float64)
        return wide.astype(np.float32)

    def _best(self, query: Floats, candidates: Rows, count: int) -> tuple[Rows, Floats]:
        scores = self.scores(query, candidates)
        best = np.lexsort((-self._order[candidates], -scores))[:count]
        return candidates[best], scores[best]

    def _gather(self, rows: Rows) -> NDArray[np.float32]:
        if len(self.chunks) == 1:
            return np.asarray(self.chunks[0][rows], np.float32)
        found = np.zeros((len(rows), self.dim), np.float32)
        start = 0
        for chunk in self.chunks:
            inside = (rows >= start) & (rows < start + len(chunk))
            if inside.any():
                found[inside] = chunk[rows[inside] - start]
            start += len(chunk)
        return found

    def _candidates(self, queries: Floats, count: int) -> list[Rows]:
        """For each query rows among which the best are sure to be."""
        wanted = min(count + SLACK, len(self.ids))
        kept_rows = np.zeros((len(queries), 0), np.int64)
        kept = np.zeros((len(queries), 0), np.float32)
        length = 0.0
        for start, part in self._parts():
            products = queries @ part.T
            products[:, ~self._live[start : start + len(part)]] = -np.inf
            length = max(length, float(np.sqrt(np.einsum("nh,nh->n", part, part).max(initial=0))))
            rows = np.broadcast_to(np.arange(start, start + len(part)), products.shape)
            if products.shape[1] > wanted:
                best = np.argpartition(-products, wanted - 1, axis=1)[:, :wanted]
                products, rows = np.take_along_axis(products, best, 1), best + start
            kept, kept_rows = np.concatenate([kept, products], 1), np.concatenate([kept_rows, rows], 1)
            if kept.shape[1] > wanted:
                best = np.argpartition(-kept, wanted - 1, axis=1)[:, :wanted]
                kept, kept_rows = np.take_along_axis(kept, best, 1), np.take_along_axis(kept_rows, best, 1)
        margins = ROUNDING * max(1.0, length) * np.maximum(1.0, np.linalg.norm(queries, axis=1))
        border = -np.partition(-kept, count - 1, axis=1)[:, count - 1]
        least = kept.min(axis=1)
        crowded = np.flatnonzero((least >= border - margins) & (kept.shape[1] < len(self)))
        found = [rows[values > -np.inf] for rows, values in zip(kept_rows, kept, strict=True)]
        for number in crowded:  # more documents tie at the border than the slack holds
            found[number] = self._above(queries[number], float(border[number] - margins[number]))
        return found

    def _above(self, query: Floats, least: float) -> Rows:
        rows = [start + np.flatnonzero(part @ query >= least) for start, part in self._parts()]
        found = np.concatenate(rows)
        return found[self._live[found]]

    def _parts(self) -> Iterable[tuple[int, NDArray[np.float32]]]:
        place = 0
        for chunk in self.chunks:
            for start in range(0, len(chunk), _ROWS_AT_ONCE):
                yield place + start, np.asarray(chunk[start : start + _ROWS_AT_ONCE], np.float32)
            place += len(chunk)


def tie_order(ids: Sequence[str]) -> Rows:
    """The rank of each id in ascending order of its bytes."""
    order = np.zeros(len(ids), np.int64)
    order[sorted(range(len(ids)), key=lambda row: ids[row].encode())] = np.arange(len(ids))
    return order
