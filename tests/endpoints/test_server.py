"""`lmlab serve` over a real socket, by the official `openai` client and by plain HTTP."""

from __future__ import annotations

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest
import torch

from lmlab.data import Tokenizer
from lmlab.endpoints.engine.prefixes import Prefixes
from lmlab.endpoints.engine.served import ServedModel
from lmlab.endpoints.server import ServerConfig, background
from lmlab.errors import UserError
from lmlab.models import Decoding, DecodingConfig, KVCache, ModelConfig, SoftPrompt, Transformer, generate
from lmlab.models.layers.linear import Linear

MESSAGES = [{"role": "user", "content": "It was the best of times"}]
LONG = 1900


@pytest.fixture(scope="module")
def small(make_served):
    served = make_served(max_rows=8)
    with background(served, ServerConfig(max_body_bytes=100_000, hosts=("127.0.0.1",))) as url:
        served.url = url
        yield served


@pytest.fixture(scope="module")
def client(small):
    with openai.OpenAI(base_url=small.url, api_key="none", max_retries=0) as client:
        yield client


def expect(small, ids, **settings):
    """What the core makes of the same request."""
    return generate(
        small.network, [ids], DecodingConfig(eos_ids=small.eos_ids, **settings), decode=small.tokenizer.decode
    )[0]


def quiet(small, within_s=5.0):
    """Wait until the engine has nothing to do."""
    until = time.monotonic() + within_s
    while (small.engine.running or small.engine.waiting) and time.monotonic() < until:
        time.sleep(0.01)
    return not small.engine.running and not small.engine.waiting


def test_the_models_are_listed(small, client):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").owned_by == "lmlab"
    with pytest.raises(openai.NotFoundError, match="There is no model 'big' here; this server has 'small'"):
        client.models.retrieve("big")


def test_a_chat_is_what_the_core_makes_of_the_same_tokens(small, client):
    ids = small.tokenizer.encode_chat(MESSAGES)
    reply = client.chat.completions.create(model="small", messages=MESSAGES, temperature=0, max_tokens=20)
    (expected,) = expect(small, ids, temperature=0, max_new_tokens=20)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (expected.text, expected.finish_reason)
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (len(ids), len(expected.ids))
    assert reply.id.startswith("chatcmpl-") and reply.object == "chat.completion" and reply.choices[0].logprobs is None


def test_samples_are_drawn_by_the_seed_and_without_one_differ_each_time(small, client):
    ids = small.tokenizer.encode_chat(MESSAGES)
    options = {"model": "small", "messages": MESSAGES, "temperature": 0.9, "top_p": 0.9, "max_tokens": 12, "n": 3}
    reply = client.chat.completions.create(**options, seed=5)
    expected = expect(small, ids, temperature=0.9, top_p=0.9, max_new_tokens=12, num_samples=3, seed=5)
    assert [choice.message.content for choice in reply.choices] == [each.text for each in expected]
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    drawn = {choice.message.content for _ in range(2) for choice in client.chat.completions.create(**options).choices}
    assert len(drawn) == 6


def test_log_probabilities_of_a_chat_are_those_of_the_core(small, client):
    reply = client.chat.completions.create(
        model="small", messages=MESSAGES, temperature=0, max_tokens=8, logprobs=True, top_logprobs=4
    )
    (expected,) = expect(small, small.tokenizer.encode_chat(MESSAGES), temperature=0, max_new_tokens=8, top_log_probs=4)
    tokens = reply.choices[0].logprobs.content
    assert [token.logprob for token in tokens] == pytest.approx(expected.log_probs, abs=1e-5)
    assert [bytes(token.bytes) for token in tokens] == [small.tokenizer.token_bytes(id) for id in expected.ids]
    assert [[bytes(o.bytes) for o in t.top_logprobs] for t in tokens] == [
        [small.tokenizer.token_bytes(i) for i, _ in top] for top in expected.top
    ]
    assert (
        b"".join(bytes(token.bytes) for token in tokens).decode("utf-8", "replace") == reply.choices[0].message.content
    )


