"""An endpoint on a real socket that fails by a script: it answers properly once the script is at its end."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

Answer = Callable[[dict[str, Any]], str]


@dataclass
class FaultyEndpoint:
    """`faults` holds, for the requests to come: a status, (status, headers, body), "hang", "cut", "malformed", "empty",
    "trickle", a list of events of a stream, its bytes, or "ok". `refuses` names fields that are always refused. With an
    `upstream` it is a proxy: what is no fault is passed on to the server there."""

    upstream: str | None = None
    faults: list[Any] = field(default_factory=list)
    delay_s: float = 0.0
    report_usage: bool = True
    answer: Answer = lambda body: f"re: {body['messages'][-1]['content']}"
    reason: str = "stop"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    most_at_once: int = 0
    refuses: tuple[str, ...] = ()
    paths: list[str] = field(default_factory=list)
    url: str = ""
    _now: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                size = next(
                    int(line.split(b":")[1])
                    for line in head.split(b"\r\n")
                    if line.lower().startswith(b"content-length")
                )
                body = json.loads(await reader.readexactly(size))
                self.headers.append(head.decode())
                self.paths.append(head.split()[1].decode())
                self.bodies.append(body)
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
                try:
                    if not await self._respond(writer, body, self.faults.pop(0) if self.faults else "ok"):
                        return
                finally:
                    self._now -= 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _respond(self, writer: asyncio.StreamWriter, body: dict[str, Any], fault: Any) -> bool:
        """Whether the connection can be used again."""
        await asyncio.sleep(self.delay_s)
        for name in self.refuses:
            if name in body:
                said = f"Unsupported parameter: '{name}' is not supported with this model."
                error = {
                    "message": said,
                    "type": "invalid_request_error",
                    "param": name,
                    "code": "unsupported_parameter",
                }
                return await _write(writer, 400, {}, json.dumps({"error": error}).encode())
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "empty":
            return False
        if fault == "malformed":
            return await _write(writer, 200, {}, b'{"choices": [')
        if isinstance(fault, int):
            return await _write(writer, fault, {}, json.dumps({"error": {"message": f"fault {fault}"}}).encode())
        if isinstance(fault, tuple):
            status, headers, error = fault
            sent = error if status == 200 else {"error": error}
            return await _write(writer, status, headers, json.dumps(sent).encode())
        if isinstance(fault, bytes):  # a stream, byte for byte
            return await _write(writer, 200, {}, fault)
        if fault == "trickle":
            return await _trickle(writer)
        if isinstance(fault, list):
            return await _write(
                writer, 200, {}, b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in fault)
            )
        if self.upstream is not None:
            async with httpx.AsyncClient(timeout=60) as http:
                passed = await http.post(f"{self.upstream}/chat/completions", json=body)
            return await _write(writer, passed.status_code, {}, passed.content, cut=fault == "cut")
        content = self._events(body) if body.get("stream") else self._whole(body)
        return await _write(writer, 200, {}, content, cut=fault == "cut")

    def _usage(self) -> dict[str, Any]:
        return {"usage": {"prompt_tokens": 10, "completion_tokens": 5}} if self.report_usage else {}

    def _whole(self, body: dict[str, Any]) -> bytes:
        choices = [
            {"index": i, "message": {"role": "assistant", "content": self.answer(body)}, "finish_reason": "stop"}
            for i in range(body.get("n", 1))
        ]
        return json.dumps({"choices": choices, **self._usage()}).encode()

    def _events(self, body: dict[str, Any]) -> bytes:
        pieces = [
            {"choices": [{"index": i, "delta": {"content": letter}}]}
            for i in range(body.get("n", 1))
            for letter in self.answer(body)
        ]
        ends = [{"choices": [{"index": i, "delta": {}, "finish_reason": self.reason}]} for i in range(body.get("n", 1))]
        events = [*pieces, *ends, {"choices": [], **self._usage()}]
        return b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events) + b"data: [DONE]\n\n"


async def _write(
    writer: asyncio.StreamWriter, status: int, headers: dict[str, str], content: bytes, cut: bool = False
) -> bool:
    lines = [
        f"HTTP/1.1 {status} X",
        f"content-length: {len(content)}",
        "content-type: application/json",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (content[: len(content) // 2] if cut else content))
    await writer.drain()
    return not cut


async def _trickle(writer: asyncio.StreamWriter) -> bool:
    writer.write(b"HTTP/1.1 200 X\r\ncontent-length: 100000\r\ncontent-type: application/json\r\n\r\n")
    for _ in range(200):
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)
    return False


@contextmanager
def running(endpoint: FaultyEndpoint) -> Iterator[FaultyEndpoint]:
    """Serve from a thread on a free port of the loopback."""
    loop, ready, tasks = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> None:
        tasks.append(await asyncio.start_server(endpoint.serve, "127.0.0.1", 0))
        endpoint.url = f"http://127.0.0.1:{tasks[0].sockets[0].getsockname()[1]}/v1"

    def work() -> None:
        loop.run_until_complete(start())
        loop.call_soon(ready.set)  # only once it runs for good can it be stopped
        loop.run_forever()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        tasks[0].close()
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    try:
        yield endpoint
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def completion(message: dict[str, Any], finish: str = "stop", **more: Any) -> tuple[int, dict[str, str], Any]:
    """A fault that is a whole answer: this message, and further fields of the body."""
    return 200, {}, {"choices": [{"index": 0, "message": message, "finish_reason": finish}], **more}
