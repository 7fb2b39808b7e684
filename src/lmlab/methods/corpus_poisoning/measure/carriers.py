"""Which tokens of a passage carry its similarity with a query."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lmlab.retrieval import AnyEncoder, TwoTowerEncoder


def carriers(encoder: AnyEncoder, text: str, query_H: NDArray[np.float32], most: int = 8) -> list[tuple[str, float]]:
    """The tokens without which a passage loses most of its similarity with a query, and what it loses: exact, by
    leaving out one token at a time.
    """
    documents = encoder.documents if isinstance(encoder, TwoTowerEncoder) else encoder
    ids = documents.tokenize([text])[0]
    special = documents.tokenizer.special_ids
    places = [place for place, id in enumerate(ids) if id not in special]
    if not places:
        return []
    rows = [ids, *([*ids[:place], *ids[place + 1 :]] for place in places)]
    similar = documents.encode_rows(rows) @ query_H
    losses = similar[0] - similar[1:]
    pieces = documents.tokenizer.pieces([ids[place] for place in places])
    order = np.argsort(-losses, kind="stable")[:most]
    return [(pieces[number], float(losses[number])) for number in order]
