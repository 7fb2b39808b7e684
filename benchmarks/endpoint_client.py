"""Requests a second of the endpoint client beside bare `httpx`, against an endpoint that answers at once and against
`lmlab serve`, and what is lost when the client is killed.

    python benchmarks/endpoint_client.py [--requests 2000] [--concurrency 32] [--kills 20] [--rounds 3]

The endpoint is the one of the tests, in a process of its own, and answers at once; so the figures are the most that the
client can do. The server runs a model of two layers with random weights, in a process of its own too. `httpx` asks the
same requests at the same concurrency, without cache, claims, pacing or costs, in turns with the client. For the kills
the requests go to the server through a proxy that counts them, and the client's process gets SIGKILL again and again.
"Lost" counts replies that the client had told of before a kill and asked for again.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from lmlab.endpoints import ChatRequest, Endpoint, Reply, answer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/endpoints"))
from faulty import FaultyEndpoint, running
from test_client import WORKER


def main() -> None:
    """Measure and print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with _process(_serve_instantly) as url:
        _compare("an endpoint that answers at once", url, arguments.requests, arguments.concurrency, arguments.rounds)
    with _process(_serve_model) as url:
        _compare("lmlab serve", url, arguments.requests // 4, arguments.concurrency, arguments.rounds)
        _kills(url, arguments.requests // 4, arguments.kills)


def _compare(what: str, url: str, count: int, concurrency: int, rounds: int) -> None:
    ours, bare = [], []
    for _ in range(rounds):
        ours.append(_lmlab(url, count, concurrency))
        bare.append(asyncio.run(_httpx(url, count, concurrency)))
    rates = [count / statistics.median(seconds) for seconds in (ours, bare)]
    print(
        f"{what}: lmlab, cache on disk, {rates[0]:.0f} requests/s; bare httpx {rates[1]:.0f} requests/s; ratio"
        f" {rates[0] / rates[1]:.2f}",
        flush=True,
    )


@contextmanager
def _process(target: Callable[[multiprocessing.connection.Connection], None]) -> Iterator[str]:
    """Serve from a process of its own; gives the address."""
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=target, args=(child,))
    process.start()
    try:
        yield parent.recv()
    finally:
        parent.send("stop")
        process.join()


def _serve_instantly(pipe: multiprocessing.connection.Connection) -> None:
    with running(FaultyEndpoint()) as endpoint:
        pipe.send(endpoint.url)
        pipe.recv()


def _serve_model(pipe: multiprocessing.connection.Connection) -> None:
    from lmlab.data import TULU_TEMPLATE, Tokenizer
    from lmlab.endpoints.engine.served import ServedModel
    from lmlab.endpoints.server import background
    from lmlab.models import ModelConfig, Transformer

    tokenizer = Tokenizer.train(["0 1 2 3 4 5 6 7 8 9"], 260).with_chat_template(TULU_TEMPLATE)
    network = Transformer(
        ModelConfig(vocab_size=260, num_layers=2, d_model=64, num_heads=2, max_seq_len=512)
    ).initialize(0)
    with (
        background(ServedModel("m", network, tokenizer, max_rows=32)) as url,
    ):
        pipe.send(url)
        pipe.recv()


def _requests(count: int) -> list[ChatRequest]:
    return [ChatRequest(({"role": "user", "content": str(number)},), max_tokens=8) for number in range(count)]


def _lmlab(url: str, count: int, concurrency: int) -> float:
    replies: list[Reply] = []
    with tempfile.TemporaryDirectory() as directory:
        started = time.perf_counter()
        endpoint = Endpoint(model="m", base_url=url, concurrency=concurrency)
        answer(endpoint, _requests(count), lambda _, reply: replies.append(reply), Path(directory) / "cache")
        seconds = time.perf_counter() - started
    assert len(replies) == count and all(reply.status == "ok" for reply in replies)
    return seconds


async def _httpx(url: str, count: int, concurrency: int) -> float:
    started = time.perf_counter()
    places = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(
        limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    ) as http:

        async def ask(request: ChatRequest) -> str:
            async with places:
                response = await http.post(f"{url}/chat/completions", json=request.body("m"))
                return response.json()["choices"][0]["message"]["content"]

        await asyncio.gather(*map(ask, _requests(count)))
    return time.perf_counter() - started


def _kills(url: str, count: int, kills: int) -> None:
    lost = 0
    with running(FaultyEndpoint(upstream=url)) as endpoint, tempfile.TemporaryDirectory() as directory:
        for kill in range(kills + 1):
            told = Path(directory) / "told"
            kept = set(told.read_text().split()) if told.exists() else set()
            before = len(endpoint.bodies)
            arguments = [sys.executable, "-c", WORKER, endpoint.url, directory, str(count)]
            worker = subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})
            while (
                kill < kills and worker.poll() is None and len(endpoint.bodies) < before + max(1, count // (kills + 2))
            ):
                time.sleep(0.002)
            if kill < kills:
                worker.kill()
            worker.wait()
            lost += sum(body["messages"][0]["content"] in kept for body in endpoint.bodies[before:])
        asked = [body["messages"][0]["content"] for body in endpoint.bodies]
    print(
        f"{kills} kills: {len(set(asked))} of {count} questions answered, {lost} lost, {len(asked) - len(set(asked))}"
        " asked again that were under way"
    )


if __name__ == "__main__":
    main()
