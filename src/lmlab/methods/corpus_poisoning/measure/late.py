"""What crafted passages reach against a retriever of late interaction: clean results and the passages' own scores.

Vectors of tokens are a hundred times those of documents; nothing of them is stored.

Shapes: Q queries, A passages.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.methods.corpus_poisoning.measure.thresholds import CleanHits, clean_hits
from lmlab.methods.corpus_poisoning.setup import Target
from lmlab.retrieval import LateIndex, Queries, maxsim


def late_scores(
    target: Target, asked: Queries, texts: Sequence[str], depth: int, index: str = "exact"
) -> tuple[CleanHits, NDArray[np.float32]]:
    """Clean results of queries to some depth, and the score of each passage with each query, [Q, A].

    Raises:
        UserError: an index is asked for that searches one vector for a text.
    """
    if index != "exact":
        raise UserError(f"The index {index} searches one vector for a text; late interaction has more.", "Use exact.")
    encoder, precision = target.retriever.spec.load_late(), target.retriever.precision
    documents = encoder.encode_text(target.data.corpus.texts, "document", precision)
    queries = encoder.encode_text(asked.texts, "query", precision)
    found = LateIndex(target.data.corpus.ids, documents)
    hits = clean_hits(found, queries, asked, min(depth, len(target.data.corpus)))
    passages = encoder.encode_text(list(texts))
    scores = [[maxsim(query, passage) for passage in passages] for query in queries]
    return hits, np.array(scores, np.float32).reshape(len(queries), len(passages))
