"""One attempt at one request: HTTP to a reply, or to an error that says whether another attempt makes sense."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import httpx

from lmlab.endpoints.backends import EndpointUnavailable, Transient
from lmlab.endpoints.client.event_stream import gather
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.protocol import ChatRequest, Reply
from lmlab.endpoints.reading import (
    Malformed,
    error_message,
    error_of,
    out_of_money,
    parse_reply,
    refusal,
    retry_delay_s,
    unsupported_parameter,
)
from lmlab.errors import UserError
from lmlab.files import json_value

_log = logging.getLogger(__name__)
_TRANSIENT = {408, 409, 425, 429}  # time-out, conflict, too early, too many: nothing is wrong with the request itself
_WRONG_ADDRESS = {301, 302, 307, 308, 404, 405}  # moved (a key is not sent on to another place), not found, not allowed
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")
_KEY_HEADERS = ("authorization", "api-key", "x-api-key")


class _Unsupported(Exception):
    """The endpoint refuses a field of the request."""

    def __init__(self, parameter: str, said: str) -> None:
        super().__init__(said)
        self.parameter, self.said = parameter, said


class HttpBackend:
    """An endpoint that is reached by HTTP.

    Raises:
        UserError: the environment lacks a key, or the address cannot be one.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.identity = endpoint.model
        self._endpoint = endpoint
        self.headers, query, self._secrets = credentials(endpoint)
        self._length_field, self._counts_stream = endpoint.max_tokens_field, True
        self._answered = False
        self._rejected_alike, self._rejection = 0, ""
        connections = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._http = httpx.AsyncClient(
            base_url=address(endpoint),
            headers=self.headers,
            params=query,
            timeout=endpoint.timeout_s,
            limits=connections,
        )

    async def send(self, request: ChatRequest) -> Reply:
        """Send a request once; where the endpoint calls `max_tokens` otherwise, once more by that name.

        Raises:
            Transient: no connection, a time-out, a body that breaks off or cannot be read, or a status that may change.
            UserError: the endpoint refuses the key or a field of all requests, or there is none at this address.
            EndpointUnavailable: the account has no credit, or one request after the other is rejected in the same
                words.
        """
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._endpoint.total_timeout_s):
                reply = await self._adapted(request)
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout) as error:
            raise Transient(f"no connection ({self._said(str(error) or type(error).__name__)})") from None
        except (httpx.TimeoutException, TimeoutError):
            raise Transient("no reply in time", answered=False) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Transient(
                f"the connection broke ({self._said(str(error) or type(error).__name__)})", answered=False
            ) from None
        except (Malformed, ValueError) as error:
            raise Transient(f"a reply that cannot be read ({self._said(str(error))})", answered=False) from None
        return self._watched(replace(reply, seconds=time.perf_counter() - started))

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def _adapted(self, request: ChatRequest) -> Reply:
        """The reply to a request in the endpoint's dialect, which its refusals teach."""
        while True:
            length_field, counts = self._length_field, self._counts_stream
            body = request.body(self._endpoint.model, length_field)
            try:
                return await (
                    self._streamed(body, request, counts) if self._endpoint.stream else self._whole(body, request)
                )
            except _Unsupported as error:
                if error.parameter == "max_tokens" == length_field:
                    if self._length_field == length_field:  # else a request beside has learned it and told
                        _log.warning("the endpoint takes no max_tokens: it is sent max_completion_tokens from now on")
                    self._length_field = "max_completion_tokens"
                elif error.parameter == "stream_options" and counts:
                    if self._counts_stream:
                        _log.warning("the endpoint takes no stream_options: tokens of streams are estimated now")
                    self._counts_stream = False
                elif self._answered:  # others were answered with this field, so that it must be this request
                    return Reply("rejected", error=error.said)
                else:
                    raise UserError(
                        f"The endpoint refuses '{error.parameter}': {error.said}",
                        f"Leave it out with omit: [{error.parameter}], or give another value in extra_body.",
                    ) from None

    async def _whole(self, body: Mapping[str, Any], request: ChatRequest) -> Reply:
        response = await self._http.post("chat/completions", json=body)
        found = self._verdict(response, body)
        if found is not None:
            return found
        parsed = json_value(response.content, allow_nan=True)  # of log-probabilities, which may be -Infinity
        return self._within(parsed) or parse_reply(parsed, request)

    async def _streamed(self, body: Mapping[str, Any], request: ChatRequest, counts: bool) -> Reply:
        body = {**body, "stream": True} | ({"stream_options": {"include_usage": True}} if counts else {})
        async with self._http.stream("POST", "chat/completions", json=body) as response:
            if response.status_code != httpx.codes.OK:
                await response.aread()
                verdict = self._verdict(response, body)
                assert verdict is not None
                return verdict
            gathered = await gather(response.aiter_bytes(), request.answers())
        return self._within(gathered) or parse_reply(gathered, request)

    def _within(self, body: Any) -> Reply | None:
        """What an error means that comes with a status of success, or in the middle of a stream."""
        if not isinstance(body, list) and not (isinstance(body, dict) and body.get("error")):
            return None
        error = error_of(body)
        self._check_money(error)
        if verdict := refusal(error, self._secrets):
            return verdict
        raise Transient(f"an error in place of an answer: {self._said(error)}", answered=False)

    def _verdict(self, response: httpx.Response, body: Mapping[str, Any]) -> Reply | None:
        """None for a status of success, otherwise what the status means."""
        code = response.status_code
        if code == httpx.codes.OK:
            return None
        error = error_of(_json_or_text(response))
        said = self._said(error)
        self._check_money(error, code)
        verdict = refusal(error, self._secrets)
        filtered = verdict is not None and verdict.status == "content_filter"
        if code == 403 and self._answered and not filtered:  # the key is good: it is this request that may not be
            return Reply("rejected", error=f"status {code}: {said}")
        if code in (401, 403) and not filtered:
            raise UserError(
                f"The endpoint refuses the key (status {code}): {said}",
                "Check the environment variable that key_env names.",
            )
        if code in _WRONG_ADDRESS:
            raise UserError(
                f"{self._said(str(response.request.url))} answers with status {code}: {said}",
                "Check base_url (it usually ends in /v1) and model.",
            )
        if code >= 500 and verdict is not None:
            return verdict
        if code in _TRANSIENT or code >= 500:
            asked = asked_wait_s(response.headers, error)
            too_long = asked > self._endpoint.longest_wait_s
            told = f" (it asks for a wait of {asked:,.0f} s)" if too_long else ""
            raise Transient(f"status {code}: {said}{told}", retry_after_s=asked, overloaded=code in (429, 503, 529))
        if verdict is not None:
            return verdict
        if (name := unsupported_parameter(error, list(body))) is not None:
            raise _Unsupported(name, f"status {code}: {said}")
        return Reply("rejected", error=f"status {code}: {said}")

    def _check_money(self, error: Any, code: int | None = None) -> None:
        if code == 402 or out_of_money(error):
            status = "" if code is None else f" (status {code})"
            raise EndpointUnavailable(
                f"The account of the endpoint has no credit left{status}: {self._said(error)}",
                "See to the account, and run the same command again: what has come is kept.",
            )

    def _watched(self, reply: Reply) -> Reply:
        """The reply, unless it is the last of many that are rejected in the same words."""
        if reply.status != "rejected":
            self._answered, self._rejected_alike = True, 0
            return reply
        words = re.sub(r"\d+", "#", reply.error or "")
        self._rejected_alike = self._rejected_alike + 1 if words == self._rejection else 1
        self._rejection = words
        if self._rejected_alike >= self._endpoint.give_up_after:
            raise EndpointUnavailable(
                f"{self._rejected_alike} requests in a row were rejected in the same words: {reply.error}",
                "Change the requests, or what is sent with them: omit, extra_body, headers, query.",
            )
        return reply

    def _said(self, error: Any) -> str:
        return error_message(error, self._secrets)


