"""The command `lmlab ask`."""

from __future__ import annotations

import json
import os
import threading
import tracemalloc

import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.errors import UserError

ROWS = [
    {"id": "a", "prompt": "What is 1 + 1?"},
    {
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
        "n": 2,
        "max_tokens": 5,
    },
    {"id": 7, "prompt": "nobody knows"},
]
SCRIPT = [{"match": r"1 \+ 1", "text": "2"}, {"match": "Hello", "text": "Good day"}]


@pytest.fixture
def place(tmp_path):
    for name, rows in (("requests", ROWS), ("script", SCRIPT)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "prices.yaml").write_text("x: {prompt: 1000, completion: 2000}\n")
    return tmp_path


def run(place, *arguments, endpoint="mock:x"):
    command = ["ask", place / "requests.jsonl", "--endpoint", endpoint, "--replies", place / "script.jsonl", *arguments]
    result = CliRunner().invoke(app, list(map(str, command)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return " ".join(result.output.split())


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_replies_come_in_the_order_of_the_requests_and_a_second_run_asks_nothing_again(place):
    out = place / "replies.jsonl"
    assert "2 ok, 1 rejected" in run(place, "--out", out).replace("1 rejected, 2 ok", "2 ok, 1 rejected")
    rows = rows_of(out)
    assert [(row["id"], row["status"], row["texts"]) for row in rows] == [
        ("a", "ok", ["2"]),
        (2, "ok", ["Good day"] * 2),
        (7, "rejected", []),
    ]
    assert "no line of" in rows[2]["error"] and rows[0]["cost_usd"] is None
    assert "2 cached" in run(place, "--out", out) and rows_of(out) == rows


def test_a_dry_run_counts_and_sends_nothing(place):
    found = run(place, "--dry-run", "--prices", place / "prices.yaml", "--out", place / "replies.jsonl")
    assert (
        "3 requests, 0 of them answered already" in found and "up to 522 of answers" in found and "at most $1." in found
    )
    assert not (place / "replies.jsonl").exists() and not (place / "replies.jsonl.cache").exists()
    run(place, "--out", place / "replies.jsonl")
    assert "2 of them answered already" in run(place, "--dry-run", "--out", place / "replies.jsonl")
    assert "0 of them" in run(
        place, "--dry-run", "--out", place / "replies.jsonl", "--key-env", "NOT_SET", endpoint="openai:x"
    )


def test_a_batch_goes_out_and_comes_back(place):
    out, batch = place / "replies.jsonl", place / "batch.jsonl"
    assert "3 requests" in run(place, "--write-batch", batch, endpoint="openai:gpt-x")
    body = {
        "choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    lines = [{"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}} for row in rows_of(batch)]
    (place / "done.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = run(
        place,
        "--read-batch",
        place / "done.jsonl",
        "--out",
        out,
        "--base-url",
        "http://127.0.0.1:9/v1",
        endpoint="openai:gpt-x",
    )
    assert "3 ok" in found and "3 cached" in found and [row["texts"] for row in rows_of(out)] == [["yes"]] * 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "x", "temprature": 1}, "line 1: .*temprature.*Did you mean 'temperature'"),
        ({"id": 1}, "line 1: .*either 'prompt' or 'messages'"),
        ({"prompt": "x", "max_tokens": 0}, "line 1: .*max_tokens"),
        ({"messages": [{"role": "user"}]}, "line 1: .*messages.*content"),
    ],
    ids=str,
)
def test_a_line_that_is_no_request_is_named(place, row, words):
    (place / "requests.jsonl").write_text(json.dumps(row))
    with pytest.raises(UserError, match=words):
        run(place, "--out", place / "replies.jsonl")


def test_what_is_missing_is_said(place):
    with pytest.raises(UserError, match="no file for the replies"):
        run(place)
    with pytest.raises(UserError, match="Did you mean 'local'"):
        run(place, "--dry-run", endpoint="locl:x")
    with pytest.raises(UserError, match="price of the model"):
        run(place, "--out", place / "replies.jsonl", "--max-cost-usd", "1")


def test_requests_that_are_all_refused_for_what_was_given_are_the_users_mistake(tmp_path):
    """A model without a chat template: what is wrong was given, so that the command ends with 2."""
    from lmlab.data import Tokenizer
    from lmlab.models import ModelConfig, Transformer, save_pretrained

    model = tmp_path / "model"
    Tokenizer.train(["a b c"], 260).save(model)
    shape = ModelConfig(vocab_size=260, num_layers=1, d_model=16, num_heads=2, max_seq_len=64)
    save_pretrained(Transformer(shape).initialize(0), model)
    (tmp_path / "requests.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "a"}]}\n')
    command = ["ask", str(tmp_path / "requests.jsonl"), "--endpoint", f"local:{model}", "--out", str(tmp_path / "out")]
    error = CliRunner().invoke(app, command).exception
    assert isinstance(error, UserError) and "has no chat template" in error.message and ".." not in error.message


def test_neither_requests_nor_replies_are_held_in_memory(place):
    count, size = 800, 16_000
    rows = ({"id": f"r{n}", "prompt": f"{n} " + "x" * size} for n in range(count))
    (place / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "script.jsonl").write_text(json.dumps({"match": "", "text": "y" * size}) + "\n")
    out = place / "replies.jsonl"
    tracemalloc.start()
    try:
        run(place, "--out", out)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < count * size / 2, f"{peak:,} bytes of {2 * count * size:,}"
    assert [row["id"] for row in rows_of(out)] == [f"r{n}" for n in range(count)]
    assert not list(place.glob("*.tmp"))


def test_requests_come_through_a_pipe_too(place):
    pipe = place / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text("".join(json.dumps(row) + "\n" for row in ROWS)))
    writer.start()
    command = ["ask", pipe, "--endpoint", "mock:x", "--replies", place / "script.jsonl", "--out", place / "out.jsonl"]
    result = CliRunner().invoke(app, list(map(str, command)))
    writer.join()
    assert result.exception is None or result.exit_code == 0, result.output
    assert [row["id"] for row in rows_of(place / "out.jsonl")] == ["a", 2, 7]
