"""One attempt at one request: HTTP to a reply, or to an error that says whether another attempt makes sense."""

from __future__ import annotations

import asyncio
import email.utils
import os
import time
from dataclasses import replace
from typing import Any

import httpx

from lmlab.endpoints.backends import Transient
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.protocol import ChatRequest, Malformed, Reply, error_message, parse_reply, refusal
from lmlab.errors import UserError
from lmlab.files import json_value

_TRANSIENT = {408, 409, 425, 429}
_WRONG_ADDRESS = {301, 302, 307, 308, 404, 405}


class HttpBackend:
    """An endpoint that is reached by HTTP.

    Raises:
        UserError: the environment lacks the key, or the address cannot be one.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.identity = endpoint.model
        self._endpoint, self._secret = endpoint, _secret(endpoint)
        headers = {} if self._secret is None else {"Authorization": f"Bearer {self._secret}"}
        connections = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._http = httpx.AsyncClient(
            base_url=_address(endpoint), headers=headers, timeout=endpoint.timeout_s, limits=connections
        )

    async def send(self, request: ChatRequest) -> Reply:
        """Send a request once.

        Raises:
            Transient: no connection, a time-out, a body that breaks off or cannot be read, or a status that may change.
            UserError: the endpoint refuses the key, or there is none at this address.
        """
        secret, model = self._secret, self._endpoint.model
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._endpoint.total_timeout_s):
                reply = await (_streamed if self._endpoint.stream else _whole)(self._http, model, request, secret)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Transient(f"no connection ({error_message(str(error) or type(error).__name__, secret)})") from None
        except (httpx.TimeoutException, TimeoutError):
            raise Transient("no reply in time", answered=False) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Transient(
                f"the connection broke ({error_message(str(error) or type(error).__name__, secret)})", answered=False
            ) from None
        except (Malformed, ValueError) as error:
            raise Transient(
                f"a reply that cannot be read ({error_message(str(error), secret)})", answered=False
            ) from None
        return replace(reply, seconds=time.perf_counter() - started)

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


def _secret(endpoint: Endpoint) -> str | None:
    if endpoint.key_env is None:
        return None
    secret = os.environ.get(endpoint.key_env, "").strip()
    if not secret:
        raise UserError(
            f"The environment variable {endpoint.key_env} is not set; it should hold the key of {endpoint.base_url}."
        )
    return secret


def _address(endpoint: Endpoint) -> httpx.URL:
    try:
        url = httpx.URL(endpoint.base_url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise UserError(f"base_url '{endpoint.base_url}' is no address: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"base_url '{endpoint.base_url}' is no address.", "It looks like http://127.0.0.1:8000/v1.")
    if url.userinfo:
        raise UserError(
            "base_url holds a password.", "Put the key into an environment variable and name it in key_env."
        )
    return url


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
        gathered = await _gather(response, secret)
        return gathered if isinstance(gathered, Reply) else parse_reply(gathered, request)


async def _gather(response: httpx.Response, secret: str | None) -> dict[str, Any] | Reply:
    """Join the events of a stream to the body that the same request would have got whole; or the verdict that one of
    them is.
    """
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}
        event = json_value(data)
        if not isinstance(event, dict) or "error" in event:
            if verdict := refusal(_error(event), secret):
                return verdict
            raise Malformed(f"an error within the stream: {data}")
        usage = event.get("usage") or usage
        for raw in event.get("choices") or ():
            _extend(choices.setdefault(raw.get("index", 0), {"message": {"content": ""}, "finish_reason": None}), raw)
    raise Malformed("the stream ended before its end was announced")


def _extend(choice: dict[str, Any], raw: dict[str, Any]) -> None:
    choice["message"]["content"] += (raw.get("delta") or {}).get("content") or ""
    choice["finish_reason"] = raw.get("finish_reason") or choice["finish_reason"]
    if raw.get("logprobs") and raw["logprobs"].get("content") is not None:
        choice.setdefault("logprobs", {"content": []})["content"] += raw["logprobs"]["content"]


def _verdict(response: httpx.Response, secret: str | None) -> Reply | None:
    """None for a status of success, otherwise what the status means."""
    if response.status_code == httpx.codes.OK:
        return None
    error = _error(_json_or_text(response))
    code, said = response.status_code, error_message(error_message(error), secret)
    if code in (401, 403):
        raise UserError(
            f"The endpoint refuses the key (status {code}): {said}",
            "Check the environment variable that key_env names.",
        )
    if code in _WRONG_ADDRESS:
        raise UserError(
            f"{response.request.url} answers with status {code}: {said}",
            "Check base_url (it usually ends in /v1) and model.",
        )
    if code in _TRANSIENT or code >= 500:
        raise Transient(
            f"status {code}: {said}",
            retry_after_s=retry_after(response.headers.get("retry-after")),
            overloaded=code in (429, 503),
        )
    return refusal(error, secret) or Reply("rejected", error=f"status {code}: {said}")


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


def _json_or_text(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text


def _error(body: Any) -> Any:
    return body.get("error", body) if isinstance(body, dict) else body
