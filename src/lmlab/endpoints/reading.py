"""From the bodies that endpoints send to replies: answers, refusals, and errors, in the dialects of many providers."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from lmlab.endpoints.protocol import ChatRequest, Choice, Reply, Status, TokenLogProb, Usage, estimated_tokens

_ERROR_CHARACTERS = 500  # some endpoints answer with a page of HTML, or with the whole request
_NO_CHANCE = -9999.0  # as OpenAI's API spells a log-probability that is too low to tell
_REASONING_PARTS = ("thinking", "reasoning", "summary_text", "reasoning_text")
_FILTERED = ("content_filter", "content_policy", "content_management", "responsibleai", "data_inspection", "moderation")
_FLAGGED = re.compile(r"\bflagged\b|content.(?:policy|filter|management)|(?:requires|by) moderation", re.IGNORECASE)
_FILTERED_ENDS = re.compile(
    r"content.?filter|safety|recitation|blocklist|prohibited|\bspii\b|sensitive|guardrail|moderation", re.IGNORECASE
)
_BROKEN_ENDS = re.compile(r"error|abort|cancel|insufficient|unavailable|time.?out", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context.?length|context.?window|context.?size|exceed\w* (?:the )?(?:available |model'?s? )?context"
    r"|(?:prompt|input|request) (?:is )?too (?:long|large)|maximum (?:input|prompt) length"
    r"|token count .{0,40}exceed|reduce the length of the (?:messages|prompt|input)|range of input length"
    r"|max_new_tokens\W+must be",
    re.IGNORECASE,
)
_RATE = re.compile(r"rate.?limit|per.?(?:minute|min|day)\b|\bTPM\b", re.IGNORECASE)
_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")
_NO_MONEY = re.compile(
    r"insufficient.?(?:quota|balance|credit|funds)|billing.?(?:hard.?limit|not.?active)|credit balance"
    r"|exceeded.(?:your.)?current.quota|out of credits|payment required|arrearage",
    re.IGNORECASE,
)
_UNSUPPORTED_CODES = ("unsupported_parameter", "unsupported_value", "unknown_parameter", "extra_forbidden")
_UNSUPPORTED = re.compile(
    r"unsupported|not support|unrecognized|unknown (?:parameter|field|name|argument)|unexpected keyword"
    r"|extra inputs|extra fields|not (?:permitted|allowed)|cannot (?:both )?be (?:used|specified|set)|is deprecated",
    re.IGNORECASE,
)
_NOT_SETTINGS = ("model", "messages", "stream")


class Malformed(ValueError):
    """A body that is not what the protocol promises."""


def parse_reply(body: Any, request: ChatRequest) -> Reply:
    """Read the body of a successful response.

    Raises:
        Malformed: it is not a chat completion with at least one choice.
    """
    try:
        details = _mapping(_mapping(body.get("usage")).get("completion_tokens_details"))
        read = [_choice(raw, bool(details.get("reasoning_tokens"))) for raw in body["choices"]]
        choices = tuple(choice for choice, _, _ in read)
        usage = _usage(body.get("usage"), choices, request)
    except Malformed:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Malformed(f"the body is no chat completion ({type(error).__name__}: {error})") from None
    if not choices:
        raise Malformed("the body has no choices")
    statuses = [status for _, status, _ in read]
    if "ok" in statuses:
        return Reply("ok", choices, usage)
    status = Counter(statuses).most_common(1)[0][0]
    return Reply(status, choices, usage, error=next((said for _, each, said in read if each == status), None))


def _choice(raw: dict[str, Any], reasoned: bool) -> tuple[Choice, Status, str | None]:
    """An answer, what it is, and what the model says where it is none.

    Arguments:
        reasoned: the usage counts tokens of reasoning, which some endpoints hide.
    """
    finish = raw.get("finish_reason")
    if raw.get("error") or _BROKEN_ENDS.search(str(finish or "")):
        raise Malformed(f"the answer broke off ({error_message(raw.get('error') or finish)})")
    message = raw["message"]
    text, refusal, reasoning = _content(message.get("content"))
    refusal = message.get("refusal") or refusal
    reasoning = message.get("reasoning_content") or message.get("reasoning") or reasoning
    calls = list(message.get("tool_calls") or ())
    if message.get("function_call"):
        calls.append({"type": "function", "function": message["function_call"]})
    if not all(isinstance(call, dict) for call in calls):
        raise TypeError("a tool call is no object")
    if "content" not in message and not (refusal or reasoning or calls):
        raise KeyError("content")
    log_probs = _log_probs(raw.get("logprobs"))
    # Nothing within the length that was allowed is what hidden reasoning leaves; a token may be half a character.
    nothing = message.get("content") is None or (finish == "length" and not text and not log_probs)
    status, said = _status(text, nothing, finish, refusal, reasoning or reasoned, calls)
    kept = text if status in ("ok", "content_filter") else ""
    thought = reasoning if isinstance(reasoning, str) else None
    return Choice(kept, finish, log_probs, thought, tuple(calls)), status, said


def _content(content: Any) -> tuple[str, str | None, str | None]:
    """The text of a content, a refusal and thoughts among its parts."""
    if content is None or isinstance(content, str):
        return content or "", None, None
    if not isinstance(content, list):
        raise TypeError("the content is neither text nor a list of parts")
    texts, refusals, thoughts = [], [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") == "refusal":
            refusals.append(str(part.get("refusal") or part.get("text") or "refused"))
        elif part.get("type") in _REASONING_PARTS:
            thoughts.append(_thought(part))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise TypeError(f"a part of the content is of the type {part.get('type')!r}")
    return "".join(texts), "".join(refusals) or None, "".join(thoughts) or None


def _thought(part: dict[str, Any]) -> str:
    inner = part.get("thinking") or part.get("reasoning") or part.get("text") or ""
    if isinstance(inner, list):
        return "".join(each if isinstance(each, str) else str(each.get("text") or "") for each in inner)
    return str(inner)


def _status(
    text: str, nothing: bool, finish: Any, refusal: Any, reasoning: Any, calls: Sequence[dict[str, Any]]
) -> tuple[Status, str | None]:
    if _FILTERED_ENDS.search(str(finish or "")):
        return "content_filter", None
    if calls or finish in ("tool_calls", "function_call"):
        names = [str((call.get("function") or {}).get("name") or call.get("type")) for call in calls]
        return "tool_calls", f"the model calls {', '.join(names) or 'a tool'}"
    if text.strip():
        return "ok", None
    if refusal or finish == "refusal":
        return "refused", error_message(refusal or "the model refuses")
    if reasoning or nothing:
        long = " within max_tokens" if finish == "length" else ""
        return "no_answer", f"the model reasoned and gave no answer{long}" if reasoning else f"no content{long}"
    return "ok", None


def _log_probs(raw: dict[str, Any] | None) -> tuple[TokenLogProb, ...] | None:
    if not raw or raw.get("content") is None:
        return None
    return tuple(
        TokenLogProb(
            t["token"],
            _log_prob(t["logprob"]),
            tuple((o["token"], _log_prob(o["logprob"])) for o in t.get("top_logprobs") or ()),
        )
        for t in raw["content"]
    )


def _log_prob(value: Any) -> float:
    """Finite: no chance at all, which some spell as -Infinity or null, is the number that most send for it."""
    found = _NO_CHANCE if value is None else float(value)
    if math.isnan(found):
        raise ValueError("a log-probability is not a number")
    return max(found, _NO_CHANCE)


def _usage(raw: Any, choices: tuple[Choice, ...], request: ChatRequest) -> Usage:
    """What the endpoint counts; what it leaves out, or what is no count, is estimated: the answer is good all the
    same.
    """
    raw = _mapping(raw)
    prompt, completion, total = (_count(raw.get(f"{name}_tokens")) for name in ("prompt", "completion", "total"))
    if completion is None and prompt is not None and total is not None and total >= prompt:
        completion = total - prompt
    cached = _count(_mapping(raw.get("prompt_tokens_details")).get("cached_tokens")) or 0
    written = sum(estimated_tokens(choice.text + (choice.reasoning or "")) for choice in choices)
    asked = request.likely_prompt_tokens() if prompt is None else prompt
    return Usage(
        asked,
        written if completion is None else completion,
        min(cached, asked),
        estimated=prompt is None or completion is None,
    )


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none."""
    try:
        found = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return found if found >= 0 else None


