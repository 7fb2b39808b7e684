"""The bodies of answers: what the model wrote, in the form of the protocol."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lmlab.data import Tokenizer
from lmlab.models import PromptScores
from lmlab.models.decoding import TopTokens

_LEAST = -9999.0  # in place of minus infinity, which JSON lacks


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
    """The tokens behind a text that grows: a token is told of once the text reaches it, and never if a stop string cut it off."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._offsets, self._waiting, self._given = TextOffsets(tokenizer), list[Token](), 0

    def grow(self, text: str, ids: Sequence[int], log_probs: Sequence[float | None], top: Sequence[TopTokens], done: bool) -> list[Token]:
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


def chat_log_probs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """The `logprobs` of a choice in a chat."""

    def entry(id: int, log_prob: float | None) -> dict[str, Any]:
        return {"token": spelling(tokenizer, id), "logprob": _finite(log_prob), "bytes": list(tokenizer.token_bytes(id))}

    rows = [entry(token.id, token.log_prob) | {"top_logprobs": [entry(*each) for each in token.top]} for token in tokens]
    return {"content": rows, "refusal": None}


def completion_log_probs(tokenizer: Tokenizer, tokens: Sequence[Token], offsets: Sequence[int], with_top: bool) -> dict[str, Any]:
    """The `logprobs` of a choice of a completion.

    Arguments:
        offsets: where each token starts in the text, in characters.
        with_top: whether likely tokens were asked for; the token itself is always among them.
    """
    tops: list[dict[str, float | None] | None] = []
    for token in tokens:
        best: dict[str, float | None] = {}
        for id, log_prob in [*token.top, (token.id, token.log_prob)]:
            best.setdefault(spelling(tokenizer, id), _finite(log_prob))
        tops.append(None if token.log_prob is None or not with_top else best)
    return {
        "tokens": [spelling(tokenizer, token.id) for token in tokens],
        "token_logprobs": [_finite(token.log_prob) for token in tokens],
        "top_logprobs": tops if with_top else None,
        "text_offset": list(offsets),
    }


def prompt_tokens(prompt: Sequence[int], scores: PromptScores | None) -> list[Token]:
    """The tokens of a prompt that is repeated before its completion."""
    if scores is None:
        return []
    return [Token(id, scores.log_probs[number], scores.top[number], 0) for number, id in enumerate(prompt)]


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Token counts."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _finite(log_prob: float | None) -> float | None:
    return log_prob if log_prob is None or math.isfinite(log_prob) else _LEAST