def credentials(endpoint: Endpoint) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Headers and query of an endpoint with the keys that the environment holds, and these keys by themselves.

    Raises:
        UserError: the environment lacks one, or a key stands in the settings.
    """
    secrets: list[str] = []

    def from_environment(name: str, what: str) -> str:
        found = os.environ.get(name, "").strip()
        if not found:
            raise UserError(f"The environment variable {name} is not set; it should hold {what}.")
        secrets.append(found)
        return found

    headers: dict[str, str] = {}
    if endpoint.key_env is not None:
        headers["Authorization"] = f"Bearer {from_environment(endpoint.key_env, f'the key of {endpoint.base_url}')}"
    for name, value in endpoint.headers.items():
        if name.lower() in _KEY_HEADERS and not _VARIABLE.search(value):
            raise UserError(
                f"The header '{name}' holds a key.", "Put it into an environment variable, and write $NAME."
            )
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or not value.isprintable() or not value.isascii():
            raise UserError(f"'{name}: {value}' is no header.")
        headers[name] = _filled(value, lambda each, name=name: from_environment(each, f"the header '{name}'"))
    query = {
        name: _filled(value, lambda each, name=name: from_environment(each, f"the parameter '{name}'"))
        for name, value in endpoint.query.items()
    }
    return headers, query, secrets


def _filled(text: str, value: Any) -> str:
    return _VARIABLE.sub(lambda found: value(found[1] or found[2]), text)


def address(endpoint: Endpoint) -> httpx.URL:
    """The address with a slash at its end.

    Raises:
        UserError: it cannot be one, or holds a password.
    """
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
    if url.query:
        raise UserError(f"base_url '{endpoint.base_url}' has parameters.", "Give them in query.")
    return url


def asked_wait_s(headers: httpx.Headers, error: Any = None) -> float:
    """Seconds to wait, by `Retry-After-Ms`, `Retry-After`, or the details of an error; 0 for none and for nonsense."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    return retry_after(headers.get("retry-after")) or retry_delay_s(error) or 0.0


def retry_after(header: str | None) -> float:
    """Seconds to wait by a `Retry-After` header, which holds seconds or a date; 0 for none and for nonsense."""
    if header is None:
        return 0.0
    seconds = _number(header)
    if seconds is not None:
        return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _number(header: str | None) -> float | None:
    """A finite number of 0 or more; below it counts as 0, and what is not finite as nothing."""
    try:
        found = float(header or "")
    except ValueError:
        return None
    return max(0.0, found) if math.isfinite(found) else None


def _json_or_text(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return response.text
