"""BM25 (Robertson et al. 1994; Lucene's idf, which is never negative) by `bm25s`, whose scores are computed when the
index is made.

Words, not token ids, are given to the library, and scores are read by our own rule (`exact`), so that results are as of
every other index here: a query without a known word finds nothing, ties go by id.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError, missing_extra
from lmlab.retrieval.search.exact import Hits, tie_order
from lmlab.words import counted

Method = Literal["lucene", "robertson", "atire", "bm25+", "bm25l"]

_WORD = re.compile(r"\w+", re.UNICODE)
_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this"
    " to was will with"
)
ENGLISH_STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Lucene's list."""


def words(text: str, stop_words: frozenset[str] = frozenset()) -> list[str]:
    """The words of a text, lower-cased, without stop words."""
    return [word for word in _WORD.findall(text.lower()) if word not in stop_words]


class BM25:
    """An index of words.

    Arguments:
        k1, b: saturation of counts, and how far length counts.
        stop_words: words that are left out; none by default.
    """

    def __init__(
        self,
        ids: Sequence[str],
        texts: Sequence[str],
        k1: float = 1.2,  # Lucene's, as b is
        b: float = 0.75,
        method: Method = "lucene",
        stop_words: frozenset[str] = frozenset(),
    ) -> None:
        try:
            import bm25s
        except ImportError:
            raise missing_extra("bm25s", "BM25") from None
        if len(ids) != len(texts):
            raise ValueError(f"{counted(len(ids), 'ids')} for {counted(len(texts), 'texts')}")
        self.ids, self.stop_words = list(ids), stop_words
        self._order = tie_order(self.ids)
        self._live = np.ones(len(ids), bool)
        vocabulary: dict[str, int] = {}
        rows = [[vocabulary.setdefault(word, len(vocabulary)) for word in words(text, stop_words)] for text in texts]
        self._vocabulary = vocabulary
        self._index: Any = None
        if vocabulary:
            self._index = bm25s.BM25(method=method, k1=k1, b=b, backend="numpy")
            self._index.index((rows, dict(vocabulary)), show_progress=False)

    def __len__(self) -> int:
        """How many documents are live."""
        return int(self._live.sum())

    def remove(self, ids: Sequence[str]) -> None:
        """Remove documents from results. Statistics of words stay as they are."""
        place = {id: row for row, id in enumerate(self.ids)}
        for id in ids:
            if id not in place:
                raise UserError(f"The index holds no document '{id}'.")
            self._live[place[id]] = False

    def scores(self, query: str) -> NDArray[np.float32]:
        """The score of every document, [N]; 0 where no word is shared."""
        known = [self._vocabulary[word] for word in words(query, self.stop_words) if word in self._vocabulary]
        if not known:
            return np.zeros(len(self.ids), np.float32)
        found: NDArray[np.float32] = self._index.get_scores_from_ids(known)
        return found

    def topk(self, queries: Sequence[str], k: int) -> Hits:
        """The k best documents of each query; those with score 0 share no word and are filled in by the same rule."""
        if k < 1:
            raise UserError(f"k is {k}; at least 1 result must be asked for.")
        count = min(k, len(self))
        rows = np.zeros((len(queries), count), np.int64)
        scores = np.zeros((len(queries), count), np.float32)
        live = np.flatnonzero(self._live)
        for number, query in enumerate(queries if count else []):
            found = self.scores(query)[live]
            border = np.partition(found, len(found) - count)[len(found) - count]
            places = np.flatnonzero(found >= border)
            best = places[np.lexsort((-self._order[live[places]], -found[places]))[:count]]
            rows[number], scores[number] = live[best], found[best]
        return Hits(rows, scores, k)

    def run(self, query_ids: Sequence[str], queries: Sequence[str], k: int) -> dict[str, dict[str, float]]:
        """Query id -> document id -> score, of documents that share a word with the query."""
        found = self.topk(queries, k).run(query_ids, self.ids)
        return {query: {doc: score for doc, score in each.items() if score > 0} for query, each in found.items()}
