"""The batch interface end to end, against a provider on a real socket."""

from __future__ import annotations

import http.server
import json
import re
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lmlab.endpoints import ChatRequest, Endpoint, Price, ReplyCache
from lmlab.endpoints.client.batch_jobs import BatchJobs
from lmlab.errors import LmlabError, UserError


class Provider:
    """Keeps files and batches; a batch ends after some looks."""

    def __init__(self, looks: int = 2) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks, self.lose_answers, self.faults, self.status = looks, 0, 0, "completed"
        self.seen: list[str] = []
        self.fails: set[str] = set()

    def call(self, method: str, path: str, body: bytes) -> tuple[int, bytes]:
        self.seen.append(f"{method} {path}")
        if method == "GET" and self.faults:
            self.faults -= 1
            return 503, b'{"error": {"message": "later"}}'
        if (method, path) == ("POST", "/v1/files"):
            name = f"file-{len(self.files)}"
            self.files[name] = re.split(rb"\r\n\r\n", body)[-1].rsplit(b"\r\n--", 1)[0]
            self.files[name] = max(re.findall(rb"\{.*\}", body, re.DOTALL), key=len)
            return 200, json.dumps({"id": name}).encode()
        if (method, path) == ("POST", "/v1/batches"):
            asked = json.loads(body)
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {"id": name, "status": "validating", "left": self.looks, **asked}
            if self.lose_answers:
                self.lose_answers -= 1
                return 500, b"lost"
            return 200, json.dumps(self.batches[name]).encode()
        if (method, path) == ("GET", "/v1/batches"):
            return 200, json.dumps({"data": list(self.batches.values())}).encode()
        if found := re.fullmatch(r"/v1/batches/(.+)", path):
            return 200, json.dumps(self._look(self.batches[found[1]])).encode()
        if found := re.fullmatch(r"/v1/files/(.+)/content", path):
            return 200, self.files[found[1]]
        return 404, b"{}"

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch["id"] in self.fails:
            return batch | {"status": "failed", "errors": {"data": [{"message": "Enqueued token limit reached"}]}}
        batch["left"] -= 1
        if batch["left"] > 0:
            return batch | {"status": "in_progress"}
        if self.status == "failed":
            return batch | {"status": "failed", "errors": {"data": [{"message": "too many"}]}}
        rows = [json.loads(line) for line in self.files[batch["input_file_id"]].splitlines()]
        good, bad = [], []
        for row in rows:
            text = row["body"]["messages"][-1]["content"]
            if text == "bad":
                error = {"message": "no", "code": "invalid_value"}
                bad.append({"custom_id": row["custom_id"], "response": {"status_code": 400, "body": {"error": error}}})
            else:
                choice = {"message": {"content": f"re: {text}"}, "finish_reason": "stop"}
                body = {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 5}}
                good.append({"custom_id": row["custom_id"], "response": {"status_code": 200, "body": body}})
        self.files["out-" + batch["id"]] = b"\n".join(json.dumps(row).encode() for row in good)
        self.files["err-" + batch["id"]] = b"\n".join(json.dumps(row).encode() for row in bad)
        ended = {"status": "completed", "output_file_id": "out-" + batch["id"], "error_file_id": "err-" + batch["id"]}
        return batch | ended


@pytest.fixture
def provider() -> Iterator[Any]:
    provider = Provider()

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            status, content = provider.call(self.command, self.path.partition("?")[0], body)
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_any

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    provider.url = f"http://127.0.0.1:{server.server_port}/v1"
    yield provider
    server.shutdown()
    thread.join()


def asked(count: int, *more: str) -> list[ChatRequest]:
    return [ChatRequest(({"role": "user", "content": text},)) for text in (*map(str, range(count)), *more)]


def jobs(provider: Any, folder: Path, **options: Any) -> BatchJobs:
    endpoint = Endpoint(model="m", base_url=provider.url, price=Price(prompt=1e5, completion=1e5), max_retries=2)
    return BatchJobs(endpoint, folder / "batches", folder / "cache", **options)


def kept(folder: Path) -> int:
    cache = ReplyCache(folder / "cache")
    try:
        return len(cache)
    finally:
        cache.close()


def test_batches_are_handed_in_waited_for_and_collected(provider, tmp_path):
    with jobs(provider, tmp_path, most=4) as work:
        lines: list[str] = []
        counts = work.run(asked(9, "bad", "3"), 0.01, tell=lines.append)
    assert counts == {"ok": 9, "rejected": 1} and len(provider.batches) == 3 and kept(tmp_path) == 9
    assert any("in_progress" in line for line in lines) and not (tmp_path / "batches/batches.json").exists()
    provider.seen.clear()
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(9), 0.01) == {} and not any("POST" in call for call in provider.seen)


def test_one_batch_that_is_refused_costs_the_others_nothing(provider, tmp_path):
    provider.fails, provider.looks = {"batch-1"}, 3
    with jobs(provider, tmp_path, most=4) as work, pytest.raises(LmlabError, match="Enqueued token limit"):
        work.run(asked(8), 0.01)
    assert len(provider.batches) == 2
    with jobs(provider, tmp_path, most=4) as work:  # other files, so that their hashes find no batch again
        assert work.run(asked(8)[::-1], 0.01) == {"ok": 8}
    handed_in = [len(provider.files[each["input_file_id"]].splitlines()) for each in provider.batches.values()]
    assert handed_in == [4, 4, 4] and kept(tmp_path) == 8


