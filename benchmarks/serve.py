"""Requests and tokens a second of `lmlab serve`, batched and one by one, beside `transformers serve` and llama.cpp's
server, at concurrency 1 and 8.

    python benchmarks/serve.py MODEL [--requests 16] [--max-tokens 32] [--rounds 2] [--threads 1]
    [--precision fp32] [--workloads mixed:1 mixed:8 mixed:32] [--servers lmlab llama.cpp]
    [--llama PYTHON --gguf FILE [--no-repack]]

MODEL is a directory such as `lmlab convert SmolLM2-135M-Instruct.gguf models/smollm2` writes. All servers run as
processes of their own on the same number of threads, transformers in fp32 (or bf16 beside any other precision), and
llama.cpp (`llama-cpp-python[server]` in the environment of the Python that --llama names, which answers one request
after the other) from FILE. All answer the same greedy chats in turns; how many texts
are equal is said. Every chat is asked once. In the workload `mixed` they have little in common; in `chapter` all begin
with one text of some 700 tokens, another one in every round. `one by one` is `lmlab serve --max-batch 1`. The peer is
measured as it starts by default and with `--continuous-batching`; it needs the package fastapi, and a way in which it
does not work on this machine is named and left out.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import get_args

import httpx
from llama_python import AS_IN_FILE

from lmlab.config import Precision

QUESTIONS = [
    "What is the capital of France?",
    "Explain in a few words why the sky is blue, as if to a child who has never seen a physics book.",
    "Write a line of Python that sums a list.",
    "Summarize: "
    + "The boiling point of water falls with the pressure of the air above it, so water boils sooner on a mountain. "
    * 4,
    "Name three colors.",
    "Translate to French: the cat sleeps on the warm stone near the old well.",
    "Which is larger, 17 or 71? " * 6,
    "Tell me about the moon.",
]
CHAPTER = (
    "The boiling point of water falls with the pressure of the air above it, so water boils sooner on a mountain than"
    " by the sea. " * 26
)


def main() -> None:
    """Measure and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--workloads",
        type=_workload,
        nargs="+",
        default=[("mixed", 1), ("mixed", 8), ("chapter", 8)],
        help="name:concurrency",
    )
    parser.add_argument("--precision", default="fp32", choices=get_args(Precision))
    parser.add_argument("--servers", nargs="+", help="names of those that are measured; by default all that can be")
    parser.add_argument("--llama", type=Path, help="a Python with llama-cpp-python[server]")
    parser.add_argument("--gguf", type=Path, help="the same model for llama.cpp")
    parser.add_argument("--no-repack", action="store_true", help="llama.cpp's weights as in the file; others may crash")
    arguments = parser.parse_args()
    model = arguments.model.resolve()
    lmlab = [sys.executable, "-m", "lmlab", "serve", str(model), "--name", str(model)]
    lmlab += ["--precision", arguments.precision]
    peer = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(model),
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
        "--dtype",
        "float32" if arguments.precision == "fp32" else "bfloat16",
    ]
    commands = {
        "lmlab": lmlab,
        "lmlab, one by one": [*lmlab, "--max-batch", "1"],
        "transformers": peer,
        "transformers, continuous": [*peer, "--continuous-batching", "--cb-max-memory-percent", "0.1"],
    }
    if arguments.llama is not None:
        words = [arguments.llama, "-c", _LLAMA, arguments.gguf, not arguments.no_repack, arguments.threads, model]
        commands["llama.cpp"] = [str(each) for each in words]
    chosen = arguments.servers or list(commands)
    if unknown := set(chosen) - set(commands):
        parser.error(f"no server {', '.join(sorted(unknown))}; there are {', '.join(commands)}")
    servers = {name: _start(commands[name], arguments.threads) for name in chosen}
    try:
        working = {name: url for name, (process, url) in servers.items() if _works(name, process, url, str(model))}
        _compare(working, str(model), arguments)
    finally:
        for process, _ in servers.values():
            process.terminate()
        for process, _ in servers.values():
            process.wait()


