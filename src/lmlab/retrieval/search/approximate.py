"""Indexes that look at few documents: HNSW, IVF, int8 and one-bit codes, fewer dimensions. They only name candidates,
which are scored again by whole vectors; so ties, k above the corpus, removals and empty results are as of exact search.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, missing_extra
from lmlab.retrieval.config import IndexKind
from lmlab.retrieval.search.exact import SLACK, ExactIndex, Floats, Rows
from lmlab.retrieval.search.quantize import Ranges, quantize

INDEX_KINDS: tuple[IndexKind, ...] = get_args(IndexKind)

_OVERSAMPLE = 4  # candidates for each result, as is usual with one-bit codes
# Of HNSW: links of a node, and candidates while it is linked and searched; more find more and take longer.
_LINKS, _BREADTH_BUILD, _BREADTH = 32, 200, 200


def make_index(
    kind: IndexKind,
    ids: Sequence[str],
    vectors: NDArray[Any] | Sequence[NDArray[Any]],
    oversample: int = _OVERSAMPLE,
    dims: int | None = None,
) -> ExactIndex:
    """An index over vectors [N, H], or for `exact` also over chunks of them, which may be memory-mapped.

    Arguments:
        oversample: candidates for each result, of all but `exact`.
        dims: of `truncated`, the first so many dimensions name candidates; by default half.
    """
    if kind not in INDEX_KINDS:
        raise UserError(f"Unknown index '{kind}'.", f"Known: {', '.join(INDEX_KINDS)}.")
    if kind == "exact":
        return ExactIndex(ids, vectors)
    return ApproximateIndex(kind, ids, np.asarray(vectors, np.float32), oversample, dims)


class ApproximateIndex(ExactIndex):
    """An index that names candidates by a shorter way."""

    def __init__(
        self, kind: IndexKind, ids: Sequence[str], vectors: Floats, oversample: int, dims: int | None = None
    ) -> None:
        super().__init__(ids, vectors)
        self.kind, self.oversample = kind, oversample
        self._dims = dims or max(1, vectors.shape[1] // 2)
        self._rebuild()

    def add(self, ids: Sequence[str], vectors: Floats) -> None:
        """Add documents. The index is built anew: here it serves measurements, whose corpora are small."""
        super().add(ids, vectors)
        self.chunks = [np.concatenate([np.asarray(chunk, np.float32) for chunk in self.chunks])]
        self._rebuild()

    def remove(self, ids: Iterable[str]) -> None:
        """Remove documents."""
        super().remove(ids)
        self._rebuild()

    def _rebuild(self) -> None:
        self._rows = np.flatnonzero(self._live)
        if not len(self._rows):
            return  # nothing can be found, and some of these do not take nothing
        vectors = np.ascontiguousarray(self.chunks[0][self._rows], np.float32)
        match self.kind:
            case "hnsw":
                self._search = _hnswlib(vectors)
            case "faiss-hnsw" | "faiss-ivf":
                self._search = _faiss(vectors, self.kind)
            case "int8":
                self._search = _int8(vectors)
            case "binary":
                self._search = _binary(vectors)
            case _:
                self._search = _truncated(vectors, self._dims)

    def _candidates(self, queries: Floats, count: int) -> list[Rows]:
        found = []
        lacking: list[int] = []
        for number, places in enumerate(self._search(queries, min(count * self.oversample + SLACK, len(self._rows)))):
            places = np.unique(places[(places >= 0) & (places < len(self._rows))])
            if len(places) < count:  # filters, removals and sparse graphs leave some out
                lacking.append(number)
            found.append(self._rows[places])
        for number, rows in zip(lacking, super()._candidates(queries[lacking], count) if lacking else [], strict=True):
            found[number] = rows
        return found


def _hnswlib(vectors: Floats) -> Any:
    try:
        import hnswlib
    except ImportError:
        raise missing_extra("hnswlib", "The index hnsw") from None
    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=max(1, len(vectors)), ef_construction=_BREADTH_BUILD, M=_LINKS, random_seed=0)
    index.set_num_threads(1)  # so that the graph is the same every time
    index.add_items(vectors, np.arange(len(vectors)))

    def search(queries: Floats, count: int) -> list[Rows]:
        index.set_ef(max(_BREADTH, count))
        labels, _ = index.knn_query(queries, k=count, num_threads=1)
        return list(labels.astype(np.int64))

    return search


def _faiss(vectors: Floats, kind: str) -> Any:
    try:
        import faiss
    except ImportError:
        raise missing_extra("faiss", f"The index {kind}") from None
    dim = vectors.shape[1]
    if kind == "faiss-hnsw":
        index: Any = faiss.IndexHNSWFlat(dim, _LINKS, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction, index.hnsw.efSearch = _BREADTH_BUILD, _BREADTH
    else:
        lists = max(1, int(np.sqrt(len(vectors))))
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.nprobe = max(1, lists // 8)  # of the lists: more find more and take longer
    index.add(vectors)
    return lambda queries, count: list(index.search(np.ascontiguousarray(queries, np.float32), count)[1])


def _int8(vectors: Floats) -> Any:
    ranges = Ranges.of(vectors) if len(vectors) > 1 else Ranges(np.stack([vectors[0] - 1, vectors[0] + 1]))
    rough = ranges.decode(quantize(vectors, "int8", ranges))
    return lambda queries, count: _largest(queries @ rough.T, count)


def _binary(vectors: Floats) -> Any:
    """Candidates by the one-bit codes' agreement with the whole query: the sum of its values under the code's signs."""
    dim = vectors.shape[1]
    signs = np.unpackbits(quantize(vectors, "ubinary").view(np.uint8), axis=-1)[:, :dim].astype(np.float32) * 2 - 1
    return lambda queries, count: _largest(queries @ signs.T, count)


def _truncated(vectors: Floats, dims: int) -> Any:
    short = vectors[:, :dims] / np.maximum(np.linalg.norm(vectors[:, :dims], axis=1, keepdims=True), 1e-12)
    return lambda queries, count: _largest(queries[:, :dims] @ short.T, count)


def _largest(scores: Floats, count: int) -> list[Rows]:
    if count >= scores.shape[1]:
        return [np.arange(scores.shape[1])] * len(scores)
    return list(np.argpartition(-scores, count - 1, axis=1)[:, :count])
