"""A client for any OpenAI-compatible endpoint: many requests at once, each answered and paid for once, whatever happens
on the way.

A request goes through: cache -> claim -> pacing -> purse -> attempts with waits between them -> cache.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from lmlab.endpoints.backends import Backend, EndpointUnavailable, Transient, make_backend
from lmlab.endpoints.client.cache import ReplyCache
from lmlab.endpoints.client.costs import Purse
from lmlab.endpoints.client.limits import AdaptiveLimit, Closed, Pacer
from lmlab.endpoints.endpoint import Endpoint
from lmlab.endpoints.protocol import FINAL, ChatRequest, Reply
from lmlab.errors import Interrupted, UserError, missing_extra
from lmlab.progress import console

if TYPE_CHECKING:
    import tenacity

_log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 60.0  # before another try; a longer wait would leave an endpoint idle that is well again
_CLAIM_POLL_S = 0.1  # between looks into the cache, while another request for the same is under way


class Client:
    """Asks one endpoint; an asynchronous context.

    Arguments:
        cache: file of the replies, which may be shared by processes and by models; None for none on disk.
        backend: who answers, in place of the one that the endpoint names; whoever made it closes it.

    Attributes:
        counts: replies by status, and under `cached` those that cost no request.
        sent: attempts that reached for the endpoint.

    Raises:
        UserError: the environment lacks the key, the address cannot be one, or there is a ceiling without a price.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path | None = None, backend: Backend | None = None) -> None:
        cache = None if cache is None else Path(cache)
        self.endpoint = endpoint
        self._attempts = _retrying(endpoint, self._tell, self._sleep)
        self._backend, self._owns_backend = backend or make_backend(endpoint), backend is None
        self._cache = ReplyCache(cache)
        self.purse = Purse(endpoint.price, endpoint.max_cost_usd, self._cache.spent(self._backend.identity))
        self._limit = AdaptiveLimit(endpoint.concurrency)
        self._requests = Pacer(endpoint.requests_per_minute, sleep=self._sleep)
        self._tokens = Pacer(endpoint.tokens_per_minute, sleep=self._sleep)
        self._stopping = asyncio.Event()
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._quiet_until = 0.0
        self._failed_in_a_row = 0
        self.counts: Counter[str] = Counter()
        self.sent = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._finish(set(self._under_way.values()))
        if self._owns_backend:
            await self._backend.close()
        self._cache.close()

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer a request, from the cache if it was answered before. Failures are replies with a status, not
        exceptions.

        Raises:
            UserError: the key or the address is wrong.
            BudgetExceeded: the request could pass the ceiling.
            EndpointUnavailable: this and many requests before it have failed, or the account has no credit left.
        """
        request = self.endpoint.shaped(request)
        key = request.key(self._backend.identity)
        if (task := self._under_way.get(key)) is not None:  # the same question at the same time
            return self._count(replace(await asyncio.shield(task), attempts=0, cost_usd=0.0, before=None))
        task = self._under_way[key] = asyncio.create_task(self._answer(key, request))
        task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return self._count(await asyncio.shield(task))

    async def run(self, requests: Iterable[ChatRequest]) -> AsyncGenerator[tuple[int, Reply], None]:
        """Answer many requests and yield each reply with the number of its request, as they come.

        `requests` is read as places become free, so it may be endless. When the consumer stops,
        requests under way are finished and their replies kept. One `run` at a time.

        Raises:
            UserError, BudgetExceeded, EndpointUnavailable: as `chat`; after requests under way are finished.
        """
        source = enumerate(requests)
        tasks: dict[asyncio.Task[Reply], int] = {}
        try:
            while True:
                while len(tasks) < 2 * self.endpoint.concurrency and (item := next(source, None)) is not None:
                    tasks[asyncio.create_task(self.chat(item[1]))] = item[0]
                if not tasks:
                    return
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    yield tasks.pop(task), task.result()
        finally:
            await self._finish(set(tasks))

    async def _finish(self, tasks: set[asyncio.Task[Reply]]) -> None:
        """Wait for what was sent; what still waits, for its turn or for another attempt, is given up."""
        if not tasks:
            return
        self._stopping.set()
        await self._limit.close()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await self._limit.close(False)
            self._stopping.clear()

    def abandon(self) -> None:
        """Give up also what was sent: its replies are lost, and may have to be paid for."""
        for task in self._under_way.values():
            task.cancel()

    async def _sleep(self, seconds: float) -> None:
        """Wait, unless the run ends.

        Raises:
            Closed: it does.
        """
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return
        raise Closed

    async def _answer(self, key: str, request: ChatRequest) -> Reply:
        while (reply := self._cache.get(key)) is None:
            if (claim := self._cache.claim(key)) is not None:
                with claim:
                    return await self._ask(key, request)
            await self._sleep(_CLAIM_POLL_S)
        before = (reply.attempts, reply.cost_usd)
        return replace(reply, attempts=0, cost_usd=None if reply.cost_usd is None else 0.0, before=before)

    async def _ask(self, key: str, request: ChatRequest) -> Reply:
        attempts = self._attempts.copy()
        try:
            reply: Reply = await attempts(self._attempt, key, request)
            self._failed_in_a_row = 0
        except Transient as error:
            reply = Reply("failed", error=str(error))
            self._failed_in_a_row += 1
            if self._failed_in_a_row >= self.endpoint.give_up_after:
                raise EndpointUnavailable(
                    f"{self._failed_in_a_row} requests in a row have failed, the last with: {error}.",
                    "See whether the endpoint works, and run the same command again: what has come is kept.",
                ) from None
        return replace(reply, attempts=attempts.statistics["attempt_number"])

    async def _attempt(self, key: str, request: ChatRequest) -> Reply:
        async with self._limit:
            await self._pace(request)
            reserved = await self.purse.reserve(request)
            spent, at_risk, sent_at = 0.0, reserved, time.monotonic()
            try:
                self.sent += 1
                reply = await self._backend.send(request)
                cost = None if self.purse.price is None else self.purse.price.of(reply.usage)
                spent, at_risk, reply = cost or 0.0, 0.0, replace(reply, cost_usd=cost)
                self._keep(key, request, reply)
            except Transient as error:
                at_risk = 0.0 if error.answered else reserved
                self._hold_back(error, sent_at)
                raise
            except (UserError, EndpointUnavailable):
                at_risk = 0.0
                raise
            finally:
                await self.purse.settle(reserved, spent, at_risk)
            self._limit.succeeded()
            self._tokens.correct(reply.usage.prompt + reply.usage.completion - _likely_tokens(request))
            return reply

    def _keep(self, key: str, request: ChatRequest, reply: Reply) -> None:
        """Commit a reply; one that answers nothing is asked for again another time, and what it cost is noted."""
        wanted = reply.status == "tool_calls" and bool((request.extra or {}).get("tools"))
        if reply.status in FINAL or wanted:
            self._cache.put(key, self._backend.identity, reply)
        elif reply.cost_usd:
            self._cache.note_paid(key, self._backend.identity, reply)

    async def _pace(self, request: ChatRequest) -> None:
        await self._requests.wait()
        await self._tokens.wait(_likely_tokens(request))
        while (rest := self._quiet_until - time.monotonic()) > 0:
            await self._sleep(rest)

    def _hold_back(self, error: Transient, sent_at: float) -> None:
        """Fewer at once, and nobody before the time that the endpoint names."""
        if error.overloaded:
            self._limit.too_many(sent_at)
            self._quiet_until = max(self._quiet_until, time.monotonic() + _asked_wait(error, self.endpoint))

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0
        _log.info("attempt %d: %s; the next one in %.1f s", state.attempt_number, error, wait)

    def _count(self, reply: Reply) -> Reply:
        self.counts["cached" if reply.cached and reply.status != "failed" else reply.status] += 1
        return reply


def answer(
    endpoint: Endpoint,
    requests: Iterable[ChatRequest],
    take: Callable[[int, Reply], None],
    cache: str | Path | None = None,
    backend: Backend | None = None,
) -> Counter[str]:
    """Answer many requests from synchronous code; `take` gets the number of each request and its reply, as they come.

    Ctrl-C and SIGTERM finish the requests under way, which are paid for, and say so; a second one gives them up. Those
    of a model in this process are given up at once.

    Returns:
        `Client.counts`.

    Raises:
        Interrupted: on such a signal. The same call with the same cache goes on from there.
        UserError, BudgetExceeded, EndpointUnavailable: as `Client`.
    """
    cache = None if cache is None else Path(cache)
    stopped = False
    asking: Client | None = None

    async def work() -> Counter[str]:
        nonlocal asking
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                main.cancel()
                if asking is not None and endpoint.backend == "local":
                    asking.abandon()
                elif asking is not None and asking._under_way:
                    count = len(asking._under_way)
                    console.print(f"Stopping: {count} requests are under way; interrupt again to give them up.")
            elif asking is not None:
                asking.abandon()

        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop)
        async with Client(endpoint, cache, backend) as client, aclosing(client.run(requests)) as replies:
            asking = client
            async for number, reply in replies:
                take(number, reply)
            return client.counts

    try:
        return asyncio.run(work())
    except asyncio.CancelledError:
        if not stopped:
            raise
        raise Interrupted(
            "Stopped; the replies that have come are kept.", "Run the same command again to go on."
        ) from None


def _retrying(
    endpoint: Endpoint, tell: Callable[[tenacity.RetryCallState], None], sleep: Callable[[float], Awaitable[None]]
) -> tenacity.AsyncRetrying:
    try:
        import tenacity
    except ModuleNotFoundError:
        raise missing_extra("tenacity", "A client of models") from None
    return tenacity.AsyncRetrying(
        stop=tenacity.stop_after_attempt(endpoint.max_retries + 1),
        wait=lambda state: _wait(state, endpoint),
        sleep=sleep,
        retry=tenacity.retry_if_exception(lambda error: isinstance(error, Transient) and error.again),
        before_sleep=tell,
        reraise=True,
    )


def _wait(state: tenacity.RetryCallState, endpoint: Endpoint) -> float:
    """Full jitter up to min(60, 2^k) seconds, and no less than the endpoint asks for, within reason."""
    error = state.outcome.exception() if state.outcome else None
    jitter = random.uniform(0, min(_LONGEST_WAIT_S, 2.0 ** (state.attempt_number - 1)))
    return max(_asked_wait(error, endpoint) if isinstance(error, Transient) else 0.0, jitter)


def _asked_wait(error: Transient, endpoint: Endpoint) -> float:
    """The wait that the endpoint asks for; none where it is longer than anyone would sit through."""
    return error.retry_after_s if error.retry_after_s <= endpoint.longest_wait_s else 0.0


def _likely_tokens(request: ChatRequest) -> int:
    new = request.most_new_tokens()
    return request.likely_prompt_tokens() + (request.max_tokens if new is None else new)
