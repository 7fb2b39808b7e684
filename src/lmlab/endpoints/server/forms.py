"""How the two kinds of requests write their answers: whole, or as the events of a stream."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any, Protocol

from lmlab.data import Tokenizer
from lmlab.endpoints.client.token_log import TextOffsets, Token
from lmlab.endpoints.engine.tools import MOST_CALLS, read_calls
from lmlab.endpoints.server.answers import chat_log_probs, completion_log_probs, prompt_tokens
from lmlab.models import PromptScores


class Form(Protocol):
    """What differs between chat and completions.

    Attributes:
        id: of the answer.
        whole, chunk: what its objects are called.
        log_probs: whether tokens are reported.
    """

    id: str
    whole: str
    chunk: str
    log_probs: bool

    def opening(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before anything else."""

    def before(self, index: int, scores: PromptScores | None) -> tuple[str, list[Token]]:
        """What stands before the new text of a choice."""

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str) -> dict[str, Any]:
        """A choice as a whole."""

    def piece(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None) -> list[dict[str, Any]]:
        """The parts of a stream that say what has been added to a choice."""


class ChatForm:
    """Of `/v1/chat/completions`.

    Arguments:
        tools: names of the functions that the model may call. An answer that may be a call is told when it is whole.
        most_calls: of one answer.
    """

    whole, chunk = "chat.completion", "chat.completion.chunk"

    def __init__(
        self, tokenizer: Tokenizer, log_probs: bool, tools: Sequence[str] = (), most_calls: int = MOST_CALLS
    ) -> None:
        self.id, self.tokenizer, self.log_probs = f"chatcmpl-{uuid.uuid4().hex}", tokenizer, log_probs
        self._tools, self._most_calls = list(tools), most_calls
        self._held: dict[int, tuple[str, list[Token]]] = {}

    def opening(self, index: int) -> dict[str, Any] | None:
        return self._part(index, {"role": "assistant", "content": ""}, (), None)

    def before(self, index: int, scores: PromptScores | None) -> tuple[str, list[Token]]:
        return "", []

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._tools and (calls := read_calls(text, self._tools, self._most_calls)):
            message |= {"content": None, "tool_calls": calls}
            finish_reason = "tool_calls"
        return {"index": index, "message": message, "logprobs": self._reported(tokens), "finish_reason": finish_reason}

    def piece(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None) -> list[dict[str, Any]]:
        if self._tools:
            before, held = self._held.get(index, ("", []))
            text, tokens = before + text, [*held, *tokens]
            if finish_reason is None:
                self._held[index] = text, tokens
                return []
            if calls := read_calls(text, self._tools, self._most_calls):
                numbered = [{"index": number, **call} for number, call in enumerate(calls)]
                called = self._part(index, {"tool_calls": numbered}, tokens, None)
                return [called, self._part(index, {}, (), "tool_calls")]
        parts = [self._part(index, {"content": text}, tokens, None)] if text or (tokens and self.log_probs) else []
        return parts if finish_reason is None else [*parts, self._part(index, {}, (), finish_reason)]

    def _part(
        self, index: int, delta: dict[str, Any], tokens: Sequence[Token], finish_reason: str | None
    ) -> dict[str, Any]:
        return {
            "index": index,
            "delta": delta,
            "logprobs": self._reported(tokens) if tokens or finish_reason else None,
            "finish_reason": finish_reason,
        }

    def _reported(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        return chat_log_probs(self.tokenizer, tokens) if self.log_probs else None


class CompletionForm:
    """Of `/v1/completions`.

    Arguments:
        top: how many likely tokens are reported at each place; None for no report of tokens.
        echoed: the prompts, as text and as ids, if they are to be repeated.
        samples: choices of each prompt.
    """

    whole = chunk = "text_completion"

    def __init__(
        self, tokenizer: Tokenizer, top: int | None, echoed: Sequence[tuple[str, Sequence[int]]] | None, samples: int
    ) -> None:
        self.id, self.tokenizer, self.log_probs = f"cmpl-{uuid.uuid4().hex}", tokenizer, top is not None
        self._top, self._echoed, self._samples = top, echoed, samples
        self._offsets: dict[int, TextOffsets] = {}

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def before(self, index: int, scores: PromptScores | None) -> tuple[str, list[Token]]:
        if self._echoed is None:
            return "", []
        text, ids = self._echoed[index // self._samples]
        return text, prompt_tokens(ids, scores)

    def choice(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None) -> dict[str, Any]:
        reported = None
        if self.log_probs:
            offsets = self._offsets.setdefault(index, TextOffsets(self.tokenizer)).of([token.id for token in tokens])
            reported = completion_log_probs(self.tokenizer, tokens, offsets, with_top=bool(self._top))
        return {"index": index, "text": text, "logprobs": reported, "finish_reason": finish_reason}

    def piece(self, index: int, text: str, tokens: Sequence[Token], finish_reason: str | None) -> list[dict[str, Any]]:
        if not text and finish_reason is None and not (tokens and self.log_probs):
            return []
        return [self.choice(index, text, tokens, finish_reason)]