def error_of(body: Any) -> Any:
    """The error within a body: its object, or whatever the endpoint sent in its place."""
    if isinstance(body, list) and len(body) == 1:  # as Google's endpoints wrap it
        body = body[0]
    return (body.get("error") or body) if isinstance(body, dict) else body


def refusal(error: Any, secrets: Collection[str] = ()) -> Reply | None:
    """The verdict that an error of the protocol (its object, or only its message) is, if it will not change; None for
    any other.
    """
    said, reason = error_message(error, secrets), _reason(error).lower()
    if any(word in reason for word in _FILTERED) or _FLAGGED.search(said):
        return Reply("content_filter", error=said)
    if _RATE.search(f"{reason} {said}"):  # "request too large" is also said of the tokens of a minute
        return None
    if "context_length" in reason or "context_size" in reason or _TOO_LONG.search(said):
        return Reply("context_length_exceeded", error=said)
    return None


def out_of_money(error: Any) -> bool:
    """Whether an error says that the account has no credit left, which no repetition changes; one that says when to
    come again does not, in whatever words.
    """
    return retry_delay_s(error) is None and bool(_NO_MONEY.search(f"{_reason(error)} {error_message(error)}"))


def retry_delay_s(error: Any) -> float | None:
    """Seconds to wait by the details of an error, where Google's endpoints say so; None for none."""
    details = error.get("details") if isinstance(error, dict) else None
    for detail in details if isinstance(details, list) else ():
        if isinstance(detail, dict) and (found := _DELAY.fullmatch(str(detail.get("retryDelay")))):
            return float(found[1])
    return None


