"""Who answers a client: the real server (also through a proxy with faults), a model in process, recordings, scripts,
batch files.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc

import pytest
import torch
from faulty import FaultyEndpoint, running

from lmlab.endpoints import (
    ChatRequest,
    Client,
    Endpoint,
    MockBackend,
    Price,
    ReplyCache,
    answer,
    estimate,
    export_replies,
    read_batch,
    write_batch,
)
from lmlab.endpoints.backends import Transient
from lmlab.endpoints.engine.engine import Engine
from lmlab.endpoints.engine.local import LocalBackend
from lmlab.endpoints.server import background
from lmlab.errors import Interrupted, UserError
from lmlab.models import DecodingConfig, ModelConfig, Transformer


def ask(text, **options):
    return ChatRequest(({"role": "user", "content": text},), **{"max_tokens": 8, "seed": 1} | options)


REQUESTS = [
    ask("It was the best of times", temperature=0.9, n=2, top_logprobs=3),
    ask("of times", top_logprobs=2, logit_bias={"70": 3.0}),
    ask("été", temperature=0.7, top_p=0.9, stop=("a", "e"), top_logprobs=0),
    *(ask(str(number), temperature=0.8, seed=number) for number in range(12)),
]


def run(endpoint, requests=REQUESTS, cache=None, backend=None):
    async def work():
        async with Client(endpoint, cache, backend) as client:
            found = {number: reply async for number, reply in client.run(requests)}
        return [found[number] for number in range(len(requests))], client

    return asyncio.run(work())


@pytest.fixture(scope="module")
def url(make_served):
    with background(make_served()) as url:
        yield url


@pytest.fixture(scope="module")
def local(model_directory):
    return run(Endpoint.named(f"local:{model_directory}"))[0]


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("lmlab.endpoints.client.client.random.uniform", lambda low, high: 0.0)


def same(ours, theirs):
    """Texts, reasons and token counts are equal, log-probabilities up to rounding."""
    for a, b in zip(ours, theirs, strict=True):
        assert (a.status, a.usage) == (b.status, b.usage) == ("ok", a.usage)
        for x, y in zip(a.choices, b.choices, strict=True):
            assert (x.text, x.finish_reason, x.log_probs is None) == (y.text, y.finish_reason, y.log_probs is None)
            for s, t in zip(x.log_probs or (), y.log_probs or (), strict=True):
                assert s.token == t.token and [token for token, _ in s.top] == [token for token, _ in t.top]
                assert [s.log_prob, *(p for _, p in s.top)] == pytest.approx(
                    [t.log_prob, *(p for _, p in t.top)], abs=1e-4
                )


@pytest.mark.parametrize("stream", [False, True])
def test_the_server_and_a_local_model_give_the_same_replies(url, local, stream):
    replies, client = run(Endpoint(model="small", base_url=url, stream=stream))
    same(replies, local)
    assert client.counts == {"ok": len(REQUESTS)} and len(replies[0].choices) == 2
    assert [len(token.top) for token in replies[0].choices[0].log_probs] == [3] * len(replies[0].choices[0].log_probs)


@pytest.mark.parametrize("stream", [False, True])
def test_faults_on_the_way_to_the_server_change_nothing_but_the_attempts(url, local, no_waiting, stream):
    faults = [429, 500, "cut", "malformed", "hang", "empty", (503, {"Retry-After": "0"}, {"message": "busy"})]
    with running(FaultyEndpoint(upstream=url, faults=list(faults))) as proxy:
        replies, client = run(Endpoint(model="small", base_url=proxy.url, stream=stream, timeout_s=2))
    same(replies, local)
    assert client.sent == len(REQUESTS) + len(faults)


def test_a_prompt_that_is_too_long_is_a_status_by_every_way(url, model_directory):
    for endpoint in (Endpoint(model="small", base_url=url), Endpoint.named(f"local:{model_directory}")):
        (reply, refused), client = run(endpoint, [ask("a b " * 2000), ask("x", response_format={"type": "nothing"})])
        assert (reply.status, refused.status) == ("context_length_exceeded", "rejected") and client.sent == 2


def test_replies_of_a_local_model_are_kept_under_the_hash_of_its_files(model_directory, tmp_path):
    endpoint, cache = Endpoint.named(f"local:{model_directory}"), tmp_path / "cache"
    first, _ = run(endpoint, cache=cache)
    again, client = run(endpoint, cache=cache)
    assert client.sent == 0 and [reply.choices for reply in first] == [reply.choices for reply in again]
    assert estimate(endpoint, REQUESTS, cache).cached == len(REQUESTS)
    assert LocalBackend.load(model_directory, "bf16").identity != LocalBackend.load(model_directory).identity
    with pytest.raises(UserError, match="nowhere"):
        run(Endpoint.named("local:nowhere"))


@pytest.mark.parametrize(("again", "attempts"), [(True, 3), (False, 1)])
def test_a_failure_that_would_come_again_is_not_tried_again(no_waiting, again, attempts):
    sent = []

    def fail(request):
        sent.append(request)
        raise Transient("no numbers", again=again)

    (reply,), _ = run(Endpoint(model="m", max_retries=2), [ask("x")], backend=MockBackend(fail))
    assert (reply.status, reply.attempts, len(sent)) == ("failed", attempts, attempts)


def test_a_local_model_without_numbers_fails_at_once(make_served, no_waiting):
    served = make_served()
    with torch.no_grad():
        next(served.network.parameters())[:] = float("nan")
    backend = LocalBackend(served, "local:broken")
    (reply,), _ = run(Endpoint(model="m"), [ask("x")], backend=backend)
    assert (reply.status, reply.attempts) == ("failed", 1) and "not numbers" in (reply.error or "")


def test_recorded_replies_are_repeated_and_what_was_not_recorded_is_refused(url, tmp_path):
    cache, recording = tmp_path / "cache", tmp_path / "replies.jsonl"
    first, _ = run(Endpoint(model="small", base_url=url), cache=cache)
    assert (
        export_replies(recording, cache, "small") == len(REQUESTS)
        and export_replies(tmp_path / "none", cache, "other") == 0
    )
    again, client = run(Endpoint(model="small", backend="replay", replies=recording), [*REQUESTS, ask("new")])
    same(again[:-1], first)
    assert (
        again[-1].status == "rejected"
        and "no recorded reply" in again[-1].error
        and client.counts == {"ok": len(REQUESTS), "rejected": 1}
    )
    with pytest.raises(UserError, match="no replies of the model 'large'.*\n.*'small'"):
        run(Endpoint(model="large", backend="replay", replies=recording))
    recording.write_text('{"key": 1}\n')
    with pytest.raises(UserError, match="line 1 is no recorded reply"):
        run(Endpoint(model="small", backend="replay", replies=recording))


def test_a_script_answers_for_a_rehearsal_and_its_replies_stay_apart(tmp_path):
    script, cache = tmp_path / "script.jsonl", tmp_path / "cache"
    script.write_text('{"match": "^[0-9]+$", "text": "a number"}\n{"match": "é", "text": "accent"}\n')
    replies, _ = run(Endpoint(model="gpt-x", backend="mock", replies=script), cache=cache)
    assert (
        [reply.text for reply in replies[3:]] == ["a number"] * 12
        and replies[2].text == "accent"
        and replies[2].usage.estimated
    )
    assert {reply.status for reply in replies[:2]} == {"rejected"}
    assert ReplyCache(cache).get(REQUESTS[5].key("gpt-x")) is None
    replies, _ = run(Endpoint(model="m"), backend=MockBackend(lambda request: request.messages[-1]["content"].upper()))
    assert replies[2].text == "ÉTÉ" and len(replies[0].choices) == 2
    script.write_text('{"match": "(", "text": "x"}\n')
    with pytest.raises(UserError, match="line 1: '\\(' is no regular expression"):
        run(Endpoint(model="m", backend="mock", replies=script))


def test_back_ends_are_named_by_text():
    assert Endpoint.named("openai:org/model:tag", concurrency=3) == Endpoint(model="org/model:tag", concurrency=3)
    for text, word in [("gpt", "BACKEND:MODEL"), ("opnai:x", "Did you mean 'openai'"), ("local:", "BACKEND:MODEL")]:
        with pytest.raises(UserError, match=word):
            Endpoint.named(text)
    with pytest.raises(UserError, match="needs a file of replies"):
        Client(Endpoint(model="x", backend="mock"))


def test_a_batch_file_fills_the_cache_that_the_run_then_reads(local, tmp_path):
    path, out, cache = tmp_path / "in.jsonl", tmp_path / "out.jsonl", tmp_path / "cache"
    assert write_batch(path, "gpt-x", [*REQUESTS, REQUESTS[0]]) == len(REQUESTS)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {line["url"] for line in lines} == {"/v1/chat/completions"} and lines[0]["body"] == REQUESTS[0].body("gpt-x")
    done = [
        {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body(line["body"])}, "error": None}
        for line in lines
    ]
    done[3]["response"] = {"status_code": 400, "body": {"error": {"code": "content_filter", "message": "no"}}}
    done[4] |= {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
    out.write_text("\n".join(json.dumps(row) for row in [*done, {"custom_id": "other"}]))
    counts = read_batch(out, "gpt-x", REQUESTS, cache, Price(prompt=1, completion=2))
    assert counts == {"ok": len(REQUESTS) - 2, "content_filter": 1, "rejected": 1, "unknown": 1}
    assert (
        write_batch(path, "gpt-x", REQUESTS, cache) == 1
        and json.loads(path.read_text())["custom_id"] == lines[4]["custom_id"]
    )
    replies, client = run(Endpoint(model="gpt-x", base_url="http://127.0.0.1:9/v1", max_retries=0), cache=cache)
    assert [reply.text for reply in replies[5:]] == [request.messages[0]["content"] for request in REQUESTS[5:]]
    assert (
        client.sent == 1
        and client.counts["cached"] == len(REQUESTS) - 1
        and client.purse.spent == pytest.approx(13 * (7 + 2 * 3) / 1e6)
    )
    out.write_text('{"id": 1}\n')
    with pytest.raises(UserError, match="line 1 has no custom_id"):
        read_batch(out, "gpt-x", REQUESTS, cache)


def body(request):
    choices = [{"message": {"content": request["messages"][0]["content"]}, "finish_reason": "stop"}] * request["n"]
    return {"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


def test_a_run_is_estimated_before_anything_is_sent(tmp_path):
    cache = tmp_path / "cache"
    endpoint = Endpoint(model="m", price=Price(prompt=1, completion=10))
    requests = [ask("x" * 400, n=2, max_tokens=50, sample=number % 10) for number in range(20)]
    found = estimate(endpoint, requests, cache)
    assert (found.requests, found.cached, found.prompt_tokens, found.completion_tokens) == (10, 0, 10 * 108, 10 * 100)
    assert found.likely_usd == pytest.approx((1080 + 10_000) / 1e6) and found.most_usd == pytest.approx(
        (4080 + 10_000) / 1e6
    )
    assert not cache.exists() and "10 requests, 0 of them answered already" in str(found)
    run(endpoint, requests[:4], cache, MockBackend(lambda request: "a"))
    assert estimate(endpoint, requests, cache, "mock:mock").cached == 4
    assert estimate(Endpoint(model="m"), requests).likely_usd is None and "cost unknown" in str(
        estimate(Endpoint(model="m"), requests)
    )


def test_answers_come_from_synchronous_code_too(model_directory):
    found = {}
    counts = answer(
        Endpoint.named(f"local:{model_directory}"),
        REQUESTS[:3],
        lambda number, reply: found.__setitem__(number, reply.text),
    )
    assert counts == {"ok": 3} and sorted(found) == [0, 1, 2]


@pytest.mark.parametrize("package", ["httpx", "tenacity"])
def test_a_missing_package_is_one_sentence_that_names_the_extra(package):
    code = f"""\