@pytest.mark.parametrize(
    "options",
    [{"n": 2, "seed": 3}, {"temperature": 0, "logprobs": True, "top_logprobs": 2}],
    ids=["samples", "logprobs"],
)
def test_a_stream_joins_to_the_whole_answer(small, client, options):
    options = {"model": "small", "messages": MESSAGES, "max_tokens": 24} | options
    whole = client.chat.completions.create(**options)
    texts, ends, tokens, usage, pieces = {}, {}, {}, None, 0
    for event in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            pieces += bool(choice.delta.content)
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
            ends[choice.index] = choice.finish_reason or ends.get(choice.index)
            tokens.setdefault(choice.index, []).extend(choice.logprobs.content if choice.logprobs else [])
    assert [(texts[c.index], ends[c.index]) for c in whole.choices] == [
        (c.message.content, c.finish_reason) for c in whole.choices
    ]
    assert usage == whole.usage and pieces > 5
    if "logprobs" in options:
        expected = whole.choices[0].logprobs.content
        assert [t.bytes for t in tokens[0]] == [t.bytes for t in expected]
        assert [t.logprob for t in tokens[0]] == pytest.approx([t.logprob for t in expected], abs=1e-5)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_cuts_the_text_and_its_tokens(small, client, stream):
    options = {"model": "small", "messages": MESSAGES, "temperature": 0, "max_tokens": 40, "logprobs": True}
    free = client.chat.completions.create(**options).choices[0].message.content
    stop = free[8:11]
    found = client.chat.completions.create(**options, stop=["never", stop], stream=stream)
    choices = [event.choices[0] for event in found] if stream else [found.choices[0]]
    text = "".join((choice.delta.content if stream else choice.message.content) or "" for choice in choices)
    tokens = b"".join(bytes(token.bytes) for choice in choices if choice.logprobs for token in choice.logprobs.content)
    assert (text, choices[-1].finish_reason) == (free[: free.index(stop)], "stop")
    shown = tokens.decode("utf-8", "replace")
    assert shown.startswith(text) and not shown.startswith(text + stop)


def test_prompts_are_scored_by_echo_as_evaluation_harnesses_ask_for_it(small, client):
    text = "It was the worst of times, été"
    ids = small.tokenizer.encode_prompt(text)
    for prompt in (text, ids):
        (choice,) = client.completions.create(
            model="small", prompt=prompt, max_tokens=1, temperature=0, echo=True, logprobs=2
        ).choices
        (expected,) = expect(small, ids, temperature=0, max_new_tokens=1, top_log_probs=2, score_prompt=True)
        assert choice.text == text + expected.text and choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(
            expected.prompt_scores.log_probs[1:] + expected.log_probs, abs=1e-5
        )
        assert (
            len(choice.logprobs.tokens)
            == len(choice.logprobs.top_logprobs)
            == len(choice.logprobs.text_offset)
            == len(ids) + 1
        )
        for token, log_prob, top in list(
            zip(choice.logprobs.tokens, choice.logprobs.token_logprobs, choice.logprobs.top_logprobs, strict=True)
        )[1:]:
            assert top[token] == log_prob and 2 <= len(top) <= 3
        for token, offset in zip(choice.logprobs.tokens, choice.logprobs.text_offset, strict=True):
            if not token.startswith(("bytes:", "<|")):
                assert choice.text[offset : offset + len(token)] == token
    (only,) = client.completions.create(model="small", prompt=text, max_tokens=0, echo=True, logprobs=0).choices
    assert only.text == text and len(only.logprobs.tokens) == len(ids) and only.logprobs.top_logprobs is None


def test_completions_of_several_prompts_come_in_their_order(small, client):
    prompts = ["It was", "def f(x):", "数"]
    reply = client.completions.create(model="small", prompt=prompts, n=2, seed=1, max_tokens=6, temperature=0.8)
    expected = [
        each.text
        for prompt in prompts
        for each in expect(
            small, small.tokenizer.encode_prompt(prompt), num_samples=2, seed=1, max_new_tokens=6, temperature=0.8
        )
    ]
    assert [choice.text for choice in sorted(reply.choices, key=lambda choice: choice.index)] == expected
    texts = dict.fromkeys(range(6), "")
    for event in client.completions.create(
        model="small", prompt=prompts, n=2, seed=1, max_tokens=6, temperature=0.8, stream=True
    ):
        for choice in event.choices:
            texts[choice.index] += choice.text
    assert list(texts.values()) == expected


def test_a_bias_and_the_filters_are_honored(small, client):
    reply = client.completions.create(model="small", prompt="It was", max_tokens=5, logit_bias={"70": 100}, logprobs=0)
    assert (
        reply.choices[0].text == small.tokenizer.decode([70] * 5)
        and max(reply.choices[0].logprobs.token_logprobs) < -0.01
    )
    greedy = client.completions.create(model="small", prompt="It was", max_tokens=5, temperature=0).choices[0].text
    for options in ({"top_k": 1}, {"min_p": 1.0}):
        assert (
            client.completions.create(model="small", prompt="It was", max_tokens=5, temperature=2, extra_body=options)
            .choices[0]
            .text
            == greedy
        )


