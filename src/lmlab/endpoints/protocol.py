"""The part of the OpenAI protocol that lmlab speaks: chat requests, and the replies to them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from lmlab.files import json_value, sha256_json

Status = Literal[
    "ok", "content_filter", "context_length_exceeded", "refused", "tool_calls", "no_answer", "rejected", "failed"
]
FINAL: tuple[Status, ...] = ("ok", "content_filter", "context_length_exceeded")
_BYTES_A_TOKEN = 4  # of English text under the usual tokenizers: an estimate; bounds count each byte as a token
_TOKENS_A_MESSAGE = 8  # its role and the marks around it, in the usual chat templates
_LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass(frozen=True)
class ChatRequest:
    """One request to `/chat/completions`; two that are equal are one question, which is paid for once.

    Attributes:
        messages: dictionaries with `role` and `content`, which is a text or a list of the protocol's parts.
        max_tokens: most tokens of an answer.
        n: answers.
        top_logprobs: report the log-probabilities of so many tokens at each place.
        logit_bias: token ids (as text) to what is added to their logits.
        sample: number of a repetition; it is not sent, and only keeps repetitions of one question apart.
        extra: further fields of the body, such as `reasoning_effort`; null leaves out a field that is sent otherwise.
    """

    messages: tuple[dict[str, Any], ...]
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
    extra: dict[str, Any] | None = None

    def key(self, model: str) -> str:
        """The hexadecimal SHA-256 of all that can change the answer: the model's name and the request, neither address
        nor secret.
        """
        fields = asdict(self)
        if not self.extra:  # a request without them has the key that it had before there were any
            del fields["extra"]
        return sha256_json({"model": model, **fields})

    def body(self, model: str, length_field: str = "max_tokens") -> dict[str, Any]:
        """The JSON to send.

        Arguments:
            length_field: what the endpoint calls `max_tokens`.
        """
        body: dict[str, Any] = {"model": model, "messages": list(self.messages), length_field: self.max_tokens}
        body |= {"temperature": self.temperature, "top_p": self.top_p, "n": self.n}
        if self.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": self.top_logprobs}
        optional = {
            "stop": list(self.stop),
            "seed": self.seed,
            "logit_bias": self.logit_bias,
            "response_format": self.response_format,
        }
        body |= {name: value for name, value in optional.items() if value not in (None, [])}
        if not self.extra:
            return body
        left_out = {
            length_field if name == "max_tokens" else name for name, value in self.extra.items() if value is None
        }
        body |= {name: value for name, value in self.extra.items() if value is not None}
        return {name: value for name, value in body.items() if name not in left_out}

    def answers(self) -> int:
        """How many answers are asked for, whether by `n` or by a further field."""
        extra = self.extra or {}
        return _whole(extra["n"]) or 1 if "n" in extra else self.n

    def most_new_tokens(self) -> int | None:
        """The tokens of all answers together at most, by what is sent; None where nothing bounds them."""
        lengths: dict[str, Any] = {"max_tokens": self.max_tokens}
        lengths |= {name: value for name, value in (self.extra or {}).items() if name in _LENGTHS}
        bounds = [found for value in lengths.values() if (found := _whole(value)) is not None]
        return self.answers() * max(bounds) if bounds else None

    def most_prompt_tokens(self) -> int:
        """An upper bound for byte-level tokenizers: every byte a token, and a few for the marks of each message. Tools
        and schemas become part of the prompt.
        """
        beside = [value for value in (self.response_format, self.extra) if value]
        return sum(len(spelled(message).encode()) + _TOKENS_A_MESSAGE for message in self.messages) + sum(
            len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")) for value in beside
        )

    def likely_prompt_tokens(self) -> int:
        """An estimate at four bytes a token."""
        return sum(estimated_tokens(spelled(message)) + _TOKENS_A_MESSAGE for message in self.messages)


def _whole(value: Any) -> int | None:
    return int(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def message_text(message: dict[str, Any]) -> str:
    """The text of a message; of a list of parts that of its texts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def spelled(message: dict[str, Any]) -> str:
    """All that a message holds besides its role, to be counted."""
    content = message.get("content")
    if isinstance(content, str) and len(message) == 2:
        return content
    return json.dumps({name: value for name, value in message.items() if name != "role"}, ensure_ascii=False)


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
    """One answer.

    Attributes:
        text: empty where the model refused, called a tool, or did nothing but reason.
        log_probs: None where none were asked for or given.
        reasoning: what the model thought before, where the endpoint tells it apart from the answer.
        tool_calls: the tools that it calls, as the protocol has them.
    """

    text: str
    finish_reason: str | None
    log_probs: tuple[TokenLogProb, ...] | None = None
    reasoning: str | None = None
    tool_calls: tuple[dict[str, Any], ...] = ()


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
            `refused`, by the model itself; `tool_calls`, tools are called in place of an answer; `no_answer`, the model
            only reasoned, or said nothing; `rejected`, the endpoint takes no such request; `failed`, given up after all
            retries. Only the first three are cached; what the others cost counts all the same.
        error: what the endpoint or the model said, where it did not answer.
        seconds: from the sending to the end of the last attempt, without waits.
        attempts: requests sent; 0 if the reply came from the cache.
        cost_usd: None where the price is not known; 0 if the reply came from the cache.
        before: requests and cost of a reply from the cache, when it was asked for.
        paid_usd, sent: what it cost, and the requests that it took, when it was asked for, also by an earlier run: what
            rows tell, so that those of a run that was killed and resumed are those of one that was not.
    """

    status: Status
    choices: tuple[Choice, ...] = ()
    usage: Usage = Usage()
    error: str | None = None
    seconds: float = 0.0
    attempts: int = 1
    cost_usd: float | None = None
    before: tuple[int, float | None] | None = None

    @property
    def paid_usd(self) -> float | None:
        return self.cost_usd if self.before is None else self.before[1]

    @property
    def sent(self) -> int:
        return self.attempts if self.before is None else self.before[0]

    @property
    def text(self) -> str | None:
        """The first answer, or None."""
        return self.choices[0].text if self.choices else None

    @property
    def cached(self) -> bool:
        return self.attempts == 0

    def to_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "before"}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Reply:
        return cls.from_dict(json_value(text))

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Reply:
        raw = dict(raw)
        choices = tuple(
            Choice(
                c["text"],
                c["finish_reason"],
                _kept_log_probs(c["log_probs"]),
                c.get("reasoning"),
                tuple(c.get("tool_calls") or ()),
            )
            for c in raw.pop("choices")
        )
        return cls(choices=choices, usage=Usage(**raw.pop("usage")), **raw)


def _kept_log_probs(rows: list[dict[str, Any]] | None) -> tuple[TokenLogProb, ...] | None:
    return (
        None
        if rows is None
        else tuple(TokenLogProb(r["token"], r["log_prob"], tuple((t, p) for t, p in r["top"])) for r in rows)
    )
