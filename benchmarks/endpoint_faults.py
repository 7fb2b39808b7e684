"""The client at 10,000 requests to an endpoint with faults of every kind: how many are lost, how many were paid for
twice, and whether memory grows.

    python benchmarks/endpoint_faults.py [--requests 10000] [--faults 0.05] [--concurrency 32]

The endpoint answers at once; a share of requests gets a fault, of a kind drawn at random: statuses 408, 429 (with a
short Retry-After, one of two hours, and one that is infinite), 500, 503 and 529, a connection that ends without an
answer, an answer that is cut off, is no JSON, or has an error in the place of an answer, a refusal by the model, a call
of a tool, and mere reasoning. Answers that came whole are what is paid for; "paid twice" counts questions for which
more than one usable answer was sent whole. Half of the requests come as streams, in a run of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from lmlab.endpoints import ChatRequest, Client, Endpoint

sys.path.insert(0, str(Path(__file__).parents[1] / "tests/endpoints"))
from faulty import FaultyEndpoint, completion, running

CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
USELESS = (
    completion({"content": None, "refusal": "no"}),
    completion({"content": None, "tool_calls": [CALL]}, "tool_calls"),
    completion({"content": "", "reasoning_content": "hm"}, "length"),
)
PASSING: tuple[Any, ...] = (
    408,
    (429, {"Retry-After": "0.05"}, {"message": "slow"}),
    (429, {"Retry-After": "7200"}, {"message": "much slower"}),
    (429, {"Retry-After": "inf"}, {"message": "never"}),
    500,
    503,
    529,
    "empty",
    "cut",
    "malformed",
    (200, {}, {"error": {"code": 502, "message": "upstream"}}),
)


class RandomFaults(FaultyEndpoint):
    """Draws a fault for a share of requests, and counts what it sent whole."""

    def __init__(self, share: float, pipe: Any) -> None:
        super().__init__()
        self.share, self.random, self.whole = share, random.Random(0), Counter[str]()
        self.kinds: Counter[str] = Counter()
        self.pipe = pipe

    async def _respond(self, writer: asyncio.StreamWriter, body: dict[str, Any], fault: Any) -> bool:
        self.bodies.clear()
        self.headers.clear()
        self.paths.clear()
        drawn = self.random.choice(PASSING + USELESS) if self.random.random() < self.share else "ok"
        if body.get("stream") and drawn in USELESS:
            drawn = "ok"
        self.kinds["none" if drawn == "ok" else "useless" if drawn in USELESS else "passing"] += 1
        if drawn == "ok":
            self.whole[body["messages"][-1]["content"]] += 1
        return await super()._respond(writer, body, drawn)


def _serve(pipe: Any, share: float) -> None:
    endpoint = RandomFaults(share, pipe)
    with running(endpoint):
        pipe.send(endpoint.url)
        while pipe.recv() == "counts":
            pipe.send((dict(endpoint.whole), dict(endpoint.kinds)))


def main() -> None:
    """Ask, and print what became of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--faults", type=float, default=0.05)
    parser.add_argument("--concurrency", type=int, default=32)
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}")
    parent, child = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(child, arguments.faults))
    process.start()
    try:
        _measure(parent, arguments)
    finally:
        parent.send("stop")
        process.join()


def _measure(pipe: Any, arguments: argparse.Namespace) -> None:
    url, half = pipe.recv(), arguments.requests // 2
    with tempfile.TemporaryDirectory() as directory:
        for stream in (False, True):
            endpoint = Endpoint(
                model="m", base_url=url, concurrency=arguments.concurrency, stream=stream, timeout_s=10, max_retries=8
            )
            first = half * stream
            asked = [ChatRequest(({"role": "user", "content": str(n)},)) for n in range(first, first + half)]
            started, sizes = time.perf_counter(), list[int]()
            statuses, again = asyncio.run(_ask(endpoint, asked, Path(directory) / "cache", sizes))
            seconds = time.perf_counter() - started
            print(
                f"{'streams' if stream else 'whole answers'}: {half:,} requests in {seconds:.0f} s; {dict(statuses)};"
                f" {again:,} were asked again after a useless answer; memory {sizes[len(sizes) // 10] >> 10} MiB"
                f" after a tenth, {sizes[-1] >> 10} MiB at the end",
                flush=True,
            )
    pipe.send("counts")
    whole, kinds = pipe.recv()
    lost = sum(str(number) not in whole for number in range(2 * half))
    twice = sum(count > 1 for count in whole.values())
    print(f"answers by the endpoint: {kinds}; lost: {lost}; paid twice: {twice}")


async def _ask(endpoint: Endpoint, asked: list[ChatRequest], cache: Path, sizes: list[int]) -> tuple[Counter[str], int]:
    """The statuses of all, and how many had to be asked in a further round."""
    statuses: Counter[str] = Counter()
    left, again = list(range(len(asked))), 0
    while left:
        open_ones = []
        async with Client(endpoint, cache) as client:
            async for place, reply in client.run(asked[number] for number in left):
                if reply.status == "ok":
                    assert reply.text == f"re: {asked[left[place]].messages[0]['content']}"
                    statuses["ok"] += 1
                else:
                    open_ones.append(left[place])
                if len(sizes) < 10_000:
                    sizes.append(_memory())
        again += len(open_ones)
        left = open_ones
    return statuses, again


def _memory() -> int:
    """Resident memory in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