def test_an_answer_does_not_depend_on_the_requests_beside_it(small, client):
    def ask(number):
        text = "It was the best of times, " * (1 + number % 5)
        options = (
            {"temperature": 0}
            if number % 3 == 0
            else {"temperature": 0.9, "seed": number, "top_p": 0.9 if number % 2 else 1.0}
        )
        reply = client.completions.create(
            model="small", prompt=text, max_tokens=5 + 7 * (number % 4), n=1 + number % 2, **options
        )
        return [choice.text for choice in reply.choices]

    alone = [ask(number) for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        assert list(pool.map(ask, range(24))) == alone


def test_a_beginning_that_was_read_before_is_not_read_again_and_nobody_notices(make_served):
    served = make_served()
    chapter = "It was the best of times, it was the worst of times. " * 12
    questions = [chapter + tail for tail in ("x", "It", "def f", "x", "", "straße, 数")]
    read = []
    with background(served) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        served.network.register_forward_pre_hook(
            lambda _, inputs: read.append(inputs[0].numel()) if inputs[0].shape[1] > 1 else None
        )

        def ask(text):
            return client.completions.create(model="small", prompt=text, max_tokens=9, temperature=0.9, seed=2, n=2)

        with ThreadPoolExecutor(6) as pool:
            replies = list(pool.map(ask, questions))
    total = sum(reply.usage.prompt_tokens for reply in replies)
    assert sum(reply.usage.prompt_tokens_details.cached_tokens for reply in replies) > 0.6 * total > sum(read)
    for question, reply in zip(questions, replies, strict=True):
        ids = served.tokenizer.encode_prompt(question)
        expected = generate(
            served.network,
            [ids],
            DecodingConfig(eos_ids=served.eos_ids, max_new_tokens=9, temperature=0.9, seed=2, num_samples=2),
            decode=served.tokenizer.decode,
        )[0]
        assert [choice.text for choice in reply.choices] == [each.text for each in expected]


def test_tokens_are_looked_up_while_one_text_is_written_and_nobody_notices(make_served, monkeypatch):
    passes = []
    check = Decoding._check_draft
    monkeypatch.setattr(Decoding, "_check_draft", lambda self, *given: passes.append(self.rows) or check(self, *given))
    served = make_served(defaults={"draft_tokens": 5})
    ids = served.tokenizer.encode_chat(MESSAGES)
    settings = {"temperature": 0, "max_tokens": 60}
    with background(served) as url, openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        (expected,) = expect(served, ids, temperature=0, max_new_tokens=60)
        alone = client.chat.completions.create(model="small", messages=MESSAGES, **settings)
        stream = client.chat.completions.create(model="small", messages=MESSAGES, stream=True, **settings)
        streamed = "".join(each.choices[0].delta.content or "" for each in stream)
        assert alone.choices[0].message.content == streamed == expected.text
        assert len(alone.choices[0].message.content) and len(passes) >= 2
        together = client.chat.completions.create(model="small", messages=MESSAGES, n=3, **settings)
        assert {each.message.content for each in together.choices} == {expected.text}
    assert all(len(rows) == 1 for rows in passes)


def test_a_long_prompt_is_read_in_pieces_and_holds_up_nobody(make_served):
    served = make_served()
    read = []
    served.network.register_forward_pre_hook(lambda _, inputs: read.append(tuple(inputs[0].shape)))
    long = "It was the best of times, it was the worst of times. " * 70
    ids = served.tokenizer.encode_prompt(long)
    options = {
        "model": "small",
        "max_tokens": 40,
        "temperature": 0,
        "logit_bias": {str(id): -100 for id in served.eos_ids},
    }
    with (
        background(served) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        short = pool.submit(client.completions.create, prompt="It was", **options | {"max_tokens": 500})
        while served.engine.running == 0:
            time.sleep(0.001)
        texts = [pool.submit(client.completions.create, prompt=long, **options).result().choices[0].text]
        assert short.result().usage.completion_tokens == 500
    pieces = [place for place, (_, size) in enumerate(read) if size == 512]
    assert len(pieces) == (len(ids) - 1) // 512 and (1, 1) in read[pieces[0] : pieces[1]]
    bias = tuple((id, -100.0) for id in served.eos_ids)
    expected = generate(
        served.network,
        [ids],
        DecodingConfig(max_new_tokens=40, temperature=0, logit_bias=bias),
        decode=served.tokenizer.decode,
    )
    assert texts == [expected[0][0].text]


def test_prompts_are_kept_by_use_and_within_their_room(make_served):
    served = make_served()
    prefixes, prompts = Prefixes(250), [[start] * 100 for start in (1, 2, 3)]
    for prompt in prompts:
        cache = KVCache(served.network.config, 1, 100)
        served.network(torch.tensor([prompt]), cache=cache)
        prefixes.keep(prompt, cache, 0)
        prefixes.find(prompts[0], 0)
    assert prefixes.tokens == 200 and [prefixes.shared(prompt) for prompt in prompts] == [100, 0, 100]
    assert prefixes.find([1] * 80, 7).length == 79 and prefixes.find([1] * 80, 7).max_length == 87
    assert prefixes.find([1] * 70 + [5] * 200, 0) is None and prefixes.find([1] * 60, 0) is None
    served.close()


def post(small, content, path="/chat/completions", **headers):
    headers = {"content-type": "application/json"} | headers
    return httpx.post(
        small.url + path,
        content=content if isinstance(content, bytes | str) else json.dumps(content),
        headers=headers,
        timeout=20,
    )


GOOD = {"model": "small", "messages": MESSAGES, "max_tokens": 3}


@pytest.mark.parametrize(
    ("change", "status", "param", "words"),
    [
        ({"model": "big"}, 404, "model", "There is no model 'big' here; this server has 'small'."),
        ({"temprature": 1}, 400, "temprature", "Did you mean 'temperature'?"),
        ({"tools": [{}]}, 400, "tools.0.type", "Field required"),
        ({"functions": []}, 400, "functions", "'functions' is not supported"),
        ({"tool_choice": "required"}, 400, "tool_choice", "needs 'tools'"),
        ({"temperature": -1}, 400, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, 400, "temperature", "valid number"),
        ({"n": 1000}, 400, "n", "less than or equal to 128"),
        ({"messages": []}, 400, "messages", "at least 1 item"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            400,
            None,
            "messages.0.content",
        ),
        ({"messages": [{"role": "villain", "content": "x"}]}, 400, None, "unknown role villain"),
        ({"max_tokens": 2048}, 400, "messages", "maximum context length is 2048 tokens; the prompt has"),
        ({"top_logprobs": 3}, 400, "top_logprobs", "needs 'logprobs': true"),
        ({"logit_bias": {"9999": 1}}, 400, "logit_bias", "no token id below 300"),
        ({"presence_penalty": 1}, 400, "presence_penalty", "not supported by this server, but for 0"),
        ({"response_format": {"type": "xml"}}, 400, "response_format.type", "'text'"),
        ({"response_format": {"type": "json_schema"}}, 400, "response_format", "needs 'json_schema'"),
    ],
    ids=str,
)
def test_what_cannot_be_served_is_refused_with_the_field_and_the_reason(small, change, status, param, words):
    response = post(small, GOOD | change)
    error = response.json()["error"]
    assert (
        response.status_code == status
        and words in error["message"]
        and error["type"]
        and "Traceback" not in response.text
    )
    assert param is None or error["param"] == param
    assert (error["code"] == "context_length_exceeded") == ("context length" in words)


def test_a_request_for_more_than_fits_the_memory_is_refused_and_one_without_a_length_gets_what_fits(make_served):
    served = make_served()
    served.engine.max_slots = 3000
    with background(served) as url, httpx.Client(timeout=60) as http:
        response = http.post(url + "/chat/completions", json=GOOD | {"n": 3, "max_tokens": 1000})
        assert response.status_code == 400 and "room for 30" in response.json()["error"]["message"]
        body = {"model": "small", "messages": MESSAGES, "n": 20, "logit_bias": {str(id): -100 for id in served.eos_ids}}
        reply = http.post(url + "/chat/completions", json=body).json()
    assert {choice["finish_reason"] for choice in reply["choices"]} == {"length"}
    assert reply["usage"]["completion_tokens"] == 20 * (3000 // 20 - reply["usage"]["prompt_tokens"])


def test_models_that_write_no_text_are_refused(tmp_path):
    tokenizer = Tokenizer.train(["abc"], 260)
    for changes, word in (
        ({"num_labels": 2}, "scalars"),
        (
            {"ffn": "moe", "moe": {"num_experts": 2, "top_k": 1, "router": "expert_choice", "expert_hidden_size": 8}},
            "expert_choice",
        ),
    ):
        model = Transformer(
            ModelConfig(vocab_size=260, num_layers=1, d_model=16, num_heads=2, max_seq_len=8, **changes)
        )
        with pytest.raises(UserError, match=word):
            ServedModel("x", model, tokenizer)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[]", 400),
        (b"\xff\xfe", 400),
        (b'{"model": NaN}', 400),
        (b"[" * 50_000, 400),
        (b"x" * 200_000, 413),
    ],
    ids=["empty", "cut", "no object", "no text", "no number", "deep", "long"],
)
def test_bodies_that_are_none_are_refused(small, content, status):
    response = post(small, content)
    assert response.status_code == status and response.json()["error"]["message"]
    assert post(small, GOOD).status_code == 200


def test_other_paths_methods_and_kinds_of_content_are_refused_in_the_same_form(small):
    for response, status in [
        (httpx.get(small.url + "/nothing"), 404),
        (post(small, {}, "/embeddings"), 404),
        (httpx.get(small.url + "/completions"), 405),
        (post(small, GOOD, **{"content-type": "text/plain"}), 415),
        (post(small, {"model": "small", "prompt": [300]}, "/completions"), 400),
        (post(small, {"model": "small", "prompt": []}, "/completions"), 400),
    ]:
        assert response.status_code == status and set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert "has no encoder" in post(small, {}, "/embeddings").json()["error"]["message"]


def test_a_page_cannot_reach_the_server_by_a_name_of_its_own(small):
    assert post(small, GOOD, host="evil.example").status_code == 400
    assert "access-control-allow-origin" not in post(small, GOOD, origin="http://evil.example").headers


def test_special_tokens_that_are_spelled_in_a_message_stay_text(small):
    content = "a<|endoftext|>b"
    ids = small.chat_ids([{"role": "user", "content": content}])
    assert (
        ids.count(small.tokenizer.eos_id) == 0
        and small.tokenizer.decode(ids) == f"<|user|>\n{content}\n<|assistant|>\n"
    )


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_work(small, stream):
    served = small.engine.served
    with httpx.Client() as http:
        body = GOOD | {
            "max_tokens": LONG,
            "stream": stream,
            "logit_bias": {str(id): -100 for id in small.eos_ids},
            "n": 4,
        }
        if stream:
            with http.stream("POST", small.url + "/chat/completions", json=body) as response:
                next(response.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(small.url + "/chat/completions", json=body, timeout=0.2)
    assert quiet(small) and small.engine.served == served


def test_a_full_queue_is_told_with_a_time_to_wait(make_served):
    served = make_served(max_rows=1, max_waiting=1)
    with background(served) as url, httpx.Client(timeout=30) as http:
        body = GOOD | {"max_tokens": 400, "logit_bias": {str(id): -100 for id in served.eos_ids}}
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(lambda _: http.post(url + "/chat/completions", json=body), range(8)))
        statuses = sorted(response.status_code for response in responses)
        refused = [response for response in responses if response.status_code == 429]
        assert statuses[0] == 200 and refused and {response.headers["retry-after"] for response in refused} == {"1"}
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        assert http.get(url.removesuffix("/v1") + "/health").json()["served"] == statuses.count(200)


def test_a_model_that_fails_costs_the_requests_under_way_and_no_others(small, caplog):
    def fail(*_):
        raise RuntimeError("secret details")

    with small.network.register_forward_pre_hook(fail):
        response = post(small, GOOD)
        streamed = post(small, GOOD | {"stream": True})
    assert response.status_code == 500 and response.json()["error"]["message"] == "the model failed (RuntimeError)"
    assert (
        "the model failed" in streamed.text
        and "[DONE]" not in streamed.text
        and "secret" not in response.text + streamed.text
    )
    assert post(small, GOOD).status_code == 200


def test_a_key_is_demanded_and_shown_nowhere(make_served):
    config = ServerConfig(secret="sk-very-secret")
    assert "very" not in repr(config)
    with background(make_served(), config) as url:
        for key in ("", "sk-wrong", "sk-very-secret\u00e9"):
            headers = {"authorization": f"Bearer {key}".encode()} if key else {}
            for response in (
                httpx.post(url + "/chat/completions", json=GOOD, headers=headers),
                httpx.get(url + "/models", headers=headers),
            ):
                assert (
                    response.status_code == 401
                    and response.json()["error"]["code"] == "invalid_api_key"
                    and "very" not in response.text
                )
        with openai.OpenAI(base_url=url, api_key="sk-very-secret", max_retries=0) as client:
            assert client.chat.completions.create(**GOOD).choices
        assert httpx.get(url.removesuffix("/v1") + "/health").status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(make_served):
    with background(make_served(), ServerConfig(body_timeout_s=0.2)) as url:
        place = urlsplit(url)
        with socket.create_connection((place.hostname, place.port), timeout=5) as raw:
            raw.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length:"
                b" 100\r\n\r\n{"
            )
            assert b" 408 " in raw.recv(1000)