import sys; sys.modules[{package!r}] = None
from lmlab.endpoints import Client, Endpoint
from lmlab.errors import UserError
try: Client(Endpoint(model='m'))
except UserError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"needs the package '{package}'" in done.stdout and "pip install 'lmlab[judge]'" in done.stdout


def test_asking_needs_no_pytorch():
    code = "import sys, lmlab.endpoints; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_nothing_but_an_http_endpoint_connects_to_anything(model_directory, tmp_path, monkeypatch):
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(f"socket.socket.{name}", lambda *_: pytest.fail("a connection was made"))
    script = tmp_path / "script.jsonl"
    script.write_text('{"text": "x"}')
    for endpoint in (Endpoint.named(f"local:{model_directory}"), Endpoint.named("mock:m", replies=script)):
        assert {reply.status for reply in run(endpoint, cache=tmp_path / "cache")[0]} == {"ok"}


def test_the_memory_of_the_client_does_not_grow_with_the_number_of_requests(tmp_path):
    sizes = []

    def take(number, reply):
        if number in (2000, 8000):
            gc.collect()
            sizes.append(tracemalloc.get_traced_memory()[0])

    requests = (ask(f"{number} " + "x" * 500) for number in range(8001))
    tracemalloc.start()
    try:
        answer(Endpoint(model="m"), requests, take, tmp_path / "cache", MockBackend(lambda request: "y" * 500))
    finally:
        tracemalloc.stop()
    assert sizes[1] - sizes[0] < 300_000


