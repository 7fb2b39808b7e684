"""Server-sent events to the body that the same request would have got whole."""

from __future__ import annotations

import codecs
from collections.abc import AsyncIterator
from typing import Any

from lmlab.endpoints.reading import Malformed
from lmlab.files.parsing import json_value

_LONGEST_EVENT = 64 << 20  # bytes: no answer is as long, and a stream without line ends would fill memory
_MOST_CALLS = 1024  # of tools in one reply; the list grows up to a number that the endpoint sends


async def events(chunks: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The data of each event. Lines end with CR, LF or both, as the standard says, and with nothing else: U+2028 and
    U+0085 may stand within a JSON string.

    Raises:
        Malformed: an event is longer than any answer.
    """
    rest, data, begun = b"", list[str](), False
    async for chunk in chunks:
        rest += chunk
        if not begun and len(rest) >= len(codecs.BOM_UTF8):
            rest, begun = rest.removeprefix(codecs.BOM_UTF8), True
        held = rest.endswith(b"\r")  # its line feed may be under way
        lines = (rest[:-1] if held else rest).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        rest = lines.pop() + (b"\r" if held else b"")
        if len(rest) > _LONGEST_EVENT:
            raise Malformed("an event of the stream has no end")
        for line in lines:
            if not line and data:
                yield "\n".join(data)
                data = []
            elif line.startswith(b"data:"):
                data.append(line.removeprefix(b"data:").decode("utf-8").removeprefix(" "))
    last = rest.rstrip(b"\r")
    if last.startswith(b"data:"):
        data.append(last.removeprefix(b"data:").decode("utf-8").removeprefix(" "))
    if data:
        yield "\n".join(data)


async def gather(chunks: AsyncIterator[bytes], answers: int = 1) -> Any:
    """Join the events of a stream to a body; an error among them is the body, and so is JSON in place of events, from
    an endpoint that knows no streams.

    Arguments:
        answers: that were asked for; a stream without its mark of the end is whole when all of them are.

    Raises:
        Malformed: the stream ends before its end was announced, or an event is none.
    """
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    begin = b""
    async for chunk in chunks:
        begin += chunk
        if begin.strip():
            break
    if begin.lstrip()[:1] in (b"{", b"["):
        return json_value(begin + b"".join([chunk async for chunk in chunks]), allow_nan=True)
    async for data in events(_after(begin, chunks)):
        if data.strip() == "[DONE]":
            return _body(choices, usage)
        event = json_value(data, allow_nan=True)
        if not isinstance(event, dict):
            raise Malformed("an event of the stream is no object")
        if event.get("error"):
            return event
        usage = event.get("usage") or usage
        try:
            for raw in event.get("choices") or ():
                index = int(raw.get("index") or 0)
                _extend(choices.setdefault(index, {"message": {}, "finish_reason": None}), raw)
        except (AttributeError, TypeError, ValueError, KeyError) as error:
            raise Malformed(f"an event of the stream is none ({type(error).__name__}: {error})") from None
    if len(choices) >= answers and all(choice["finish_reason"] for choice in choices.values()):
        return _body(choices, usage)  # some endpoints close without [DONE]
    raise Malformed("the stream ended before its end was announced")


async def _after(begin: bytes, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield begin
    async for chunk in chunks:
        yield chunk


def _body(choices: dict[int, dict[str, Any]], usage: Any) -> dict[str, Any]:
    return {"choices": [choices[index] for index in sorted(choices)], "usage": usage}


def _extend(choice: dict[str, Any], raw: dict[str, Any]) -> None:
    delta, message = raw.get("delta") or raw.get("message") or {}, choice["message"]
    for name in ("content", "refusal", "reasoning_content", "reasoning"):
        piece = delta.get(name)
        if isinstance(piece, str):
            message[name] = _joined(message.get(name), piece)
        elif isinstance(piece, list):
            message[name] = [*_parts(message.get(name)), *piece]
        elif name in delta:
            message.setdefault(name, None)
    if "content" not in message and not any(message.values()):
        message["content"] = ""
    for call in delta.get("tool_calls") or ():
        _extend_call(message.setdefault("tool_calls", []), call)
    choice["finish_reason"] = raw.get("finish_reason") or choice["finish_reason"]
    if raw.get("error"):
        choice["error"] = raw["error"]
    if raw.get("logprobs") and raw["logprobs"].get("content") is not None:
        choice.setdefault("logprobs", {"content": []})["content"] += raw["logprobs"]["content"]


def _joined(before: Any, piece: str) -> Any:
    return [*before, piece] if isinstance(before, list) else (before or "") + piece


def _parts(before: Any) -> list[Any]:
    return before if isinstance(before, list) else [before] if before else []


def _extend_call(calls: list[dict[str, Any]], piece: dict[str, Any]) -> None:
    """Join what a stream says of the call of a tool: its arguments come in pieces."""
    index = piece.get("index")
    place = index if isinstance(index, int) else len(calls)
    if not 0 <= place < _MOST_CALLS:
        raise Malformed(f"the call of a tool has the number {place}")
    while len(calls) <= place:
        calls.append({"type": "function", "function": {"name": "", "arguments": ""}})
    call, function = calls[place], piece.get("function") or {}
    call |= {name: piece[name] for name in ("id", "type") if piece.get(name)}
    for name in ("name", "arguments"):
        call["function"][name] += function.get(name) or ""
