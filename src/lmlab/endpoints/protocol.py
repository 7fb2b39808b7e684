"""The part of the OpenAI protocol that lmlab speaks: chat requests, and the replies to them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lmlab.files import json_value, sha256_json

Status = Literal["ok", "content_filter", "context_length_exceeded", "rejected", "failed"]
FINAL: tuple[Status, ...] = ("ok", "content_filter", "context_length_exceeded")
_BYTES_A_TOKEN = 4
_TOKENS_A_MESSAGE = 8
_ERROR_CHARACTERS = 500


class Malformed(ValueError):
    """A body that is not what the protocol promises."""


@dataclass(frozen=True)
class ChatRequest:
    """One request to `/chat/completions`; two that are equal are one question, which is paid for once.

    Attributes:
        messages: dictionaries with `role` and `content`.
        max_tokens: most tokens of an answer.
        n: answers.
        top_logprobs: report the log-probabilities of so many tokens at each place.
        logit_bias: token ids (as text) to what is added to their logits.
        sample: number of a repetition; it is not sent, and only keeps repetitions of one question apart.
    """

    messages: tuple[dict[str, str], ...]
    max_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    response_format: dict[str, Any] | None = None
    sample: int = 0

    def key(self, model: str) -> str:
        """The hexadecimal SHA-256 of all that can change the answer: the model's name and the request, neither address
        nor secret.
        """
        return sha256_json({"model": model, **asdict(self)})

    def body(self, model: str) -> dict[str, Any]:
        """The JSON to send."""
        body: dict[str, Any] = {"model": model, "messages": list(self.messages), "max_tokens": self.max_tokens}
        body |= {"temperature": self.temperature, "top_p": self.top_p, "n": self.n}
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        optional = {
            "stop": list(self.stop),
            "seed": self.seed,
            "logit_bias": self.logit_bias,
            "response_format": self.response_format,
        }
        return body | {name: value for name, value in optional.items() if value not in (None, [])}

    def most_prompt_tokens(self) -> int:
        """An upper bound for byte-level tokenizers: every byte a token, and a few for the marks of each message."""
        return sum(len(message["content"].encode()) + _TOKENS_A_MESSAGE for message in self.messages)

    def likely_prompt_tokens(self) -> int:
        """An estimate at four bytes a token."""
        return sum(estimated_tokens(message["content"]) + _TOKENS_A_MESSAGE for message in self.messages)


def estimated_tokens(text: str) -> int:
    return -(-len(text.encode()) // _BYTES_A_TOKEN)


@dataclass(frozen=True)
class TokenLogProb:
    """One token of an answer: its text, its natural-log probability, and the likeliest tokens at its place."""

    token: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Choice:
    """One answer; `log_probs` is None where none were asked for or given."""

    text: str
    finish_reason: str | None
    log_probs: tuple[TokenLogProb, ...] | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens; `cached` counts those of the prompt that the endpoint had kept.

    `estimated` where the endpoint reported nothing.
    """

    prompt: int = 0
    completion: int = 0
    cached: int = 0
    estimated: bool = False


@dataclass(frozen=True)
class Reply:
    """What became of a request.

    Attributes:
        status: `ok`; `content_filter` and `context_length_exceeded`, verdicts of the endpoint that will not change;
            `rejected`, another refusal of this request; `failed`, given up after all retries. The last two are never
            cached.
        error: what the endpoint said, where it did not answer.
        seconds: from the sending to the end of the last attempt, without waits.
        attempts: requests sent; 0 if the reply came from the cache.
        cost_usd: None where the price is not known.
    """

    status: Status
    choices: tuple[Choice, ...] = ()
    usage: Usage = Usage()
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 1
    cost_usd: float | None = None

    @property
    def text(self) -> str | None:
        """The first answer, or None."""
        return self.choices[0].text if self.choices else None

    @property
    def cached(self) -> bool:
        return self.attempts == 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Reply:
        return cls.from_dict(json_value(text))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Reply:
        raw = dict(raw)
        choices = tuple(
            Choice(c["text"], c["finish_reason"], _kept_log_probs(c["log_probs"])) for c in raw.pop("choices")
        )
        return cls(choices=choices, usage=Usage(**raw.pop("usage")), **raw)


def _kept_log_probs(rows: list[dict[str, Any]] | None) -> tuple[TokenLogProb, ...] | None:
    return (
        None
        if rows is None
        else tuple(TokenLogProb(r["token"], r["log_prob"], tuple((t, p) for t, p in r["top"])) for r in rows)
    )


def parse_reply(body: Any, request: ChatRequest) -> Reply:
    """Read the body of a successful response.

    Raises:
        Malformed: it is not a chat completion with at least one choice.
    """
    try:
        choices = tuple(_choice(raw) for raw in body["choices"])
        usage = _usage(body.get("usage"), choices, request)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"the body is no chat completion ({type(error).__name__}: {error})") from None
    if not choices:
        raise Malformed("the body has no choices")
    filtered = all(choice.finish_reason == "content_filter" for choice in choices)
    return Reply("content_filter" if filtered else "ok", choices, usage)


def _choice(raw: dict[str, Any]) -> Choice:
    text = raw["message"]["content"] or ""
    if not isinstance(text, str):
        raise TypeError("the content is not text")
    return Choice(text, raw.get("finish_reason"), _log_probs(raw.get("logprobs")))


def _log_probs(raw: dict[str, Any] | None) -> tuple[TokenLogProb, ...] | None:
    if not raw or raw.get("content") is None:
        return None
    return tuple(
        TokenLogProb(
            t["token"],
            float(t["logprob"]),
            tuple((o["token"], float(o["logprob"])) for o in t.get("top_logprobs") or ()),
        )
        for t in raw["content"]
    )


def _usage(raw: dict[str, Any] | None, choices: tuple[Choice, ...], request: ChatRequest) -> Usage:
    if not raw:
        return Usage(
            request.likely_prompt_tokens(), sum(estimated_tokens(choice.text) for choice in choices), estimated=True
        )
    details = raw.get("prompt_tokens_details") or {}
    return Usage(
        int(raw["prompt_tokens"]), int(raw.get("completion_tokens") or 0), int(details.get("cached_tokens") or 0)
    )


def refusal(error: Any, secret: str | None = None) -> Reply | None:
    """The verdict that an error of the protocol (its object, or only its message) is, if it will not change; None for
    any other.
    """
    said = error_message(error, secret)
    reason = f"{error.get('code')} {error.get('type')}" if isinstance(error, dict) else ""
    if "content_filter" in reason or "content_policy" in reason:
        return Reply("content_filter", error=said)
    if "context_length" in reason or "maximum context length" in said:
        return Reply("context_length_exceeded", error=said)
    return None


def error_message(error: Any, secret: str | None = None) -> str:
    """What an error says, in one line of at most 500 characters, without the secret should it repeat it."""
    text = str(error.get("message", error) if isinstance(error, dict) else error)
    return " ".join((text.replace(secret, "***") if secret else text).split())[:_ERROR_CHARACTERS]
