"""Connections that are bounded in time, and refusals before any route in the protocol's form."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmlab.endpoints.server.errors import ApiError

HEAD_TIMEOUT_S = 20.0  # a slow network sends a few kilobytes in that time; more lets silent clients hold connections


class BoundedProtocol(H11Protocol):
    """A connection that ends when the head of a request has not come in time: one that is silent from the start, or
    sends a line now and then. How long a body may take, the routes say; how long a connection may idle between
    requests, uvicorn does.
    """

    head_timeout_s = HEAD_TIMEOUT_S
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """The time begins with the connection."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """It ends when the head is whole, and begins again with a next one."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """What has come of a next request already has its own time."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._end_wait()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """A request that is none, in the form of the protocol."""
        self._refuse(400, msg)

    def _watch(self) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._end_wait()
        elif self._timer is None and not self.transport.is_closing():
            self._await_head()

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._too_late)

    def _end_wait(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(408, "The head of the request did not come in time.")

    def _refuse(self, status: int, message: str) -> None:
        content = json.dumps(ApiError(status, message).body()).encode()
        reason = {400: "Bad Request", 408: "Request Timeout"}[status]
        head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n"
        self.transport.write(f"{head}Connection: close\r\n\r\n".encode() + content)
        self.transport.close()


class OnlyHosts:
    """Answers only to some names of the server (the header Host), so that a page in a browser cannot reach it by a name
    of its own.
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        self.app, self.hosts = app, {host.strip("[]").lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            given = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
            if _host(given) not in self.hosts:
                message = f"This server does not answer to the name '{given[:100]}'."
                await ApiError(400, message, "invalid_host").response()(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _host(header: str) -> str:
    """A host without its port."""
    if header.startswith("["):  # an address of IPv6
        return header[1:].partition("]")[0].lower()
    return header.rpartition(":")[0].lower() if header.count(":") == 1 else header.lower()
