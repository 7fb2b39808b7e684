"""What an inserter can post is text: which tokens survive being written and read again, and how ids are spelled.

The reference optimizes ids that no text has ([MASK], [unused1], pieces of
words).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lmlab.errors import UserError
from lmlab.retrieval.encoders.words import EncoderTokenizer

Words = Literal["all", "letters"]


def spell(tokenizer: EncoderTokenizer, ids: Sequence[int]) -> str:
    """The text of ids. WordPiece's own decoder contracts words ("do not"), which read again are other ids; here words
    are joined by spaces and pieces to their words.
    """
    pieces = tokenizer.pieces(ids)
    if not _is_word_piece(tokenizer):
        return tokenizer.decode(ids)
    return " ".join(pieces).replace(" ##", "")


def reads_back(tokenizer: EncoderTokenizer, ids: Sequence[int] | NDArray[np.int64], text: str | None = None) -> bool:
    """Whether a text, by default that of the ids, becomes these ids."""
    ids = [int(id) for id in ids]
    return tokenizer.inner([spell(tokenizer, ids) if text is None else text])[0] == ids


def allowed_ids(
    tokenizer: EncoderTokenizer, words: Words = "all", forbidden: Collection[int] = ()
) -> NDArray[np.int64]:
    """The ids that stand for text of their own: no special or unused tokens, no pieces of words, and each is what its
    own spelling becomes. Sorted.

    Arguments:
        words: `letters` keeps words of letters alone, as an adaptive attack does that wants to look natural.

    Raises:
        UserError: no id is left.
    """
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    shut = tokenizer.special_ids | set(forbidden)
    whole = _is_word_piece(tokenizer)
    kept = [
        id
        for id, piece in enumerate(pieces)
        if piece and id not in shut and not piece.startswith("[unused") and not (whole and piece.startswith("##"))
    ]
    texts = [pieces[id] if whole else tokenizer.decode([id]) for id in kept]
    found = [id for id, text, ids in zip(kept, texts, tokenizer.inner(texts), strict=True) if ids == [id]]
    if words == "letters":
        spelled = dict(zip(kept, texts, strict=True))
        found = [id for id in found if spelled[id].strip().isalpha() and len(spelled[id].strip()) > 1]
    if not found:
        raise UserError("No token of the encoder's vocabulary stands for a text of its own.")
    return np.array(found, np.int64)


def _is_word_piece(tokenizer: EncoderTokenizer) -> bool:
    return type(tokenizer.backend.model).__name__ == "WordPiece"
