"""One attempt at one request: HTTP to a reply, or to an error that says whether another attempt makes sense."""

from __future__ import annotations

import email.utils
import json
import time
from typing import Any

import httpx

from lmlab.endpoints.protocol import ChatRequest, Malformed, Reply, parse_reply
from lmlab.errors import UserError

_TRANSIENT = {408, 409, 425, 429}
_WRONG_ADDRESS = {301, 302, 307, 308, 404, 405}
_ERROR_CHARACTERS = 500


class Transient(Exception):
    """An attempt that failed for now.

    Attributes:
        retry_after_s: the shortest wait that the endpoint asks for.
        overloaded: it said that there are too many requests.
        answered: it answered, and so took no money for the attempt.
    """

    def __init__(self, message: str, *, retry_after_s: float = 0.0, overloaded: bool = False, answered: bool = True) -> None:
        super().__init__(message)
        self.retry_after_s, self.overloaded, self.answered = retry_after_s, overloaded, answered


async def send(http: httpx.AsyncClient, model: str, request: ChatRequest, *, stream: bool, secret: str | None) -> Reply:
    """Send a request once.

    Raises:
        Transient: no connection, a time-out, a body that breaks off or cannot be read, or a status that may change.
        UserError: the endpoint refuses the key, or there is none at this address.
    """
    started = time.perf_counter()
    try:
        reply = await (_streamed if stream else _whole)(http, model, request, secret)
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
        raise Transient(f"no connection ({_short(str(error) or type(error).__name__, secret)})") from None
    except httpx.TimeoutException:
        raise Transient("no reply in time", answered=False) from None
    except (httpx.TransportError, httpx.DecodingError) as error:
        raise Transient(f"the connection broke ({_short(str(error) or type(error).__name__, secret)})", answered=False) from None
    except (Malformed, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Transient(f"a reply that cannot be read ({_short(str(error), secret)})", answered=False) from None
    return Reply(reply.status, reply.choices, reply.usage, reply.error, time.perf_counter() - started)


async def _whole(http: httpx.AsyncClient, model: str, request: ChatRequest, secret: str | None) -> Reply:
    response = await http.post("chat/completions", json=request.body(model))
    return _verdict(response, secret) or parse_reply(response.json(), request)


async def _streamed(http: httpx.AsyncClient, model: str, request: ChatRequest, secret: str | None) -> Reply:
    body = request.body(model) | {"stream": True, "stream_options": {"include_usage": True}}
    async with http.stream("POST", "chat/completions", json=body) as response:
        if response.status_code != httpx.codes.OK:
            await response.aread()
            verdict = _verdict(response, secret)
            assert verdict is not None
            return verdict
        return parse_reply(await _gather(response), request)


async def _gather(response: httpx.Response) -> dict[str, Any]:
    """Join the events of a stream to the body that the same request would have got whole."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}
        event = json.loads(data)
        if not isinstance(event, dict) or "error" in event:
            raise Malformed(f"an error within the stream: {data}")
        usage = event.get("usage") or usage
        for raw in event.get("choices") or ():
            _extend(choices.setdefault(raw.get("index", 0), {"message": {"content": ""}, "finish_reason": None}), raw)
    raise Malformed("the stream ended before its end was announced")


def _extend(choice: dict[str, Any], raw: dict[str, Any]) -> None:
    choice["message"]["content"] += (raw.get("delta") or {}).get("content") or ""
    choice["finish_reason"] = raw.get("finish_reason") or choice["finish_reason"]
    if raw.get("logprobs") and raw["logprobs"].get("content"):
        choice.setdefault("logprobs", {"content": []})["content"] += raw["logprobs"]["content"]


def _verdict(response: httpx.Response, secret: str | None) -> Reply | None:
    """None for a status of success, otherwise what the status means."""
    code, said = response.status_code, _short(_message(response), secret)
    if code == httpx.codes.OK:
        return None
    if code in (401, 403):
        raise UserError(f"The endpoint refuses the key (status {code}): {said}", "Check the environment variable that key_env names.")
    if code in _WRONG_ADDRESS:
        raise UserError(f"{response.request.url} answers with status {code}: {said}", "Check base_url (it usually ends in /v1) and model.")
    if code in _TRANSIENT or code >= 500:
        raise Transient(f"status {code}: {said}", retry_after_s=retry_after(response.headers.get("retry-after")), overloaded=code in (429, 503))
    reason = _code(response)
    if "content_filter" in reason or "content_policy" in reason:
        return Reply("content_filter", error=said)
    if "context_length" in reason or "maximum context length" in said:
        return Reply("context_length_exceeded", error=said)
    return Reply("rejected", error=f"status {code}: {said}")


def retry_after(header: str | None) -> float:
    """Seconds to wait by a `Retry-After` header, which holds seconds or a date; 0 for none and for nonsense."""
    if header is None:
        return 0.0
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except ValueError:
        return 0.0


def _error(response: httpx.Response) -> Any:
    try:
        body = response.json()
    except ValueError:
        return response.text
    return body.get("error", body) if isinstance(body, dict) else body


def _message(response: httpx.Response) -> str:
    error = _error(response)
    return str(error.get("message", error) if isinstance(error, dict) else error)


def _code(response: httpx.Response) -> str:
    error = _error(response)
    return f"{error.get('code')} {error.get('type')}" if isinstance(error, dict) else ""


def _short(text: str, secret: str | None) -> str:
    """One line of what an endpoint said, without the secret should it repeat it."""
    if secret:
        text = text.replace(secret, "***")
    return " ".join(text.split())[:_ERROR_CHARACTERS]
