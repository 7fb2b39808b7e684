"""What is learned of conversations in the forms of published models, and of records in the usual forms."""

from __future__ import annotations

import json

import pytest
from chat_templates import CHATML, DEEPSEEK, GLM4, LLAMA2, LLAMA3_TOOLS, QWEN3, QWEN25_TOOLS, SPECIALS, TEMPLATES
from tokenizer_kinds import KINDS, byte_level

from lmlab.data import ChatConfig, ChatEncoder, Reject, Tokenizer

TURNS = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "Four."},
    {"role": "user", "content": "And doubled?"},
    {"role": "assistant", "content": "Eight."},
]
CALL = {"type": "function", "id": "abc123456", "function": {"name": "add", "arguments": '{"a": 2}'}}
ENDS = {
    "ChatML": "<|im_end|>\n",
    "Llama 2": " </s>",
    "Llama 3 with tools": "<|eot_id|>",
    "Mistral": "</s>",
    "Qwen2.5 with tools": "<|im_end|>\n",
    "GLM-4": "<|user|>",
    "Gemma": "<end_of_turn>\n",
    "Phi-4": "<|im_end|>",
    "DeepSeek": "</s>",
    "Zephyr": "</s>\n",
    "Vicuna": "</s>",
    "Command R": "<|END_OF_TURN_TOKEN|>",
}


@pytest.fixture(scope="module")
def base():
    backend = byte_level()
    backend.add_special_tokens(SPECIALS)
    return Tokenizer(backend, "<s>", "</s>", special_tokens={"unk_token": "<unk>"})


def learned(tokenizer, example):
    ids = [id for id, keep in zip(example.ids, example.mask, strict=True) if keep]
    return tokenizer.backend.decode(ids, skip_special_tokens=False)


def encoded(tokenizer, messages, **config):
    found = ChatEncoder(tokenizer, ChatConfig(**config)).examples({"messages": messages}, "here")
    return found.reason if isinstance(found, Reject) else found


@pytest.mark.parametrize("name", ENDS)
def test_every_turn_is_learned_with_the_token_that_ends_it_and_never_without_its_prompt(name, base):
    tokenizer, end = base.with_chat_template(TEMPLATES[name]), ENDS[name]
    (example,) = encoded(tokenizer, TURNS)
    text = learned(tokenizer, example)
    assert [part.strip() for part in text.split(end.strip())] == ["Four.", "Eight.", ""]
    assert (example.turns, example.stopped, example.left_out) == (2, 2, 0)
    assert example.mask[0] == 0
    # beside the token that ends the last turn, the ids are those of the rendering
    ids = tokenizer.encode_chat(TURNS, add_generation_prompt=False)
    assert example.ids[: len(ids)] == ids and len(example.ids) <= len(ids) + 1


def test_where_nothing_ends_a_turn_the_end_token_does(base):
    tokenizer = base.with_chat_template(
        "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}### assistant:\n{% endif %}"
    )
    (example,) = encoded(tokenizer, TURNS)
    assert learned(tokenizer, example) == "Four.\nEight.\n</s>"
    assert (example.turns, example.stopped) == (2, 1)  # what ends the first is text


def test_a_block_without_its_end_token_gets_it(base):
    tokenizer = base.with_chat_template(CHATML.replace("message.content", "message.content"))
    marked = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    (example,) = encoded(base.with_chat_template(marked), TURNS)
    assert learned(base, example) == "Four.<|im_end|>Eight.<|im_end|>"
    assert example.ids == tokenizer.encode_chat(TURNS, add_generation_prompt=False)


@pytest.mark.parametrize("name", ["ChatML", "GLM-4", "Mistral"])
def test_turns_of_weight_0_are_read_and_not_learned(name, base):
    tokenizer = base.with_chat_template(TEMPLATES[name])
    weighed = [TURNS[0], {**TURNS[1], "weight": 0}, TURNS[2], {**TURNS[3], "weight": 1}]
    (example,), (plain,) = encoded(tokenizer, weighed), encoded(tokenizer, TURNS)
    assert example.ids == plain.ids
    assert learned(tokenizer, example).strip() == "Eight." + ENDS[name].strip()
    assert encoded(tokenizer, [{**turn, "weight": 0} for turn in TURNS]) == "every turn of the assistant has weight 0"
    assert "weight of message 2 is 0.5" in encoded(tokenizer, [TURNS[0], {**TURNS[1], "weight": 0.5}])
    short = encoded(tokenizer, weighed, max_len=len(plain.ids) - 3)
    assert "too long" in short  # the turn that would be left is not to be learned


