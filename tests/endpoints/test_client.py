"""The client against an endpoint on a real socket that fails in every way it can."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from faulty import FaultyEndpoint, running

from lmlab.endpoints import BudgetExceeded, ChatRequest, Client, Endpoint, EndpointUnavailable, Price, Reply, ReplyCache
from lmlab.endpoints.client.transport import retry_after
from lmlab.errors import UserError


def ask(text: str, **options: Any) -> ChatRequest:
    return ChatRequest(({"role": "user", "content": text},), max_tokens=8, **options)


def run(
    served: FaultyEndpoint, requests: list[ChatRequest], cache: Path | None = None, **options: Any
) -> tuple[list[Reply], Client]:
    async def work() -> tuple[list[Reply], Client]:
        async with Client(Endpoint(model="m", base_url=served.url, **options), cache) as client:
            found = {number: reply async for number, reply in client.run(requests)}
        return [found[number] for number in range(len(requests))], client

    return asyncio.run(work())


@pytest.fixture
def served():
    with running(FaultyEndpoint()) as endpoint:
        yield endpoint


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("lmlab.endpoints.client.client.random.uniform", lambda low, high: 0.0)


@pytest.mark.parametrize("stream", [False, True])
def test_every_request_gets_its_own_answer(served, stream):
    replies, client = run(served, [ask(f"é{i}", n=2) for i in range(30)], stream=stream)
    assert [[choice.text for choice in reply.choices] for reply in replies] == [[f"re: é{i}"] * 2 for i in range(30)]
    assert {reply.usage.prompt for reply in replies} == {10} and client.sent == 30


@pytest.mark.parametrize("fault", [408, 409, 425, 429, 500, 502, 503, "hang", "cut", "malformed", "empty"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_passing_fault_is_tried_again(served, no_waiting, fault, stream):
    served.faults = [fault, fault]
    (reply,), client = run(served, [ask("x")], stream=stream, timeout_s=0.3)
    assert (reply.status, reply.text, reply.attempts, client.sent) == ("ok", "re: x", 3, 3)


def test_a_lasting_fault_is_reported_and_not_cached(served, no_waiting, tmp_path):
    served.faults = [500] * 3
    (reply,), client = run(served, [ask("x")], tmp_path / "cache", max_retries=2)
    assert (
        reply.status == "failed"
        and "status 500: fault 500" in str(reply.error)
        and reply.attempts == 3
        and client.counts == {"failed": 1}
    )
    (reply,), _ = run(served, [ask("x")], tmp_path / "cache")
    assert reply.text == "re: x"


def test_nothing_listening_is_reported(no_waiting):
    (reply,), _ = run(FaultyEndpoint(url="http://127.0.0.1:9/v1"), [ask("x")], max_retries=1)
    assert reply.status == "failed" and "no connection" in str(reply.error)


@pytest.mark.parametrize(
    ("code", "status", "again"),
    [
        ("content_filter", "content_filter", 0),
        ("context_length_exceeded", "context_length_exceeded", 0),
        ("invalid_value", "rejected", 1),
    ],
)
def test_refusals_of_a_request_are_statuses_and_verdicts_are_cached(served, tmp_path, code, status, again):
    served.faults = [(400, {}, {"message": "no", "code": code})] * 2
    for sent in (1, again):
        (reply,), client = run(served, [ask("x")], tmp_path / "cache")
        assert (reply.status, client.sent) == (status, sent)


@pytest.mark.parametrize(("status", "word"), [(401, "key"), (403, "key"), (404, "base_url")])
def test_a_wrong_key_or_address_ends_the_run_at_once(served, status, word):
    served.faults = [status] * 100
    with pytest.raises(UserError, match=word):
        run(served, [ask(str(i)) for i in range(100)], concurrency=2)
    assert len(served.bodies) <= 4


def test_the_key_comes_from_the_environment_and_shows_up_nowhere(served, monkeypatch, tmp_path, caplog, no_waiting):
    caplog.set_level(logging.DEBUG)
    with pytest.raises(UserError, match="JUDGE_KEY is not set"):
        run(served, [ask("x")], key_env="JUDGE_KEY")
    monkeypatch.setenv("JUDGE_KEY", "sk-very-secret")
    served.faults = [
        (500, {}, {"message": "bad key sk-very-secret"}),
        (400, {}, {"message": "sk-very-secret", "code": "content_filter"}),
    ]
    (reply,), client = run(served, [ask("x")], tmp_path / "cache", key_env="JUDGE_KEY")
    assert "Authorization: Bearer sk-very-secret".lower() in served.headers[0].lower()
    seen = (
        caplog.text
        + repr(reply)
        + repr(vars(client)["endpoint"])
        + "".join(p.read_bytes().decode("latin1") for p in tmp_path.iterdir())
    )
    assert "very-secret" not in seen and "***" in seen
    served.faults = [(401, {}, {"message": "no such key: sk-very-secret"})]
    with pytest.raises(UserError) as error:
        run(served, [ask("y")], key_env="JUDGE_KEY")
    assert "very-secret" not in str(error.value)


@pytest.mark.parametrize(
    ("events", "status"),
    [
        (
            [
                {"choices": [{"index": 0, "delta": {"content": "x"}}]},
                {"error": {"code": "content_filter", "message": "no"}},
            ],
            "content_filter",
        ),
        ([{"error": {"code": "context_length_exceeded", "message": "long"}}], "context_length_exceeded"),
        (
            [{"choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "content_filter"}]}, "[DONE]"],
            "content_filter",
        ),
    ],
)
def test_a_verdict_within_a_stream_is_one(served, tmp_path, events, status):
    if events[-1] == "[DONE]":
        served.answer, served.reason = lambda body: "", "content_filter"
    else:
        served.faults = [events]
    for sent in (1, 0):
        (reply,), client = run(served, [ask("x")], tmp_path / "cache", stream=True)
        assert (reply.status, client.sent) == (status, sent)


def test_another_error_within_a_stream_is_tried_again(served, no_waiting):
    served.faults = [[{"choices": [{"index": 0, "delta": {"content": "half"}}]}, {"error": {"message": "overloaded"}}]]
    (reply,), _ = run(served, [ask("x")], stream=True)
    assert (reply.text, reply.attempts) == ("re: x", 2)


def test_an_answer_that_trickles_is_ended_by_the_total_time(served, no_waiting):
    served.faults = ["trickle"]
    started = time.monotonic()
    (reply,), _ = run(served, [ask("x")], timeout_s=30, total_timeout_s=0.4)
    assert (reply.status, reply.attempts) == ("ok", 2) and time.monotonic() - started < 5


def test_a_run_ends_when_all_requests_fail(served, no_waiting):
    served.faults = [500] * 1000
    with pytest.raises(EndpointUnavailable, match="[56] requests in a row have failed") as error:  # two are under way
        run(served, [ask(str(i)) for i in range(50)], max_retries=1, concurrency=2, give_up_after=5)
    assert error.value.exit_code == 5 and len(served.bodies) <= 16


def test_addresses_that_cannot_be_are_refused():
    for url, word in [("localhost:8000", "no address"), ("ftp://x/v1", "no address"), ("http://u:p@x/v1", "password")]:
        with pytest.raises(UserError, match=word):
            Client(Endpoint(model="m", base_url=url))


def test_retry_after_is_honored(served, no_waiting):
    served.faults = [(429, {"Retry-After": "0.5"}, {"message": "slow"})]
    started = time.monotonic()
    run(served, [ask("x"), ask("y")], concurrency=1)
    assert time.monotonic() - started >= 0.5


def test_retry_after_is_read_in_both_forms():
    assert [retry_after(header) for header in (None, "3", "-1", "soon")] == [0, 3, 0, 0]
    assert 28 < retry_after(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 30


def test_no_more_requests_at_once_than_allowed(served):
    served.delay_s = 0.02
    run(served, [ask(str(i)) for i in range(30)], concurrency=4)
    assert served.most_at_once == 4


def test_too_many_requests_halve_the_crowd_once_and_successes_raise_it(served, no_waiting):
    served.delay_s, served.faults = 0.02, [429] * 8
    _, client = run(served, [ask(str(i)) for i in range(8)], concurrency=8)
    assert client._limit.now == 4
    served.faults = [429]
    _, client = run(served, [ask(str(i)) for i in range(60)], concurrency=8)
    assert 6 <= client._limit.now <= 7


@pytest.mark.parametrize("limits", [{"requests_per_minute": 1200}, {"tokens_per_minute": 1200 * 17}])
def test_requests_and_tokens_are_spread_over_the_minute(served, limits):
    started = time.monotonic()
    run(served, [ask(str(i)) for i in range(40)], **limits)  # a request counts 9 + 8 tokens before its reply, 15 after
    assert 0.7 <= time.monotonic() - started <= 4  # 20 a second after a burst of one second


def test_a_second_run_sends_nothing(served, tmp_path):
    requests = [ask(str(i), sample=j) for i in range(10) for j in range(2)]
    first, _ = run(served, requests, tmp_path / "cache")
    second, client = run(served, requests, tmp_path / "cache")
    assert [reply.choices for reply in first] == [reply.choices for reply in second] and all(
        reply.cached for reply in second
    )
    assert client.sent == 0 and len(served.bodies) == 20 and client.counts == {"cached": 20}


def test_equal_requests_are_one_request_even_at_the_same_time(served):
    served.delay_s = 0.05
    replies, client = run(served, [ask("x")] * 10)
    assert client.sent == 1 and len({reply.text for reply in replies}) == 1


def test_log_probabilities_survive_the_cache():
    reply = Reply.from_json(
        '{"status": "ok", "choices": [{"text": "A", "finish_reason": "stop", '
        '"log_probs": [{"token": "A", "log_prob": -0.5, '
        '"top": [["A", -0.5], ["B", -1.0]]}]}], "usage": {"prompt": 1}, "error": null, "seconds": 0.1}'
    )
    assert Reply.from_json(reply.to_json()) == reply
    assert reply.choices[0].log_probs[0].top == (("A", -0.5), ("B", -1.0))


PRICE = Price(prompt=1e5, completion=1e5)  # a reply of 10 + 5 tokens costs $1.5, the worst case of ask("x") is $1.7


def test_the_ceiling_is_never_passed_and_counts_earlier_runs(served, tmp_path):
    served.delay_s = 0.01
    requests = [ask("x", sample=i) for i in range(20)]
    options = {"price": PRICE, "max_cost_usd": 9.5, "cache": tmp_path / "cache"}
    for sent in (6, 6):
        with pytest.raises(BudgetExceeded) as error:
            run(served, requests, **options)
        assert len(served.bodies) == sent and error.value.exit_code == 4  # 6 * 1.5 = 9
    replies, client = run(served, requests, **options | {"max_cost_usd": 100})
    assert (
        len(served.bodies) == 20
        and client.purse.spent == pytest.approx(30)
        and sum(reply.cost_usd for reply in replies) == pytest.approx(21)
    )


def test_a_reply_that_never_came_counts_as_its_worst_case(served, no_waiting):
    served.faults = ["empty"] * 5
    with pytest.raises(BudgetExceeded):
        run(served, [ask("x")], price=PRICE, max_cost_usd=4)
    assert len(served.bodies) == 2


def test_costs_are_not_guessed(served):
    (reply,), _ = run(served, [ask("x")])
    assert reply.cost_usd is None
    with pytest.raises(UserError, match="price"):
        Client(Endpoint(model="m", max_cost_usd=1))
    served.report_usage = False
    (reply,), _ = run(served, [ask("x")])
    assert reply.usage.estimated and reply.usage.completion == 2


def test_a_claim_of_a_living_process_is_respected_and_that_of_a_dead_one_is_not(tmp_path):
    ours, theirs = ReplyCache(tmp_path / "cache"), ReplyCache(tmp_path / "cache")
    claim = ours.claim("k")
    assert claim is not None and ours.claim("k") is None and theirs.claim("k") is None
    ours.put("k", "m", Reply("ok"))
    assert claim.release() and theirs.claim("k") is None and theirs.get("k") == Reply("ok")
    given_back = ours.claim("failed")
    assert given_back is not None and given_back.release() and theirs.claim("failed") is not None
    code = (
        "from pathlib import Path; from lmlab.endpoints import ReplyCache; assert"
        f" ReplyCache(Path({str(tmp_path / 'cache')!r})).claim('dead')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert theirs.claim("dead")


def test_a_file_that_is_no_cache_is_refused(tmp_path):
    (tmp_path / "cache").write_text("not a database, and longer than the header of one would be" * 10)
    with pytest.raises(UserError, match="cannot be used as a cache"):
        ReplyCache(tmp_path / "cache")


WORKER = """
import sys
from pathlib import Path
from lmlab.endpoints import ChatRequest, Endpoint, answer
from lmlab.errors import Interrupted
url, directory, count = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
requests = (ChatRequest(({"role": "user", "content": str(i)},)) for i in range(count))
with open(directory / "told", "a") as told:
    try:
        endpoint = Endpoint(model="m", base_url=url, concurrency=8)
        answer(endpoint, requests, lambda n, reply: print(n, file=told, flush=True), directory / "cache")
    except Interrupted as error:
        sys.exit(error.exit_code)