def test_a_request_whose_logits_are_no_numbers_fails_alone(make_served, caplog):
    served = make_served(max_rows=8)
    if served.network.head is None:  # else a damaged embedding would be part of all logits
        served.network.head = Linear(*reversed(served.network.embedding.weight.shape), bias=False)
        with torch.no_grad():
            served.network.head.weight.copy_(served.network.embedding.weight)
    ids = served.tokenizer.encode("Q")
    with torch.no_grad():
        served.network.embedding.weight[ids] = float("nan")
    body = {
        "model": "small",
        "max_tokens": 300,
        "temperature": 0,
        "logit_bias": {str(id): -100 for id in served.eos_ids},
    }
    with background(served) as url, httpx.Client(timeout=60) as http, ThreadPoolExecutor(1) as pool:

        def ask(**changes):
            return http.post(url + "/completions", json=body | {"prompt": "It was"} | changes)

        going = pool.submit(ask)
        while not served.engine.running:
            time.sleep(0.001)
        failed, streamed = ask(prompt="Q", n=2), ask(prompt="Q", stream=True)
        assert served.engine.running  # beside the other one
        assert failed.status_code == 500 and "logits are not numbers" in failed.json()["error"]["message"]
        assert "logits are not numbers" in streamed.text and "[DONE]" not in streamed.text
        response = going.result()
    assert response.status_code == 200 and response.json()["usage"]["completion_tokens"] == 300
    assert served.engine.served == 1 and "a request failed" in caplog.text


