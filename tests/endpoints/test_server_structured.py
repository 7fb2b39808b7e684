"""Answers of the server that are JSON of a schema, or calls of tools, and connections that come to nothing. The model
has random weights and would write neither.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from lmlab.data import Tokenizer
from lmlab.endpoints import ChatRequest
from lmlab.endpoints.engine.guides import _LlGuide
from lmlab.endpoints.engine.local import LocalBackend
from lmlab.endpoints.engine.tools import MOST_CALLS, read_calls
from lmlab.endpoints.server import ServerConfig, background
from lmlab.endpoints.server.connections import BoundedProtocol
from lmlab.endpoints.server.forms import ChatForm
from lmlab.models import Continuation, DecodingConfig

pytest.importorskip("llguidance")
MESSAGES = [{"role": "user", "content": "It was the best of times"}]
SCHEMA = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "minimum": 1, "maximum": 5}, "word": {"enum": ["été", "worst"]}},
    "required": ["grade", "word"],
    "additionalProperties": False,
}


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


TOOLS = [tool("add", a={"type": "boolean"}, b={"type": "boolean"}), tool("look", place={"enum": ["here", "there"]})]


@pytest.fixture(scope="module")
def served(make_served):
    model = make_served(max_rows=8)
    with background(model, ServerConfig(hosts=("127.0.0.1", "[::1]"))) as url:
        model.url = url
        yield model


@pytest.fixture(scope="module")
def client(served):
    with openai.OpenAI(base_url=served.url, api_key="none", max_retries=0, timeout=120) as client:
        yield client


def checked(content: str) -> dict[str, Any]:
    found = json.loads(content)
    assert set(found) == {"grade", "word"} and 1 <= found["grade"] <= 5 and found["word"] in ("été", "worst")
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.5])
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_keeps_to_its_schema(client, temperature, stream):
    form = {"type": "json_schema", "json_schema": {"name": "grade", "schema": SCHEMA, "strict": True}}
    options = {"model": "small", "messages": MESSAGES, "temperature": temperature, "seed": 1, "max_tokens": 400}
    reply = client.chat.completions.create(**options, n=3, response_format=form, stream=stream)
    texts, reasons = ["", "", ""], set()
    if stream:
        for event in reply:
            for choice in event.choices:
                texts[choice.index] += choice.delta.content or ""
                reasons.add(choice.finish_reason)
    else:
        texts = [choice.message.content for choice in reply.choices]
        reasons = {choice.finish_reason for choice in reply.choices}
    assert all(checked(text) for text in texts) and reasons - {None} == {"stop"}


def test_free_and_bound_answers_share_the_batch(client, served):
    from concurrent.futures import ThreadPoolExecutor

    alone = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0, max_tokens=30)
    form = {"type": "json_schema", "json_schema": {"name": "grade", "schema": SCHEMA}}

    def ask(number: int) -> str:
        bound = {"response_format": form, "max_tokens": 400} if number % 2 else {"max_tokens": 30}
        reply = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0, **bound)
        return reply.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(8)))
    assert set(texts[::2]) == {alone.choices[0].message.content} and all(map(checked, texts[1::2]))


def test_json_mode_gives_an_object_and_a_bad_schema_is_refused(client):
    options = {"model": "small", "messages": MESSAGES, "temperature": 0}
    reply = client.chat.completions.create(**options, max_tokens=60, response_format={"type": "json_object"})
    assert reply.choices[0].message.content.startswith("{")
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    with pytest.raises(openai.BadRequestError, match="schema cannot be followed"):
        client.chat.completions.create(**options, max_tokens=60, response_format=bad)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "look"}}])
def test_a_call_that_is_demanded_is_made(client, choice, stream):
    options = {"model": "small", "messages": MESSAGES, "temperature": 1.0, "seed": 3, "max_tokens": 400}
    options["parallel_tool_calls"] = False
    reply = client.chat.completions.create(**options, tools=TOOLS, tool_choice=choice, stream=stream)
    if stream:
        events = list(reply)
        (call,) = [each for event in events for part in event.choices for each in part.delta.tool_calls or ()]
        finish = [part.finish_reason for event in events for part in event.choices][-1]
    else:
        (call,) = reply.choices[0].message.tool_calls
        finish = reply.choices[0].finish_reason
        assert reply.choices[0].message.content is None
    arguments = json.loads(call.function.arguments)
    assert finish == "tool_calls" and call.id
    if isinstance(choice, dict) or call.function.name == "look":
        assert call.function.name == "look" and arguments["place"] in ("here", "there")
    else:
        assert call.function.name == "add" and {type(arguments[name]) for name in "ab"} == {bool}


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_may_be_several_calls(client, stream):
    options = {"model": "small", "messages": MESSAGES, "temperature": 1.5, "max_tokens": 400, "tools": TOOLS}
    numbers = []
    for seed in range(8):
        reply = client.chat.completions.create(**options, seed=seed, tool_choice="required", stream=stream)
        if stream:
            parts = [part for event in reply for part in event.choices]
            calls, finish = [each for part in parts for each in part.delta.tool_calls or ()], parts[-1].finish_reason
            assert [each.index for each in calls] == list(range(len(calls)))
        else:
            calls, finish = reply.choices[0].message.tool_calls or [], reply.choices[0].finish_reason
        if finish == "length":  # the last call was cut off, and what is no call whole is told as text
            assert not calls
            continue
        assert finish == "tool_calls" and len({each.id for each in calls}) == len(calls) <= MOST_CALLS
        assert all(isinstance(json.loads(each.function.arguments), dict) for each in calls)
        numbers.append(len(calls))
    assert max(numbers) > 1


def test_a_call_that_is_not_demanded_may_be_a_text_and_results_come_back(client):
    options = {"model": "small", "temperature": 0, "max_tokens": 20}
    message = client.chat.completions.create(**options, messages=MESSAGES, tools=TOOLS).choices[0].message
    assert (message.content is None) == bool(message.tool_calls)
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"place": "here"}'}}
    turns = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "nothing"},
    ]
    assert client.chat.completions.create(**options, messages=turns, tools=TOOLS).choices[0].finish_reason
    fly = {"type": "function", "function": {"name": "fly"}}
    with pytest.raises(openai.BadRequestError, match="no tool 'fly'"):
        client.chat.completions.create(**options, messages=MESSAGES, tools=TOOLS, tool_choice=fly)


def test_calls_are_read_in_both_forms_and_only_of_tools_that_there_are():
    bare = '{"name": "add", "arguments": {"a": 1}}'
    for text in (bare, f"<tool_call>\n{bare}\n</tool_call>"):
        (call,) = read_calls(text, ["add"])
        assert call["function"] == {"name": "add", "arguments": '{"a": 1}'}
    for text in (
        f"{bare}\n{bare}",
        f"[{bare}, {bare}]",
        f"<tool_call>{bare}</tool_call>\n<tool_call>{bare}</tool_call>",
    ):
        assert [each["function"]["arguments"] for each in read_calls(text, ["add"])] == ['{"a": 1}'] * 2
    other = '{"name": "fly", "arguments": {}}'
    nan = '{"name": "add", "arguments": {"a": NaN}}'
    deep = "[" * 100_000
    for text in (
        other,
        f"{bare}\n{other}",
        f"{bare} so",
        '{"name": "add", "arguments": 3}',
        "add",
        "[1]",
        "",
        nan,
        '{"name": "add", "arguments": {"a": 1e999}}',
        deep,
    ):
        assert read_calls(text, ["add"]) == []
    (call,) = read_calls('{"name": "add", "arguments": {"a": "\\ud800", "b": "\u00e9"}}', ["add"])
    assert json.loads(call["function"]["arguments"].encode()) == {"a": "\ud800", "b": "\u00e9"}  # can be sent


def test_no_more_calls_are_told_than_were_allowed_however_they_are_written(model_directory: Path):
    tokenizer = Tokenizer.load(model_directory)
    bare = '{"name": "add", "arguments": {"a": 1}}'
    tagged = f"<tool_call>{bare}</tool_call>\n" * 20
    for text in (tagged, f"[{bare}, {bare}]"):
        alone = ChatForm(tokenizer, False, ["add"], 1)
        assert len(alone.choice(0, text, [], "stop")["message"]["tool_calls"]) == 1
        (called, _) = alone.piece(0, text, [], "stop")
        assert len(called["delta"]["tool_calls"]) == 1
    assert len(ChatForm(tokenizer, False, ["add"]).choice(0, tagged, [], "stop")["message"]["tool_calls"]) == MOST_CALLS


def test_a_model_in_this_process_keeps_to_a_schema_too(model_directory: Path):
    async def ask() -> Any:
        backend = LocalBackend.load(model_directory)
        try:
            form = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
            return await backend.send(
                ChatRequest(tuple(MESSAGES), max_tokens=400, temperature=1.0, response_format=form)
            )
        finally:
            await backend.close()

    assert checked(asyncio.run(ask()).text)


def connected(served: Any, sent: bytes) -> socket.socket:
    place = urlsplit(served.url)
    connection = socket.create_connection((place.hostname, place.port), timeout=20)
    connection.sendall(sent)
    return connection


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Half: ",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    ],
)
def test_a_silent_or_half_sent_head_does_not_hold_a_connection(served, monkeypatch, sent):
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.5)
    connection, started, received = connected(served, sent), time.monotonic(), b""
    with connection:
        while part := connection.recv(65536):
            received += part
    assert time.monotonic() - started < 15
    assert b"408" in received and b'"error"' in received and b"did not come in time" in received
    assert (received.count(b'"status":"ok"') == 1) == (sent.count(b"GET") == 2)  # what was whole was answered


def test_a_head_that_trickles_is_bounded_and_a_slow_answer_is_not(served, client, monkeypatch):
    monkeypatch.setattr(BoundedProtocol, "head_timeout_s", 0.6)
    with connected(served, b"GET /health HTTP/1.1\r\n") as connection:
        started = time.monotonic()
        try:
            while time.monotonic() - started < 15:
                connection.sendall(b"X-More: 1\r\n")
                time.sleep(0.1)
        except OSError:
            pass
        assert time.monotonic() - started < 10
    reply = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0, max_tokens=600)
    assert reply.choices[0].message.content is not None


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:80", "", "[::2]:80"])
def test_a_refused_host_is_told_in_the_form_of_the_protocol(served, host):
    answer = httpx.get(f"{served.url}/models", headers={"Host": host})
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["code"] in ("invalid_host", None)
    for name in ("127.0.0.1", "127.0.0.1:9", "[::1]:8000", "[::1]"):
        assert httpx.get(f"{served.url}/models", headers={"Host": name}).status_code == 200


def test_what_is_no_http_is_told_in_the_form_of_the_protocol(served):
    with connected(served, b"\x16\x03\x01 nonsense\r\n\r\n") as connection:
        received = connection.recv(65536)
    assert b"400" in received.partition(b"\r\n")[0] and b'"invalid_request_error"' in received


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"anyOf": [schema]}
    return schema


@pytest.mark.parametrize(
    "schema",
    [
        nested(90),
        {"$ref": "#"},
        {"$ref": "file:///etc/passwd"},
        {"not": {}},
        {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(3000)}},
    ],
)
def test_a_schema_that_nothing_can_follow_is_refused_at_once(served, schema):
    body = {"model": "small", "messages": MESSAGES, "max_tokens": 8}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    answer = httpx.post(f"{served.url}/chat/completions", json=body | {"response_format": form}, timeout=60)
    assert answer.status_code == 400 and "cannot be followed" in answer.json()["error"]["message"]
    assert httpx.post(f"{served.url}/chat/completions", json=body, timeout=60).status_code == 200


def test_an_answer_whose_grammar_grows_too_large_is_cut_and_not_called_whole(served):
    class Matcher:
        def compute_bitmask(self) -> bytes:
            return bytes(100)

        def is_error(self) -> bool:
            return True

    guide = _LlGuide(Matcher(), 300)
    config = DecodingConfig(max_new_tokens=5, guide=lambda: guide)
    row = Continuation([1], config, 0)
    assert guide.allowed().all()
    row.append(7, 0.0, [], None)
    assert row.finish_reason == "length"