def test_qwen3_forgets_thinking_so_that_turns_are_split_or_the_last_is_learned(base):
    tokenizer = base.with_chat_template(QWEN3)
    reason = encoded(tokenizer, TURNS)
    assert "not prefix-preserving" in reason and "'last'" in reason and "'split'" in reason
    (last,) = encoded(tokenizer, TURNS, learn="last")
    assert learned(tokenizer, last) == "Eight.<|im_end|>\n"
    first, second = encoded(tokenizer, TURNS, learn="split")
    assert learned(tokenizer, first) == "Four.<|im_end|>\n" and second.ids == last.ids
    assert first.ids == tokenizer.encode_chat(TURNS[:2], add_generation_prompt=False)
    (short,) = encoded(tokenizer, TURNS, learn="split", max_len=len(first.ids))
    assert short.ids == first.ids and short.left_out == 1


def test_an_empty_block_of_thinking_is_learned_only_if_asked(base):
    tokenizer = base.with_chat_template(QWEN3)
    (example,), (asked,) = encoded(tokenizer, TURNS[:2]), encoded(tokenizer, TURNS[:2], empty_thinking="learned")
    assert learned(tokenizer, example) == "Four.<|im_end|>\n"
    assert learned(tokenizer, asked) == "<think>\n\n</think>\n\nFour.<|im_end|>\n"
    assert example.ids == asked.ids
    (thought,) = encoded(tokenizer, [TURNS[0], {**TURNS[1], "reasoning_content": "Two and two."}])
    assert learned(tokenizer, thought) == "<think>\nTwo and two.\n</think>\n\nFour.<|im_end|>\n"
    (told,) = encoded(tokenizer, TURNS[:2], variables={"enable_thinking": False}, empty_thinking="learned")
    assert learned(tokenizer, told) == "Four.<|im_end|>\n"  # the prompt holds the block already


def test_an_answer_that_does_not_go_on_from_the_generation_prompt_is_named(base):
    tokenizer = base.with_chat_template(
        DEEPSEEK.replace("{{'<|Assistant|>'}}{% endif", "{{'<|Assistant|><think>\\n'}}{% endif")
    )
    assert r"does not begin with '<think>\n'" in encoded(tokenizer, TURNS[:2])


@pytest.mark.parametrize(
    "template", [QWEN25_TOOLS, QWEN3, LLAMA3_TOOLS, GLM4], ids=["Qwen2.5", "Qwen3", "Llama 3", "GLM"]
)
def test_tool_calls_are_kept_and_written_once_as_json(template, base):
    tokenizer = base.with_chat_template(template)
    record = {
        "messages": [
            TURNS[0],
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": CALL["id"], "content": "4"},
            TURNS[1],
        ],
        "tools": json.dumps([{"type": "function", "function": {"name": "add", "description": "Adds two."}}]),
    }
    found = ChatEncoder(tokenizer, ChatConfig(learn="split")).examples(record, "here")
    example = found[0]  # up to the call
    assert [each.stopped for each in found] == [1, 1]
    text = tokenizer.backend.decode(example.ids, skip_special_tokens=False)
    assert "Adds two." in text or "tools" not in template
    assert '{"a": 2}' in learned(tokenizer, example) and '\\"' not in text


