"""How fast and how many: pacing by the minute, and a number of requests under way that follows what the
endpoint bears.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType

_PROMOTE_AFTER = 20  # successes; slow to rise and quick to halve, as networks avoid congestion


class Pacer:
    """Spreads an amount per minute evenly: a request waits until what was let through before it has been used up.

    Arguments:
        per_minute: the limit; None for none.
        burst_s: what an idle time may save up, in seconds.
        sleep: waits so many seconds; it may raise.
    """

    def __init__(
        self,
        per_minute: float | None,
        burst_s: float = 1.0,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._per_second = None if per_minute is None else per_minute / 60
        self._sleep = sleep
        self._burst_s = burst_s
        self._free_at = 0.0

    async def wait(self, amount: float = 1) -> None:
        now = time.monotonic()
        free_at = max(self._free_at, now - self._burst_s)
        self._free_at = free_at + (0 if self._per_second is None else amount / self._per_second)
        if free_at > now:
            await self._sleep(free_at - now)

    def correct(self, amount: float) -> None:
        """Add what a request took beyond its estimate; a negative amount gives it back."""
        if self._per_second is not None:
            self._free_at += amount / self._per_second


class Closed(Exception):
    """No more requests are let through."""


class AdaptiveLimit:
    """Bounds the requests under way: halved when the endpoint says that they are too many, one more after 20 successes,
    never above `most`.
    """

    def __init__(self, most: int) -> None:
        self.most = self.now = most
        self._under_way = self._successes = 0
        self._halved_at = 0.0
        self._closed = False
        self._changed = asyncio.Condition()

    async def __aenter__(self) -> AdaptiveLimit:
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._under_way < self.now)
            if self._closed:
                raise Closed
            self._under_way += 1
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._changed:
            self._under_way -= 1
            self._changed.notify_all()

    async def close(self, closed: bool = True) -> None:
        """Let those under way finish and nobody else begin; whoever waits gets `Closed`."""
        async with self._changed:
            self._closed = closed
            self._changed.notify_all()

    def too_many(self, sent_at: float) -> None:
        """Halve; once only for all requests that were sent (`time.monotonic`) before the last halving, for they are one
        and the same crowd.
        """
        if sent_at >= self._halved_at:
            self.now, self._successes, self._halved_at = max(1, self.now // 2), 0, time.monotonic()

    def succeeded(self) -> None:
        self._successes += 1
        if self._successes >= _PROMOTE_AFTER and self.now < self.most:
            self.now, self._successes = self.now + 1, 0