def test_the_engine_ends_with_the_server_and_waiting_requests_are_told(make_served):
    served = make_served(max_rows=1)
    with background(served) as url:
        body = GOOD | {"max_tokens": 5}
        assert httpx.post(url + "/chat/completions", json=body).status_code == 200
    assert not [thread for thread in threading.enumerate() if thread is served.engine._thread]


def test_stored_contexts_stand_before_the_prompts_that_ask_for_them(make_served):
    width = 32
    vectors = {
        name: torch.randn(1, 5, width, generator=torch.Generator().manual_seed(n)) for n, name in enumerate("ab")
    }
    served = make_served(max_rows=8, contexts={name: SoftPrompt(each) for name, each in vectors.items()})
    ids = served.tokenizer.encode_chat(MESSAGES)
    with (
        background(served, ServerConfig(hosts=("127.0.0.1",))) as url,
        openai.OpenAI(base_url=url, api_key="none", max_retries=0) as client,
        ThreadPoolExecutor(6) as pool,
    ):

        def ask(context: str | None):
            body = {} if context is None else {"context": context}
            return client.chat.completions.create(
                model="small", messages=MESSAGES, temperature=0, max_tokens=12, extra_body=body
            )

        replies = list(pool.map(ask, ["a", None, "b", "a", None, "b"]))
        found = [reply.choices[0].message.content for reply in replies]
        for place, context in enumerate(["a", None, "b", "a", None, "b"]):
            prompt = None if context is None else SoftPrompt(vectors[context])
            config = DecodingConfig(eos_ids=served.eos_ids, temperature=0, max_new_tokens=12)
            decode = served.tokenizer.decode
            ((expected,),) = generate(served.network, [ids], config, decode=decode, soft_prompt=prompt)
            assert found[place] == expected.text
        assert len({found[0], found[1], found[2]}) == 3
        with pytest.raises(openai.NotFoundError, match="no context 'c' here; there are: 'a', 'b'"):
            ask("c")
        with pytest.raises(openai.BadRequestError, match="maximum context length is 2043"):
            client.completions.create(
                model="small", prompt=[1] * 2040, max_tokens=5, extra_body={"context": "a"}, temperature=0
            )