def unsupported_parameter(error: Any, sent: Collection[str]) -> str | None:
    """The field of the request that the endpoint does not know, or not with this value; None for any other error.

    Arguments:
        sent: names of the fields of the body.
    """
    said, reason = error_message(error), _reason(error)
    if not (any(code in reason for code in _UNSUPPORTED_CODES) or _UNSUPPORTED.search(said)):
        return None
    settings = [name for name in sent if name not in _NOT_SETTINGS]
    named = str(error.get("param") or "").partition(".")[0] if isinstance(error, dict) else ""
    if named in settings:
        return named
    quoted = [name for name in settings if re.search(rf"[`'\"]{re.escape(name)}[`'\"]", said)]
    worded = [name for name in settings if len(name) > 1 and re.search(rf"\b{re.escape(name)}\b", said)]
    return next(iter([*quoted, *worded]), None)


def _reason(error: Any) -> str:
    """The codes of an error."""
    if not isinstance(error, dict):
        return ""
    inner = error.get("innererror")
    codes = [error.get("code"), error.get("type"), inner.get("code") if isinstance(inner, dict) else None]
    return " ".join(str(code) for code in codes if code is not None)


def error_message(error: Any, secrets: Collection[str] = ()) -> str:
    """What an error says, in one line of at most 500 characters, without the secrets should it repeat them."""
    text = str(error.get("message") or error if isinstance(error, dict) else error)
    for secret in secrets:
        text = text.replace(secret, "***")
    return " ".join(text.split())[:_ERROR_CHARACTERS]