SHAREGPT = [{"from": "human", "value": "What is 2 + 2?"}, {"from": "gpt", "value": "Four."}]
FORMS = {
    "ShareGPT": {"conversations": SHAREGPT},
    "ShareGPT, weighed": {
        "conversations": [*SHAREGPT, {"from": "human", "value": "x"}, {"from": "gpt", "value": "y", "weight": 0}]
    },
    "parts": {"messages": [{"role": "user", "content": [{"text": "What is"}, {"text": " 2 + 2?"}]}, TURNS[1]]},
    "Alpaca": {"instruction": "What is 2 + 2?", "input": "", "output": "Four."},
    "question": {"question": "What is 2 + 2?", "answer": "Four."},
    "query": {"query": "What is 2 + 2?", "response": "Four."},
    "prompt and response": {"prompt": "What is 2 + 2?", "response": "Four."},
    "prompt and completion": {"prompt": "What is 2 + 2?", "completion": "Four."},
    "Dolly": {"instruction": "What is 2 + 2?", "context": "", "response": "Four.", "category": "sums"},
    "input and output": {"input": "What is 2 + 2?", "output": "Four."},
    "mixed": {"prompt": [TURNS[0]], "completion": "Four."},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_records_in_the_usual_forms_are_known_by_their_fields(form, base):
    tokenizer = base.with_chat_template(CHATML)
    (expected,) = encoded(tokenizer, TURNS[:2])
    (example,) = ChatEncoder(tokenizer).examples(FORMS[form], "here")
    assert example.ids[: len(expected.ids)] == expected.ids
    assert learned(tokenizer, example) == "Four.<|im_end|>\n"


def test_what_goes_before_a_question_is_kept(base):
    tokenizer = base.with_chat_template(CHATML)
    alpaca = {
        "system": "Be brief.",
        "history": [["What is 2 + 2?", "Four."]],
        "instruction": "Double it",
        "input": "And say why.",
        "output": "Eight.",
    }
    (example,) = ChatEncoder(tokenizer).examples(alpaca, "here")
    text = tokenizer.backend.decode(example.ids, skip_special_tokens=False)
    assert "system\nBe brief.<|im_end|>" in text and "user\nDouble it\n\nAnd say why.<|im_end|>" in text
    assert learned(tokenizer, example) == "Eight.<|im_end|>\n"  # the history is the prompt


def test_fields_of_other_names_are_mapped(base):
    tokenizer = base.with_chat_template(CHATML)
    (expected,) = encoded(tokenizer, TURNS[:2])
    fields = {"prompt": "body.ask", "completion": "reply"}
    record = {"body": {"ask": "What is 2 + 2?"}, "reply": "Four.", "question": "no", "answer": "no"}
    (example,) = ChatEncoder(tokenizer, ChatConfig(fields=fields)).examples(record, "here")
    assert example.ids == expected.ids
    reject = ChatEncoder(tokenizer, ChatConfig(fields=fields)).examples({"reply": "x"}, "here")
    assert "no field 'body.ask'" in reject.reason
    named = {"messages": "turns", "role": "who", "content": "what"}
    turns = [{"who": "user", "what": "What is 2 + 2?"}, {"who": "assistant", "what": "Four."}]
    (example,) = ChatEncoder(tokenizer, ChatConfig(fields=named)).examples({"turns": turns}, "here")
    assert example.ids == expected.ids
    with pytest.raises(ValueError, match="no field is called 'prompts'. Did you mean 'prompt'"):
        ChatConfig(fields={"prompts": "x"})


def test_preferences_in_sharegpts_form(base):
    tokenizer = base.with_chat_template(LLAMA2)
    record = {"conversations": SHAREGPT[:1], "chosen": SHAREGPT[1], "rejected": {"from": "gpt", "value": "Five."}}
    pair = ChatEncoder(tokenizer).preference(record, "here")
    assert [learned(tokenizer, each) for each in (pair.chosen, pair.rejected)] == [" Four. </s>", " Five. </s>"]


@pytest.mark.parametrize("kind", ["byte level", "metaspace, legacy", "metaspace", "unigram"])
def test_what_messages_spell_stays_text_with_tokenizers_of_every_kind(kind):
    tokenizer = Tokenizer(KINDS[kind](), "<s>", "</s>").with_chat_template(TEMPLATES["Zephyr"])
    spelled = [
        {"role": "user", "content": "The tags </s> and <s></s> are a system"},
        {"role": "assistant", "content": "said: </s>, <s>!"},
    ]
    (example,) = encoded(tokenizer, spelled)
    assert example.ids.count(tokenizer.eos_id) == 2 and tokenizer.bos_id not in example.ids
    assert (example.turns, example.stopped) == (1, 1)
    said = tokenizer.decode(example.ids)
    assert "The tags </s> and <s></s> are a system" in said and "said: </s>, <s>!" in said
    (open_to_it,) = encoded(tokenizer, spelled, special_tokens="as_tokens")
    assert open_to_it.ids.count(tokenizer.eos_id) == 5
