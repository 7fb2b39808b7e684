"""The client and what providers make of the protocol: refusals, dialects, endless waits, empty accounts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
from faulty import FaultyEndpoint, completion, running
from test_client import PRICE, ask, run
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.endpoints import Endpoint, EndpointUnavailable, ReplyCache, estimate
from lmlab.endpoints.client.transport import retry_after
from lmlab.errors import UserError


@pytest.fixture
def served():
    with running(FaultyEndpoint()) as endpoint:
        yield endpoint


@pytest.fixture
def no_waiting(monkeypatch):
    monkeypatch.setattr("lmlab.endpoints.client.client.random.uniform", lambda low, high: 0.0)


CALL = {"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}


@pytest.mark.parametrize(
    ("message", "finish", "status", "word"),
    [
        ({"content": None, "refusal": "I will not."}, "stop", "refused", "I will not."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "stop", "refused", "No."),
        ({"content": "Let me see.", "tool_calls": [CALL]}, "tool_calls", "tool_calls", "look"),
        ({"content": None, "function_call": {"name": "old", "arguments": ""}}, "function_call", "tool_calls", "old"),
        ({"content": "", "reasoning_content": "Well..."}, "length", "no_answer", "max_tokens"),
        ({"content": None, "reasoning": "Well..."}, "stop", "no_answer", "reasoned"),
        ({"content": None}, "length", "no_answer", "max_tokens"),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}]}]},
            "stop",
            "no_answer",
            "gave",
        ),
    ],
)
def test_what_is_no_answer_has_a_status_and_is_asked_again(served, tmp_path, message, finish, status, word):
    served.faults = [completion(message, finish, usage={"prompt_tokens": 10, "completion_tokens": 5})]
    (reply,), client = run(served, [ask("x")], tmp_path / "cache", price=PRICE)
    assert reply.status == status and not reply.text and word in str(reply.error) and client.counts == {status: 1}
    again, client = run(served, [ask("x")], tmp_path / "cache", price=PRICE)
    assert (again[0].status, again[0].text, client.sent) == ("ok", "re: x", 1)
    assert client.purse.spent == pytest.approx(3.0)  # both were paid for, though one was kept


def test_hidden_reasoning_is_told_by_the_usage(served):
    details = {"prompt_tokens": 1, "completion_tokens": 8, "completion_tokens_details": {"reasoning_tokens": 8}}
    served.faults = [completion({"content": ""}, "length", usage=details)]
    (reply,), _ = run(served, [ask("x")])
    assert reply.status == "no_answer"


def test_calls_of_tools_that_were_offered_are_kept(served, tmp_path):
    served.faults = [completion({"content": None, "tool_calls": [CALL]}, "tool_calls")]
    for sent in (1, 0):
        (reply,), client = run(served, [ask("x")], tmp_path / "cache", extra_body={"tools": [{"type": "function"}]})
        assert (reply.status, reply.choices[0].tool_calls, client.sent) == ("tool_calls", (CALL,), sent)


def test_one_answer_among_several_makes_the_reply_one(served):
    choices = [
        {"index": i, "message": m, "finish_reason": "stop"}
        for i, m in enumerate([{"content": "A"}, {"content": None, "refusal": "no"}])
    ]
    served.faults = [(200, {}, {"choices": choices})]
    (reply,), _ = run(served, [ask("x", n=2)])
    assert reply.status == "ok" and [choice.text for choice in reply.choices] == ["A", ""]


@pytest.mark.parametrize(
    "usage",
    [None, {}, {"prompt_tokens": None, "completion_tokens": None}, {"prompt_tokens": 3, "completion_tokens": None}],
)
def test_parts_and_missing_usage_are_read(served, usage):
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    served.faults = [completion({"content": parts}, usage=usage)]
    (reply,), _ = run(served, [ask("x")])
    assert (reply.status, reply.text, reply.attempts) == ("ok", "one two", 1)
    assert reply.usage.estimated and reply.usage.completion == 2


@pytest.mark.parametrize(
    "usage",
    [
        "n/a",
        [1],
        {"prompt_tokens": -5, "completion_tokens": -7},
        {"prompt_tokens": {}, "completion_tokens": "many"},
        {"completion_tokens_details": [1], "prompt_tokens_details": 3},
    ],
)
def test_a_usage_that_is_none_does_not_cost_the_answer(served, usage):
    served.faults = [completion({"content": "two words"}, usage=usage)]
    (reply,), client = run(served, [ask("x")], price=PRICE)
    assert (reply.status, reply.attempts, client.sent) == ("ok", 1, 1)
    assert reply.usage.estimated and reply.usage.completion == 3 and (reply.cost_usd or 0) > 0


def test_more_cached_tokens_than_there_are_cost_no_less_than_nothing(served):
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 50}}
    served.faults = [completion({"content": "a"}, usage=usage)]
    (reply,), _ = run(served, [ask("x")], price=PRICE)
    assert reply.usage.cached == 1


@pytest.mark.parametrize("finish", ["error", "abort", "insufficient_system_resource", "network_error", "ERROR"])
@pytest.mark.parametrize("text", ["", "half an ans"])
def test_an_answer_that_broke_off_is_asked_for_again(served, no_waiting, finish, text):
    served.faults = [completion({"content": text}, finish)]
    (reply,), _ = run(served, [ask("x")])
    assert (reply.status, reply.text, reply.attempts) == ("ok", "re: x", 2)


@pytest.mark.parametrize("finish", ["SAFETY", "content_filter: RECITATION", "PROHIBITED_CONTENT", "sensitive"])
def test_every_provider_s_filter_is_one(served, finish):
    served.faults = [completion({"content": ""}, finish)]
    (reply,), _ = run(served, [ask("x")])
    assert (reply.status, reply.attempts) == ("content_filter", 1)


def test_nothing_within_the_length_is_no_answer_but_a_token_is(served):
    served.faults = [completion({"content": ""}, "length"), completion({"content": "\n"}, "length")]
    replies, _ = run(served, [ask("x"), ask("y")], concurrency=1)
    assert [reply.status for reply in replies] == ["no_answer", "ok"]


def test_requests_may_hold_parts(served):
    (reply,), _ = run(served, [ask([{"type": "text", "text": "x"}])], price=PRICE, max_cost_usd=100)
    assert reply.status == "ok" and served.bodies[0]["messages"][0]["content"] == [{"type": "text", "text": "x"}]


def event(delta: dict[str, Any], finish: str | None = None) -> str:
    return "data: " + json.dumps(
        {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}, ensure_ascii=False
    )


@pytest.mark.parametrize("end", ["\n\n", "\r\n\r\n", "\r\r"])
@pytest.mark.parametrize("announced", [True, False])
def test_a_stream_has_the_line_ends_of_its_standard_and_no_others(served, end, announced):
    text = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1cg"
    pieces = [event({"content": text}), ": a comment", event({}, "stop"), *(["data: [DONE]"] if announced else [])]
    served.faults = [(end.join(pieces) + end).encode()]
    (reply,), _ = run(served, [ask("x")], stream=True)
    assert (reply.text, reply.attempts) == (text, 1)


def test_a_stream_that_refuses_reasons_or_calls(served):
    for deltas, status in [
        ([{"refusal": "I "}, {"refusal": "won't"}], "refused"),
        ([{"reasoning_content": "hm"}], "no_answer"),
        (
            [
                {"tool_calls": [{"index": 0, "id": "1", "function": {"name": "look"}}]},
                {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
            ],
            "tool_calls",
        ),
    ]:
        served.faults = [("\n\n".join([*map(event, deltas), event({}, "stop"), "data: [DONE]"]) + "\n\n").encode()]
        (reply,), _ = run(served, [ask("x")], stream=True)
        assert reply.status == status


@pytest.mark.parametrize(
    "strange",
    [
        {"choices": ["x"]},
        {"choices": [{"delta": "x"}]},
        {"choices": {"0": 1}},
        {"choices": [{"index": [1], "delta": {}}]},
        {"choices": [{"delta": {"tool_calls": [None]}}]},
        {"choices": [{"delta": {}, "logprobs": [1]}]},
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "error", "error": {"message": "upstream"}}]},
    ],
)
def test_a_stream_with_something_strange_in_it_is_asked_for_again(served, no_waiting, strange):
    served.faults = [f"data: {json.dumps(strange)}\n\n{event({}, 'stop')}\n\ndata: [DONE]\n\n".encode()]
    (reply,), _ = run(served, [ask("x")], stream=True)
    assert (reply.status, reply.text, reply.attempts) == ("ok", "re: x", 2)


def test_a_stream_that_ends_before_the_second_answer_is_not_whole(served, no_waiting):
    served.faults = [f"{event({'content': 'A'}, 'stop')}\n\n".encode()]
    (reply,), _ = run(served, [ask("x", n=2)], stream=True)
    assert (len(reply.choices), reply.attempts) == (2, 2)


def test_a_stream_may_begin_with_a_mark_of_its_byte_order(served):
    served.faults = [("\ufeff" + "\n\n".join([event({"content": "first"}, "stop"), "data: [DONE]", ""])).encode()]
    (reply,), _ = run(served, [ask("x")], stream=True)
    assert (reply.text, reply.attempts) == ("first", 1)


def test_an_endpoint_without_streams_is_paid_once(served):
    served.faults = [completion({"content": "whole"})]
    (reply,), _ = run(served, [ask("x")], stream=True)
    assert (reply.text, reply.attempts) == ("whole", 1)


def test_a_limit_of_google_s_is_waited_for_and_no_empty_account(served, no_waiting):
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.4s"}]
    message = "You exceeded your current quota, please check your plan and billing details."
    served.faults = [(429, {}, {"message": message, "status": "RESOURCE_EXHAUSTED", "details": details})]
    started = time.monotonic()
    (reply,), _ = run(served, [ask("x")])
    assert (reply.status, reply.attempts) == ("ok", 2) and 0.4 <= time.monotonic() - started < 20


def test_the_tokens_of_a_minute_are_no_context(served):
    message = "Request too large for model `m` on tokens per minute (TPM): Limit 12000, Requested 25342"
    served.faults = [(413, {}, {"message": message, "type": "tokens", "code": "rate_limit_exceeded"})]
    (reply,), _ = run(served, [ask("x")])
    assert reply.status == "rejected"


@pytest.mark.parametrize(
    "message",
    [
        "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).",
        "Please reduce the length of the messages or completion.",
        "Range of input length should be [1, 30720]",
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000",
    ],
)
@pytest.mark.parametrize("status", [400, 500])
def test_a_text_that_is_too_long_is_told_in_many_words(served, message, status):
    served.faults = [(status, {}, {"message": message})]
    (reply,), _ = run(served, [ask("x")])
    assert (reply.status, reply.attempts) == ("context_length_exceeded", 1)


def test_one_forbidden_request_does_not_end_the_run(served):
    flagged = (403, {}, {"message": 'openai/m requires moderation. Your input was flagged for "violence"', "code": 403})
    served.faults = [flagged, "ok", (403, {}, {"message": "This country is not served."})]
    replies, _ = run(served, [ask("w"), ask("x"), ask("y"), ask("z")], concurrency=1)
    assert [reply.status for reply in replies] == ["content_filter", "ok", "rejected", "ok"]
    served.faults = [(403, {}, {"message": "This key may not."})]
    with pytest.raises(UserError, match="refuses the key"):
        run(served, [ask("v")])


@pytest.mark.parametrize(
    ("more", "most"),
    [
        ({}, 8),
        ({"max_completion_tokens": 500}, 500),
        ({"n": 5}, 40),
        ({"n": 5, "max_tokens": None, "max_completion_tokens": 7}, 35),
        ({"max_tokens": None}, None),
    ],
)
def test_further_fields_count_in_the_worst_case(served, more, most):
    request = ask("x")
    assert Endpoint(model="m", extra_body=more).shaped(request).most_new_tokens() == most
    if most is None:
        with pytest.raises(UserError, match="bounded length"):
            run(served, [request], extra_body=more, price=PRICE, max_cost_usd=100)
        assert not served.bodies


@pytest.mark.parametrize("name", ["model", "messages", "stream"])
def test_what_has_a_setting_of_its_own_is_no_further_field(name):
    for settings in ({"extra_body": {name: True}}, {"omit": [name]}):
        with pytest.raises(UserError, match=f"'{name}' has a setting of its own"):
            Endpoint.named("openai:m", **settings)


def test_max_tokens_goes_by_the_name_that_the_model_knows(served):
    served.refuses = ("max_tokens",)
    replies, client = run(served, [ask(str(i)) for i in range(30)], concurrency=2)
    assert {reply.status for reply in replies} == {"ok"} and client.sent == 30
    assert served.bodies[-1]["max_completion_tokens"] == 8 and len(served.bodies) <= 32


@pytest.mark.parametrize("name", ["temperature", "n"])
def test_a_field_that_the_model_refuses_ends_the_run_at_once_with_the_remedy(served, name):
    served.refuses = (name,)
    with pytest.raises(UserError, match=f"refuses '{name}'") as error:
        run(served, [ask(str(i)) for i in range(30)], concurrency=4)
    assert f"omit: [{name}]" in str(error.value) and len(served.bodies) <= 8
    replies, _ = run(served, [ask(str(i)) for i in range(30)], omit=(name,))
    assert {reply.status for reply in replies} == {"ok"} and name not in served.bodies[-1]


def test_a_refused_field_is_known_by_its_words_too(served):
    served.faults = [(422, {}, {"message": "body -> temperature: Extra inputs are not permitted"})] * 30
    with pytest.raises(UserError, match="refuses 'temperature'"):
        run(served, [ask(str(i)) for i in range(30)], concurrency=1)
    assert len(served.bodies) <= 2


def test_after_an_answer_one_refused_request_is_its_own_matter(served):
    refused = (400, {}, {"message": "Unsupported parameter: 'seed'", "param": "seed", "code": "unsupported_parameter"})
    served.faults = ["ok", refused]
    replies, _ = run(served, [ask("x"), ask("y", seed=1), ask("z")], concurrency=1)
    assert [reply.status for reply in replies] == ["ok", "rejected", "ok"]


def test_many_rejections_in_the_same_words_end_the_run(served):
    served.faults = [(400, {}, {"message": f"no such deployment, request {i}"}) for i in range(100)]
    with pytest.raises(EndpointUnavailable, match="in the same words"):
        run(served, [ask(str(i)) for i in range(100)], concurrency=2, give_up_after=5)
    assert len(served.bodies) <= 8


def test_further_fields_headers_and_parameters_are_sent(served, monkeypatch, tmp_path):
    monkeypatch.setenv("AZURE_KEY", "very-secret-indeed")
    options = {
        "extra_body": {"reasoning_effort": "low"},
        "headers": {"api-key": "$AZURE_KEY", "x-team": "lab"},
        "query": {"api-version": "2026-01-01"},
    }
    run(served, [ask("x")], tmp_path / "cache", **options)
    assert served.bodies[0]["reasoning_effort"] == "low" and served.paths[0].endswith("?api-version=2026-01-01")
    assert "api-key: very-secret-indeed" in served.headers[0].lower() and "x-team: lab" in served.headers[0].lower()
    assert b"very-secret" not in (tmp_path / "cache").read_bytes()
    _, client = run(served, [ask("x")], tmp_path / "cache")
    assert client.sent == 1  # another effort is another question
    with pytest.raises(UserError, match="holds a key"):
        run(served, [ask("x")], headers={"Authorization": "Bearer abc"})
    with pytest.raises(UserError, match="NOWHERE is not set"):
        run(served, [ask("x")], headers={"api-key": "$NOWHERE"})
    endpoint = Endpoint(model="m", **options)
    assert estimate(endpoint, [ask("x")], tmp_path / "cache", "m").cached == 1


@pytest.mark.parametrize(
    "fault",
    [
        402,
        (
            429,
            {},
            {"message": "You exceeded your current quota", "type": "insufficient_quota", "code": "insufficient_quota"},
        ),
        (400, {}, {"message": "Your credit balance is too low to access the API."}),
        (200, {}, {"error": {"code": 402, "message": "Insufficient Balance"}}),
    ],
)
def test_an_account_without_credit_ends_the_run_at_once(served, fault):
    served.faults = [fault] * 100
    with pytest.raises(EndpointUnavailable, match="credit") as error:
        run(served, [ask(str(i)) for i in range(50)], concurrency=2)
    assert error.value.exit_code == 5 and len(served.bodies) <= 4


@pytest.mark.parametrize("header", ["7200", "inf", "1e400", "nan", "Fri, 31 Dec 2999 23:59:59 GMT"])
@pytest.mark.parametrize("status", [429, 500])
def test_a_wait_beyond_reason_is_not_waited_for(served, no_waiting, header, status):
    served.faults = [(status, {"Retry-After": header}, {"message": "slow"})]
    started = time.monotonic()
    replies, _ = run(served, [ask("x"), ask("y")])
    assert {reply.status for reply in replies} == {"ok"} and time.monotonic() - started < 10


def test_milliseconds_go_before_seconds(served, no_waiting):
    served.faults = [(429, {"Retry-After-Ms": "300", "Retry-After": "40"}, {"message": "slow"})]
    started = time.monotonic()
    run(served, [ask("x")])
    assert 0.3 <= time.monotonic() - started < 20
    assert retry_after("infinity") == 0 and retry_after("Mon, 99 Jun 2026") == 0


STUBBORN = """
import sys
from lmlab.endpoints import ChatRequest, Endpoint, answer
from lmlab.errors import LmlabError
requests = [ChatRequest(({"role": "user", "content": str(i)},)) for i in range(20)]
try:
    answer(Endpoint(model="m", base_url=sys.argv[1], concurrency=4), requests, lambda n, reply: None)