def test_all_batches_that_are_refused_are_told_at_once_and_the_others_kept(provider, tmp_path):
    provider.fails, provider.looks = {"batch-0", "batch-2"}, 1
    with jobs(provider, tmp_path, most=2) as work:
        with pytest.raises(LmlabError, match="refuses 2 batches: batch-0.*batch-2"):
            work.run(asked(6), 0.01)
        assert len(provider.batches) == 3 and kept(tmp_path) == 2
        assert work.run(asked(6)[::-1], 0.01) == {"ok": 4}
    assert len(provider.batches) == 5 and kept(tmp_path) == 6


def test_a_run_that_was_cut_off_collects_the_same_batches(provider, tmp_path, monkeypatch):
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(5), wait=False)["under_way"] == 1
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(5), 0.01) == {"ok": 5}
    assert len(provider.batches) == 1


def test_a_run_that_goes_on_with_other_requests_loses_none(provider, tmp_path):
    with jobs(provider, tmp_path) as work:
        work.run(asked(5), wait=False)
    with jobs(provider, tmp_path) as work:  # two are asked no more, and two are new
        assert work.run(asked(5)[2:] + asked(0, "new", "newer"), 0.01) == {"ok": 7}
    assert kept(tmp_path) == 7 and len(provider.batches) == 2
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(5, "new", "newer"), 0.01) == {}


def test_batches_of_another_model_are_not_thrown_away(provider, tmp_path):
    with jobs(provider, tmp_path) as work:
        work.run(asked(5), wait=False)
    with jobs(provider, tmp_path) as work:
        work.endpoint = work.endpoint.model_copy(update={"model": "other"})
        with pytest.raises(UserError, match="the model 'm' are under way"):
            work.run(asked(5), 0.01)
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(5), 0.01) == {"ok": 5}


def test_a_batch_whose_answer_was_lost_is_not_handed_in_again(provider, tmp_path):
    provider.lose_answers = 1
    with jobs(provider, tmp_path) as work, pytest.raises(LmlabError, match="Run the same command again"):
        work.run(asked(5), 0.01)
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(5), 0.01) == {"ok": 5}
    assert len(provider.batches) == 1


def test_passing_faults_are_waited_out_and_refusals_are_told(provider, tmp_path, monkeypatch):
    monkeypatch.setattr("lmlab.endpoints.client.batch_jobs.time.sleep", lambda seconds: None)
    provider.faults = 2
    with jobs(provider, tmp_path) as work:
        assert work.run(asked(3)) == {"ok": 3}
    provider.status = "failed"
    with jobs(provider, tmp_path) as work, pytest.raises(LmlabError, match="too many"):
        work.run(asked(5))
    provider.url = provider.url.replace("/v1", "/nowhere")
    with jobs(provider, tmp_path) as work, pytest.raises(UserError, match="batch interface"):
        work.run(asked(6))


def test_the_command_hands_in_and_collects(provider, tmp_path, lmlab):
    (tmp_path / "asked.jsonl").write_text('{"id": "a", "prompt": "x"}\n{"id": "b", "prompt": "bad"}\n')
    options = ["--endpoint", "openai:m", "--base-url", provider.url, "--batch", "--poll-s", "0.01"]
    out = tmp_path / "out.jsonl"
    first = lmlab("ask", tmp_path / "asked.jsonl", *options, "--no-wait", "--out", out)
    assert first.code == 0 and "under way" in first.out and not out.exists()
    assert lmlab("ask", tmp_path / "asked.jsonl", *options, "--out", out).code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in rows] == [("a", "ok"), ("b", "not_answered")]


def test_a_file_that_is_handed_in_is_no_larger_than_providers_take(provider: Provider, tmp_path: Path) -> None:
    requests = [ChatRequest(({"role": "user", "content": f"{n}" * 5000},)) for n in range(6)]
    with jobs(provider, tmp_path, most_bytes=12_000) as work:
        counts = work.run(requests, poll_s=0.01, tell=lambda line: None)
    assert counts == {"ok": 6} and len(provider.batches) == 3
    assert max(len(each) for name, each in provider.files.items() if name.startswith("file-")) <= 12_000


def test_requests_are_gone_through_and_not_held(provider: Provider, tmp_path: Path) -> None:
    class Requests:
        alive = most = 0

        def __iter__(self) -> Iterator[ChatRequest]:
            for number in range(40):
                request = ChatRequest(({"role": "user", "content": f"{number}"},))
                weakref.finalize(request, self._gone)
                self.alive += 1
                self.most = max(self.most, self.alive)
                yield request
                del request

        def _gone(self) -> None:
            self.alive -= 1

    requests = Requests()
    with jobs(provider, tmp_path, most=5) as work:
        assert work.run(requests, poll_s=0.01, tell=lambda line: None) == {"ok": 40}
    assert requests.most <= 12
