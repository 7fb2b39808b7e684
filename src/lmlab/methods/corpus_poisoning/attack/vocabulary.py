"""What an inserter can post is text: which tokens survive being written and read again, and how ids are spelled.

The reference optimizes ids that no text has ([MASK], [unused1], pieces of
words).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
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

    Of tokenizers that spell spaces (BPE, SentencePiece) these are words of letters, with the space before them or, to
    begin a text, without one: anything else may join its neighbors (`places_of`).

    Arguments:
        words: `letters` keeps words of letters alone, as an adaptive attack does that wants to look natural.

    Raises:
        UserError: no id is left.
    """
    starts, inside = _standing(tokenizer)
    found = sorted((starts.keys() | inside.keys()) - set(forbidden))
    if words == "letters":
        spelled = {**starts, **inside}
        found = [id for id in found if spelled[id].isalpha() and len(spelled[id]) > 1]
    if not found:
        raise UserError("No token of the encoder's vocabulary stands for a text of its own.")
    return np.array(found, np.int64)


def places_of(tokenizer: EncoderTokenizer, allowed_V: NDArray[np.int64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the allowed ids may begin a text, and which may follow others, [V] each. Of WordPiece all may both."""
    starts, inside = _standing(tokenizer)
    first, later = (np.isin(allowed_V, np.array(sorted(each), np.int64)) for each in (starts, inside))
    return first, later


@lru_cache(maxsize=8)
def _standing(tokenizer: EncoderTokenizer) -> tuple[dict[int, str], dict[int, str]]:
    """The ids that are read back at the beginning of a text, and those that are behind other words, with their words.

    Each is tried: written down and read again.
    """
    pieces = tokenizer.pieces(range(tokenizer.vocab_size))
    shut = tokenizer.special_ids
    kept = [id for id, piece in enumerate(pieces) if piece and id not in shut and not piece.startswith("[unused")]
    if _is_word_piece(tokenizer):
        kept = [id for id in kept if not pieces[id].startswith("##")]
        read = tokenizer.inner([pieces[id] for id in kept])
        found = {id: pieces[id] for id, ids in zip(kept, read, strict=True) if ids == [id]}
        return found, found
    words = {id: text.strip() for id in kept if (text := tokenizer.decode([id])).strip().isalpha()}
    texts = list(words.values())
    starts = {id: word for (id, word), ids in zip(words.items(), tokenizer.inner(texts), strict=True) if ids == [id]}
    if not starts:
        return {}, {}
    first = min(starts, key=lambda id: (len(starts[id]), id))
    behind = tokenizer.inner([f"{starts[first]} {text}" for text in texts])
    inside = {id: word for (id, word), ids in zip(words.items(), behind, strict=True) if ids == [first, id]}
    return starts, inside


def _is_word_piece(tokenizer: EncoderTokenizer) -> bool:
    return type(tokenizer.backend.model).__name__ == "WordPiece"
