"""The bodies of answers: what the model wrote, in the form of the protocol."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lmlab.data import Tokenizer
from lmlab.endpoints.client.token_log import Token, spelling
from lmlab.endpoints.engine.engine import Job
from lmlab.models import PromptScores

_LEAST = -9999.0  # in place of minus infinity, which JSON lacks


def chat_log_probs(tokenizer: Tokenizer, tokens: Sequence[Token]) -> dict[str, Any]:
    """The `logprobs` of a choice in a chat."""

    def entry(id: int, log_prob: float | None) -> dict[str, Any]:
        return {
            "token": spelling(tokenizer, id),
            "logprob": _finite(log_prob),
            "bytes": list(tokenizer.token_bytes(id)),
        }

    rows = [
        entry(token.id, token.log_prob) | {"top_logprobs": [entry(*each) for each in token.top]} for token in tokens
    ]
    return {"content": rows, "refusal": None}


def completion_log_probs(
    tokenizer: Tokenizer, tokens: Sequence[Token], offsets: Sequence[int], with_top: bool
) -> dict[str, Any]:
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


def usage(jobs: Sequence[Job], completion: int) -> dict[str, Any]:
    """Token counts; prompts count once, however many samples they have."""
    prompt, cached = sum(len(job.prompt) for job in jobs), sum(job.cached_tokens for job in jobs)
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return counts | {"prompt_tokens_details": {"cached_tokens": cached}}


def _finite(log_prob: float | None) -> float | None:
    return log_prob if log_prob is None or math.isfinite(log_prob) else _LEAST
