"""A client for any OpenAI-compatible endpoint: many requests at once, each answered and paid for once, whatever happens on the way.

A request goes through: cache -> claim -> pacing -> purse -> attempts with waits between them -> cache.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import httpx
import tenacity
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from lmlab.config import Config
from lmlab.endpoints.cache import ReplyCache
from lmlab.endpoints.costs import Price, Purse
from lmlab.endpoints.limits import AdaptiveLimit, Pacer
from lmlab.endpoints.protocol import FINAL, ChatRequest, Reply
from lmlab.endpoints.transport import Transient, send
from lmlab.errors import Interrupted, UserError

_log = logging.getLogger(__name__)
_LONGEST_WAIT_S = 60.0
_CLAIM_POLL_S = 0.1


class Endpoint(Config):
    """Where a model is served, and how much may be asked of it.

    Attributes:
        model: its name there.
        base_url: address up to and with `/v1`.
        key_env: name of the environment variable that holds the key; None for an endpoint without one.
        concurrency: most requests under way; fewer after "too many requests".
        requests_per_minute, tokens_per_minute: limits of the account; None for none.
        timeout_s: longest silence of the endpoint within one attempt.
        max_retries: attempts after the first.
        stream: let answers come as streams, which keeps proxies from closing quiet connections.
        price: of the model; None leaves costs unknown.
        max_cost_usd: a ceiling, which counts what the cache has paid for before.
    """

    model: str = Field(min_length=1)
    base_url: str = "http://127.0.0.1:8000/v1"
    key_env: str | None = None
    concurrency: PositiveInt = 16
    requests_per_minute: PositiveFloat | None = None
    tokens_per_minute: PositiveFloat | None = None
    timeout_s: PositiveFloat = 120.0
    max_retries: NonNegativeInt = 6
    stream: bool = False
    price: Price | None = None
    max_cost_usd: NonNegativeFloat | None = None


class Client:
    """Asks one endpoint; an asynchronous context.

    Arguments:
        cache: file of the replies, which may be shared by processes and by models; None for none on disk.

    Attributes:
        counts: replies by status, and under `cached` those that cost no request.
        sent: attempts that reached for the endpoint.

    Raises:
        UserError: the environment lacks the key, the address cannot be one, or there is a ceiling without a price.
    """

    def __init__(self, endpoint: Endpoint, cache: Path | None = None) -> None:
        self.endpoint = endpoint
        self._secret = _secret(endpoint)
        headers = {} if self._secret is None else {"Authorization": f"Bearer {self._secret}"}
        connections = httpx.Limits(max_connections=endpoint.concurrency, max_keepalive_connections=endpoint.concurrency)
        self._http = httpx.AsyncClient(base_url=_address(endpoint), headers=headers, timeout=endpoint.timeout_s, limits=connections)
        self._cache = ReplyCache(cache, lease_s=max(900.0, 2 * endpoint.timeout_s + _LONGEST_WAIT_S))
        self.purse = Purse(endpoint.price, endpoint.max_cost_usd, self._cache.spent(endpoint.model))
        self._limit = AdaptiveLimit(endpoint.concurrency)
        self._requests, self._tokens = Pacer(endpoint.requests_per_minute), Pacer(endpoint.tokens_per_minute)
        self._under_way: dict[str, asyncio.Task[Reply]] = {}
        self._quiet_until = 0.0
        self.counts: Counter[str] = Counter()
        self.sent = 0

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._finish(set(self._under_way.values()))
        await self._http.aclose()
        self._cache.close()

    async def chat(self, request: ChatRequest) -> Reply:
        """Answer a request, from the cache if it was answered before. Failures are replies with a status, not exceptions.

        Raises:
            UserError: the key or the address is wrong.
            BudgetExceeded: the request could pass the ceiling.
        """
        key = request.key(self.endpoint.model)
        if (task := self._under_way.get(key)) is not None:  # the same question at the same time
            return self._count(replace(await asyncio.shield(task), attempts=0, cost_usd=0.0))
        task = self._under_way[key] = asyncio.create_task(self._answer(key, request))
        task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return self._count(await asyncio.shield(task))

    async def run(self, requests: Iterable[ChatRequest]) -> AsyncGenerator[tuple[int, Reply], None]:
        """Answer many requests and yield each reply with the number of its request, as they come.

        `requests` is read as places become free, so it may be endless. When the consumer stops,
        requests under way are finished and their replies kept. One `run` at a time.

        Raises:
            UserError, BudgetExceeded: as `chat`; after requests under way are finished.
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
        """Wait for what was sent; what still waits for its turn is given up."""
        if not tasks:
            return
        await self._limit.close()
        try:
            await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            await self._limit.close(False)

    async def _answer(self, key: str, request: ChatRequest) -> Reply:
        while (reply := self._cache.get(key)) is None:
            if self._cache.claim(key):
                try:
                    return await self._ask(key, request)
                finally:
                    self._cache.release(key)
            await asyncio.sleep(_CLAIM_POLL_S)
        return replace(reply, attempts=0, cost_usd=None if reply.cost_usd is None else 0.0)

    async def _ask(self, key: str, request: ChatRequest) -> Reply:
        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.endpoint.max_retries + 1),
            wait=_wait,
            retry=tenacity.retry_if_exception_type(Transient),
            before_sleep=self._tell,
            reraise=True,
        )
        try:
            reply: Reply = await attempts(self._attempt, key, request)
        except Transient as error:
            reply = Reply("failed", error=str(error))
        return replace(reply, attempts=attempts.statistics["attempt_number"])

    async def _attempt(self, key: str, request: ChatRequest) -> Reply:
        async with self._limit:
            await self._pace(request)
            self._cache.claim(key)
            reserved = await self.purse.reserve(request)
            spent, at_risk, sent_at = 0.0, reserved, time.monotonic()
            try:
                self.sent += 1
                reply = await send(self._http, self.endpoint.model, request, stream=self.endpoint.stream, secret=self._secret)
                cost = None if self.purse.price is None else self.purse.price.of(reply.usage)
                spent, at_risk, reply = cost or 0.0, 0.0, replace(reply, cost_usd=cost)
                if reply.status in FINAL:
                    self._cache.put(key, self.endpoint.model, reply)
            except Transient as error:
                at_risk = 0.0 if error.answered else reserved
                self._hold_back(error, sent_at)
                raise
            except UserError:
                at_risk = 0.0
                raise
            finally:
                await self.purse.settle(reserved, spent, at_risk)
            self._limit.succeeded()
            self._tokens.correct(reply.usage.prompt + reply.usage.completion - _likely_tokens(request))
            return reply

    async def _pace(self, request: ChatRequest) -> None:
        await self._requests.wait()
        await self._tokens.wait(_likely_tokens(request))
        while (rest := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(rest)

    def _hold_back(self, error: Transient, sent_at: float) -> None:
        """Fewer at once, and nobody before the time that the endpoint names."""
        if error.overloaded:
            self._limit.too_many(sent_at)
            self._quiet_until = max(self._quiet_until, time.monotonic() + min(error.retry_after_s, _LONGEST_WAIT_S))

    def _tell(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        wait = state.next_action.sleep if state.next_action else 0
        _log.info("attempt %d: %s; the next one in %.1f s", state.attempt_number, error, wait)

    def _count(self, reply: Reply) -> Reply:
        self.counts["cached" if reply.cached and reply.status in FINAL else reply.status] += 1
        return reply


def answer(endpoint: Endpoint, requests: Iterable[ChatRequest], take: Callable[[int, Reply], None], cache: Path | None = None) -> Counter[str]:
    """Answer many requests from synchronous code; `take` gets the number of each request and its reply, as they come.

    Ctrl-C and SIGTERM finish the requests under way.

    Returns:
        `Client.counts`.

    Raises:
        Interrupted: on such a signal. The same call with the same cache goes on from there.
        UserError, BudgetExceeded: as `Client`.
    """
    stopped = False

    async def work() -> Counter[str]:
        nonlocal stopped
        loop, main = asyncio.get_running_loop(), asyncio.current_task()
        assert main is not None

        def stop() -> None:
            nonlocal stopped
            if not stopped:
                stopped = True
                main.cancel()

        for name in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(name, stop)
        async with Client(endpoint, cache) as client, aclosing(client.run(requests)) as replies:
            async for number, reply in replies:
                take(number, reply)
            return client.counts

    try:
        return asyncio.run(work())
    except asyncio.CancelledError:
        if not stopped:
            raise
        raise Interrupted("Stopped; the replies that have come are kept.", "Run the same command again to go on.") from None


def _wait(state: tenacity.RetryCallState) -> float:
    """Full jitter up to min(60, 2^k) seconds, and no less than the endpoint asks for."""
    error = state.outcome.exception() if state.outcome else None
    jitter = random.uniform(0, min(_LONGEST_WAIT_S, 2.0 ** (state.attempt_number - 1)))
    return max(error.retry_after_s if isinstance(error, Transient) else 0.0, jitter)


def _likely_tokens(request: ChatRequest) -> int:
    return request.likely_prompt_tokens() + request.n * request.max_tokens


def _secret(endpoint: Endpoint) -> str | None:
    if endpoint.key_env is None:
        return None
    secret = os.environ.get(endpoint.key_env, "").strip()
    if not secret:
        raise UserError(f"The environment variable {endpoint.key_env} is not set; it should hold the key of {endpoint.base_url}.")
    return secret


def _address(endpoint: Endpoint) -> httpx.URL:
    try:
        url = httpx.URL(endpoint.base_url.rstrip("/") + "/")
    except httpx.InvalidURL as error:
        raise UserError(f"base_url '{endpoint.base_url}' is no address: {error}.") from None
    if url.scheme not in ("http", "https") or not url.host:
        raise UserError(f"base_url '{endpoint.base_url}' is no address.", "It looks like http://127.0.0.1:8000/v1.")
    if url.userinfo:
        raise UserError("base_url holds a password.", "Put the key into an environment variable and name it in key_env.")
    return url
