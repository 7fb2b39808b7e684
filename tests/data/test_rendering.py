"""Templates render what `apply_chat_template` renders, and refuse what it refuses; none runs without end."""

from __future__ import annotations

import json
import time

import pytest
import transformers
from chat_templates import CHATML, LLAMA3_TOOLS, QWEN25_TOOLS, TEMPLATES
from tokenizer_kinds import KINDS

from lmlab.data import ChatTemplate, Tokenizer
from lmlab.errors import UserError

SYSTEM = {"role": "system", "content": "Be brief. "}
ASK = {"role": "user", "content": '  What is 2 + 2 <b> & "naïve"?\n'}
ANSWER = {"role": "assistant", "content": "Four: ½ + 3½ 🎉.\n"}
AGAIN = [{"role": "user", "content": "And doubled?"}, {"role": "assistant", "content": "\nEight."}]
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "abc123456", "type": "function", "function": {"name": "add", "arguments": {"a": 2, "b": "zwölf"}}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "abc123456", "name": "add", "content": "4"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Adds.",
            "parameters": {"type": "object", "properties": {"a": {"type": "number"}, "b": {"type": "string"}}},
        },
    }
]
THOUGHT = {"role": "assistant", "content": "Four.", "reasoning_content": "Two and two."}
CONVERSATIONS = {
    "one": [ASK],
    "turn": [ASK, ANSWER],
    "system": [SYSTEM, ASK, ANSWER],
    "turns": [ASK, ANSWER, *AGAIN],
    "open": [SYSTEM, ASK, ANSWER, AGAIN[0]],
    "tool call": [ASK, CALL, RESULT, ANSWER],
    "tool call as text": [
        ASK,
        {**CALL, "tool_calls": [{**CALL["tool_calls"][0], "function": {"name": "add", "arguments": '{"a": 2}'}}]},
    ],
    "thought": [SYSTEM, ASK, THOUGHT],
    "thoughts": [ASK, {"role": "assistant", "content": "<think>\nhm\n</think>\n\nFour."}, AGAIN[0], THOUGHT],
    "thinking": [ASK, {"role": "assistant", "content": "x", "thinking": "y"}],
    "not alternating": [ASK, ASK, ANSWER],
    "starts with the answer": [ANSWER],
    "unknown role": [ASK, {"role": "oracle", "content": "x"}],
}
GIVEN = {
    "nothing": {},
    "tools": {"tools": TOOLS},
    "documents": {"documents": [{"title": "T", "text": "x"}]},
    "variables": {"enable_thinking": False, "date_string": "1 May 2025", "bos_token": "<begin>"},
}
NAMES = {"with begin token": {"bos_token": "<s>", "unk_token": "<unk>"}, "without": {}}


@pytest.fixture(scope="module", params=NAMES)
def pair(request, tmp_path_factory):
    """One tokenizer, loaded by lmlab and by transformers."""
    directory = tmp_path_factory.mktemp("tokenizer")
    KINDS["byte level"]().save(str(directory / "tokenizer.json"))
    settings = {"eos_token": "</s>"} | NAMES[request.param]
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return Tokenizer.load(directory), transformers.PreTrainedTokenizerFast.from_pretrained(directory)


def outcome(render, *arguments, **options):
    try:
        return render(*arguments, **options)
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("name", TEMPLATES)
def test_rendering_is_that_of_transformers(name, given, pair):
    ours, theirs = pair
    template, rendered = ours.with_chat_template(TEMPLATES[name]).chat_template, 0
    for messages in CONVERSATIONS.values():
        for prompt in (False, True):
            asked = {"add_generation_prompt": prompt, **GIVEN[given]}
            found = outcome(template.render, messages, **asked)
            expected = outcome(
                theirs.apply_chat_template, messages, chat_template=TEMPLATES[name], tokenize=False, **asked
            )
            if isinstance(expected, str):
                assert found == expected
                rendered += 1
            else:
                assert found is UserError
    assert rendered >= 4 or "bos_token" not in ours.named_tokens  # to which some add text without asking


def test_templates_by_name_are_chosen_as_transformers_chooses(pair, tmp_path):
    ours, theirs = pair
    named = {"default": CHATML, "tool_use": QWEN25_TOOLS, "rag": LLAMA3_TOOLS}
    KINDS["byte level"]().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": "</s>", "chat_template": [{"name": n, "template": t} for n, t in named.items()]})
    )
    theirs.chat_template = named
    theirs.save_pretrained(tmp_path / "theirs")  # as files
    theirs.chat_template = None
    ours.with_chat_template(named).save(tmp_path / "ours")
    for directory in (tmp_path, tmp_path / "theirs", tmp_path / "ours"):
        loaded = Tokenizer.load(directory)
        other = transformers.PreTrainedTokenizerFast.from_pretrained(directory)
        assert loaded.chat_template.sources == named == other.chat_template
        for given in ({}, {"tools": TOOLS}, {"tools": []}):
            expected = other.apply_chat_template([ASK, ANSWER], tokenize=False, **given)
            assert loaded.chat_template.render([ASK, ANSWER], False, **given) == expected
        assert loaded.encode_chat([ASK], tools=TOOLS) == other.apply_chat_template(
            [ASK], tools=TOOLS, add_generation_prompt=True, return_dict=False
        )


def test_a_file_goes_before_the_configuration_and_several_without_default_are_refused(tmp_path):
    KINDS["byte level"]().save(str(tmp_path / "tokenizer.json"))
    settings = {"eos_token": "</s>", "chat_template": "old"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    assert Tokenizer.load(tmp_path).chat_template.source == "old"
    (tmp_path / "chat_template.jinja").write_text("new")
    assert Tokenizer.load(tmp_path).chat_template.source == "new"
    settings["chat_template"] = [{"name": "rag", "template": "x"}]
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="none is the default: rag"):
        Tokenizer.load(tmp_path)


ENDLESS = [
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "{% for a in range(90000) %}{% for b in range(90000) %}x{% endfor %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "{% set ns = namespace(x=['ab']) %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
    "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x | replace('b', ns.x) %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% for x in [1] recursive %}{{ loop([1, 1, 1]) if loop.depth < 60 }}{% endfor %}",
    "{{ 'x' * 10 ** 9 }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ 'x'.ljust(10 ** 9) }}",
    "{{ 'x' | center(1000000000) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:1000000000}'.format(1) }}",
    "{{ messages | tojson(indent=1000000000) }}",
    "{{ ('x' * 1000000) | replace('', 'y' * 1000000) }}",
    "{% set x = 'x' * 1000000 %}{% for a in range(90000) %}{{ x }}{% endfor %}",
    "{% set x = 'x' * 1000000 %}{% set y %}{% for a in range(90000) %}{{ x }}{% endfor %}{% endset %}",
    "{{ lipsum(n=1000000) }}",
]


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_without_end_is_a_message(source):
    start = time.thread_time()
    with pytest.raises(UserError, match="does not come to an end|refuses these messages"):
        ChatTemplate(source, {}).render([ASK])
    assert time.thread_time() - start < 15


def test_long_conversations_are_no_endless_templates():
    messages = [ASK, ANSWER] * 2000
    for name in ("ChatML", "Qwen3", "GLM-4"):
        assert len(ChatTemplate(TEMPLATES[name], {}).render(messages)) > 100_000
    long = [{"role": "user", "content": "x" * 4_000_000}]
    assert len(ChatTemplate(CHATML, {}).render(long)) > 4_000_000
