"""The tokens behind a text: how each is spelled, where it starts, and which of them a stop string cut off."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass

from lmlab.data import Tokenizer
from lmlab.models.generation.continuation import TopTokens


@dataclass(frozen=True)
class Token:
    """A token with what the model said of it; `log_prob` is None for the first one of a prompt."""

    id: int
    log_prob: float | None
    top: TopTokens
    start: int


class TextOffsets:
    """Where tokens start in their text, in characters.

    Attributes:
        place: where the next one starts.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer, self._decoder, self.place = tokenizer, codecs.getincrementaldecoder("utf-8")("replace"), 0

    def of(self, ids: Sequence[int]) -> list[int]:
        """One number a token, in order; the next call goes on behind them."""
        offsets = []
        for id in ids:
            offsets.append(self.place)
            if id not in self._tokenizer.special_ids:
                self.place += len(self._decoder.decode(self._tokenizer.token_bytes(id)))
        return offsets


class TokenLog:
    """The tokens behind a text that grows: a token is told of once the text reaches it, and never if a stop string cut
    it off.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._offsets, self._waiting, self._given = TextOffsets(tokenizer), list[Token](), 0

    def grow(
        self, text: str, ids: Sequence[int], log_probs: Sequence[float | None], top: Sequence[TopTokens], done: bool
    ) -> list[Token]:
        """Add text and tokens; get the tokens that the text has reached.

        Arguments:
            done: no more will come: what the text does not reach was cut off, unless the text is whole.
        """
        for number, (id, start) in enumerate(zip(ids, self._offsets.of(ids), strict=True)):
            self._waiting.append(Token(id, log_probs[number], top[number] if top else [], start))
        self._given += len(text)
        whole = done and self._given >= self._offsets.place
        told = [token for token in self._waiting if whole or token.start < self._given]
        self._waiting = self._waiting[len(told) :]
        return told


def spelling(tokenizer: Tokenizer, id: int) -> str:
    """The text of a token; for a part of a character its bytes, as `bytes:\\xe2\\x80`."""
    raw = tokenizer.token_bytes(id)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