"""


def start_worker(served: FaultyEndpoint, directory: Path, count: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, served.url, str(directory), str(count)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for(served: FaultyEndpoint, requests: int) -> None:
    until = time.monotonic() + 30
    while len(served.bodies) < requests and time.monotonic() < until:
        time.sleep(0.005)


def questions(served: FaultyEndpoint) -> list[int]:
    return [int(body["messages"][0]["content"]) for body in served.bodies]


def test_nothing_that_came_is_asked_for_again_after_kills(served, tmp_path):
    served.delay_s = 0.02
    for _ in range(3):
        worker = start_worker(served, tmp_path, 200)
        wait_for(served, len(served.bodies) + 30)
        worker.kill()
        worker.wait()
        kept = {int(line) for line in (tmp_path / "told").read_text().split()}
        before = len(served.bodies)
    assert start_worker(served, tmp_path, 200).wait() == 0
    assert not kept & set(questions(served)[before:])
    assert (
        set(questions(served)) == set(range(200)) and len(served.bodies) <= 200 + 3 * 8
    )  # what was under way at a kill


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_stop_loses_nothing_at_all(served, tmp_path, number):
    served.delay_s = 0.05
    worker = start_worker(served, tmp_path, 100)
    wait_for(served, 20)
    worker.send_signal(number)
    assert worker.wait() == 130 and len(served.bodies) < 100
    assert start_worker(served, tmp_path, 100).wait() == 0
    assert sorted(questions(served)) == list(range(100))


def test_two_processes_on_one_cache_share_the_work(served, tmp_path):
    served.delay_s = 0.02
    workers = [start_worker(served, tmp_path, 60) for _ in range(2)]
    assert [worker.wait() for worker in workers] == [0, 0]
    assert sorted(questions(served)) == list(range(60))
