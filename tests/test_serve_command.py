"""The command `lmlab serve` as a process."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.data import TULU_TEMPLATE, Tokenizer
from lmlab.errors import UserError
from lmlab.models import ModelConfig, Transformer, save_pretrained

BODY = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A train stage's directory, with the model in the folder `model`."""
    directory = tmp_path_factory.mktemp("run") / "tiny"
    tokenizer = Tokenizer.train(["a b c"], 260)
    tokenizer.save(directory / "model")
    save_pretrained(
        Transformer(ModelConfig(vocab_size=260, num_layers=1, d_model=16, num_heads=2, max_seq_len=20_000)).initialize(
            0
        ),
        directory / "model",
    )
    (directory / "template.jinja").write_text(TULU_TEMPLATE)
    return directory


@pytest.fixture
def start(tiny, forkserver):
    """Start the command; give the process and the address that it prints."""
    started = []

    def work(*arguments, **environment):
        (process,) = forkserver.start("serve", tiny, "--port", "0", *arguments, environment=environment)
        started.append(process)
        until = time.monotonic() + 60
        while not process.read_error().endswith("\n") and process.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        line = process.read_error().partition("\n")[0]
        assert "Serving 'tiny' at http://" in line, process.read_error()
        return process, line.split(" at ")[1].split(" ")[0]

    yield work
    for process in started:
        process.kill()
        process.wait()


def fail(*arguments):
    """The error of a command that must not start."""
    done = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert isinstance(done.exception, UserError), done.output
    return str(done.exception)


def test_tokens_are_looked_up_for_one_text_at_a_time_and_the_answer_is_the_same(start):
    body = BODY | {"messages": [{"role": "user", "content": "a b c a b c"}], "max_tokens": 40, "temperature": 0}
    answers = []
    for arguments in ((), ("--draft-tokens", "6")):
        _, url = start("--chat-template", "tulu", *arguments)
        answers.append(httpx.post(url + "/chat/completions", json=body, timeout=30).json()["choices"][0]["message"])
    assert answers[0] == answers[1]
    assert "--draft-tokens is for models that write texts" in fail("nowhere", "--embeddings", "--draft-tokens", "6")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_request_under_way_end_and_stops_cleanly(start, tiny, number):
    process, url = start("--chat-template", str(tiny / "template.jinja"))
    assert httpx.post(url + "/chat/completions", json=BODY).json()["choices"][0]["finish_reason"] in ("stop", "length")
    found = []
    body = BODY | {"max_tokens": 1500, "logit_bias": {"0": -100}}
    thread = threading.Thread(target=lambda: found.append(httpx.post(url + "/chat/completions", json=body, timeout=30)))
    thread.start()
    while httpx.get(url.removesuffix("/v1") + "/health").json()["running"] == 0:
        time.sleep(0.01)
    process.send_signal(number)
    thread.join()
    assert found[0].status_code == 200 and found[0].json()["usage"]["completion_tokens"] == 1500
    assert process.wait(timeout=20) == 0 and process.read_error().splitlines()[1:] == ["Stopped."]


def test_a_second_signal_does_not_wait(start, tiny):
    process, url = start("--chat-template", "tulu")
    broken = []

    def ask():
        try:
            broken.append(
                httpx.post(
                    url + "/chat/completions", json=BODY | {"max_tokens": 19_000, "logit_bias": {"0": -100}}, timeout=60
                )
            )
        except httpx.TransportError as error:
            broken.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while httpx.get(url.removesuffix("/v1") + "/health").json()["running"] == 0:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    thread.join()
    assert isinstance(broken[0], httpx.TransportError) or broken[0].status_code == 500


def test_a_model_without_a_chat_template_completes_and_says_why_it_does_not_chat(start):
    """Also at the other loopback, where there is one: its name has colons."""
    try:
        with socket.socket(socket.AF_INET6) as free:
            free.bind(("::1", 0))
        host, name = "::1", "[::1]"
    except OSError:
        host = name = "127.0.0.1"
    _, url = start("--host", host)
    assert url.startswith(f"http://{name}:")
    assert httpx.post(url + "/completions", json={"model": "tiny", "prompt": "a", "max_tokens": 3}).status_code == 200
    response = httpx.post(url + "/chat/completions", json=BODY)
    assert response.status_code == 400 and "no chat template" in response.json()["error"]["message"]


def test_the_key_comes_from_the_environment(start, tiny):
    _, url = start("--key-env", "SERVE_KEY", SERVE_KEY="sk-secret")
    assert httpx.get(url + "/models").status_code == 401
    assert httpx.get(url + "/models", headers={"authorization": "Bearer sk-secret"}).status_code == 200
    assert "SERVE_KEY is not set" in fail(tiny, "--key-env", "SERVE_KEY")


def test_what_cannot_be_served_is_said_before_the_model_is_read(tiny):
    assert "everybody who reaches this machine" in fail("nowhere", "--host", "0.0.0.0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        assert "cannot be used" in fail("nowhere", "--port", taken.getsockname()[1])
    assert "no address of this machine" in fail(tiny, "--host", "no.such.host.invalid", "--allow-anyone")
    assert "nowhere" in fail("nowhere")
    assert "precision: input should be" in fail(tiny, "--precision", "fp7")


def test_a_missing_package_is_one_sentence_that_names_the_extra(tiny):
    code = (
        f"import sys; sys.modules['uvicorn'] = None; sys.argv = ['lmlab', 'serve', {str(tiny)!r}]; from lmlab.cli"
        " import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'lmlab[serve]'" in done.stderr and "Traceback" not in done.stderr