_LLAMA = f"""{AS_IN_FILE}
import uvicorn
from llama_cpp.server.app import create_app
from llama_cpp.server.settings import ModelSettings, ServerSettings
threads, name = sys.argv[3:5]
port = int(sys.argv[sys.argv.index("--port") + 1])
settings = ModelSettings(
    model=place, model_alias=name, n_threads=int(threads), n_threads_batch=int(threads), n_ctx=2048, verbose=False
)
server = ServerSettings(port=port, interrupt_requests=False)  # or a new request ends the one before it
uvicorn.run(create_app(server_settings=server, model_settings=[settings]), port=port)
"""


def _workload(text: str) -> tuple[str, int]:
    name, _, concurrency = text.partition(":")
    if name not in ("mixed", "chapter"):
        raise argparse.ArgumentTypeError(f"'{name}' is neither mixed nor chapter")
    return name, int(concurrency)


def _start(command: list[str], threads: int) -> tuple[subprocess.Popen[bytes], str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        [*command, "--port", str(port)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return process, f"http://127.0.0.1:{port}/v1"


def _works(name: str, process: subprocess.Popen[bytes], url: str, model: str) -> bool:
    """Wait until a server answers a first request, which also warms it up."""
    until = time.monotonic() + 120
    problem = "it does not answer"
    while time.monotonic() < until and process.poll() is None:
        try:
            response = httpx.post(f"{url}/chat/completions", json=_body(model, QUESTIONS[0], 4), timeout=60)
            if response.status_code == 200:
                return True
            problem = f"status {response.status_code}: {response.text[:200]}"
            if response.status_code >= 500:
                break
        except httpx.ConnectError:
            pass
        except httpx.TransportError as error:
            problem = type(error).__name__
            break
        time.sleep(0.5)
    print(f"{name} is left out: {problem}")
    process.kill()
    return False


def _compare(servers: dict[str, str], model: str, arguments: argparse.Namespace) -> None:
    first = next(iter(servers))
    for workload, concurrency in arguments.workloads:
        seconds: dict[str, list[float]] = {name: [] for name in servers}
        tokens: dict[str, int] = {}
        texts: dict[str, list[str]] = {}
        for number in range(arguments.rounds):
            questions = _questions(workload, f"{concurrency}.{number}", arguments.requests)
            for name, url in servers.items():
                started = time.perf_counter()
                texts[name], tokens[name] = asyncio.run(
                    _ask_all(url, model, questions, arguments.max_tokens, concurrency)
                )
                seconds[name].append(time.perf_counter() - started)
        ours = arguments.requests / statistics.median(seconds[first])
        for name in servers:
            rate = arguments.requests / statistics.median(seconds[name])
            same = sum(a == b for a, b in zip(texts[name], texts[first], strict=True))
            speed = f"{rate:6.2f} requests/s, {rate * tokens[name] / arguments.requests:6.1f} tokens/s"
            told = (
                f"{workload}, concurrency {concurrency}: {name:26} {speed}; {first} is {ours / rate:.2f} times as fast"
            )
            load = os.getloadavg()[0]
            print(f"{told}; {same} of {len(texts[name])} texts equal; load {load:.1f}", flush=True)


def _questions(workload: str, number: str, count: int) -> list[str]:
    chapter = "" if workload == "mixed" else f"Chapter {number}. " + CHAPTER
    return [f"{chapter}{number}.{each}: {QUESTIONS[each % len(QUESTIONS)]}" for each in range(count)]


def _body(model: str, question: str, max_tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": max_tokens,
        "temperature": 0,
        "seed": 0,
    }


async def _ask_all(
    url: str, model: str, questions: list[str], max_tokens: int, concurrency: int
) -> tuple[list[str], int]:
    places = asyncio.Semaphore(concurrency)
    async with httpx.AsyncClient(timeout=600) as http:

        async def ask(question: str) -> tuple[str, int]:
            async with places:
                response = await http.post(f"{url}/chat/completions", json=_body(model, question, max_tokens))
                body = response.raise_for_status().json()
                return body["choices"][0]["message"]["content"], body["usage"]["completion_tokens"]

        replies = await asyncio.gather(*map(ask, questions))
    return [text for text, _ in replies], sum(tokens for _, tokens in replies)


if __name__ == "__main__":
    main()