except LmlabError as error:
    sys.exit(error.exit_code)
"""


@pytest.mark.parametrize("fault", [(429, {"Retry-After": "50"}, {"message": "slow"}), "hang"])
def test_waits_can_be_interrupted(served, fault):
    served.faults = [fault] * 1000
    worker = subprocess.Popen([sys.executable, "-c", STUBBORN, served.url], env={**os.environ, "OMP_NUM_THREADS": "1"})
    until = time.monotonic() + 60
    while len(served.bodies) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.3)
    stopped = time.monotonic()
    worker.send_signal(signal.SIGINT)
    if fault == "hang":  # what was sent is waited for, unless the user asks twice
        time.sleep(0.3)
        worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 130 and time.monotonic() - stopped < 15


def test_the_command_writes_what_was_paid_for_at_its_ceiling(served, tmp_path):
    rows = [{"id": i, "prompt": "x", "sample": i, "max_tokens": 8} for i in range(20)]
    (tmp_path / "asked.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prices.yaml").write_text("m: {prompt: 100000, completion: 100000}\n")
    command = ["ask", tmp_path / "asked.jsonl", "--endpoint", "openai:m", "--base-url", served.url, "--prices"]
    command += [tmp_path / "prices.yaml", "--max-cost-usd", 9.5, "--out", tmp_path / "out.jsonl"]
    result = CliRunner().invoke(app, list(map(str, command)))
    assert result.exit_code == 4 or getattr(result.exception, "exit_code", None) == 4
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in found] == list(range(20))
    assert [row["status"] for row in found].count("ok") == 6 and found[-1]["status"] == "not_asked"


def test_what_a_useless_reply_cost_counts_against_the_ceiling(tmp_path):
    cache = ReplyCache(tmp_path / "cache")
    from lmlab.endpoints import Reply

    cache.note_paid("k", "m", Reply("refused", cost_usd=2.0))
    assert cache.spent("m") == 2.0 and cache.get("k") is None and cache.spent("other") == 0