def test_an_engine_that_is_closed_in_a_long_step_is_not_waited_for(capsys, caplog):
    """A prompt of thousands of tokens takes a CPU many seconds: who stops a command does not sit them out."""
    shape = {"vocab_size": 20, "num_layers": 1, "d_model": 16, "num_heads": 2, "max_seq_len": 64}
    engine = Engine(Transformer(ModelConfig(**shape)).initialize(0), lambda ids: "", 2)
    begun, ended = threading.Event(), threading.Event()

    def read(*_: object) -> None:
        begun.set()
        ended.wait(20)
        raise RuntimeError("the loop is closed")

    engine._read = read

    async def stopped() -> float:
        engine.submit([[1, 2, 3]], DecodingConfig(max_new_tokens=4))
        await asyncio.to_thread(begun.wait, 20)
        start = time.monotonic()
        engine.close()
        return time.monotonic() - start

    assert asyncio.run(stopped()) < 5
    ended.set()
    engine._thread.join(20)
    assert not engine._thread.is_alive() and "the model failed" not in caplog.text + capsys.readouterr().err


def test_an_interrupt_gives_up_what_a_model_in_this_process_is_asked(tmp_path):
    class Slow:
        identity = "slow"

        async def send(self, request):
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(30)

        async def close(self):
            pass

    endpoint = Endpoint(model="m", backend="local")
    start = time.monotonic()
    with pytest.raises(Interrupted, match="Stopped"):
        answer(endpoint, [ChatRequest([{"role": "user", "content": "?"}], 4)], lambda number, reply: None, None, Slow())
    assert time.monotonic() - start < 10
