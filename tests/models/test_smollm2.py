"""The real SmolLM2-135M-Instruct against `transformers`: logits, greedy tokens, conversion."""

from __future__ import annotations

import pytest
import torch
import transformers
from typer.testing import CliRunner

from lmlab.cli import app
from lmlab.commands.chat import Conversation
from lmlab.data import Tokenizer
from lmlab.models import GenerationConfig, KVCache, from_pretrained, generate

pytestmark = pytest.mark.slow

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Water boils at a temperature of",
    "Once upon a time, in a small village by the sea,",
    "The three laws of motion were formulated by",
    "import numpy as np\n\n",
    "Photosynthesis is the process by which plants",
    "To be, or not to be, that is",
    "The difference between a list and a tuple in Python is that",
    "In 1969, humans first",
    "A balanced diet should include",
    "The derivative of x squared is",
    "Dear hiring manager,\n\nI am writing to",
    "The mitochondrion is often called",
    "SELECT name FROM users WHERE",
    "The largest planet in our solar system is",
    "Why did the chicken cross the road?",
    "Gravity is a force that",
    "The recipe calls for two eggs, a cup of flour and",
    "1, 1, 2, 3, 5, 8,",
]


@pytest.fixture(scope="module")
def directory(smollm2):
    return smollm2


@pytest.fixture(scope="module")
def models(directory):
    return from_pretrained(directory), transformers.AutoModelForCausalLM.from_pretrained(directory).eval()


def batch(prompts, side):
    longest = max(map(len, prompts))
    rows = [[0] * (longest - len(row)) + row if side == "left" else row + [0] * (longest - len(row)) for row in prompts]
    counts = torch.tensor([len(row) for row in prompts])[:, None]
    index = torch.arange(longest)
    return torch.tensor(rows), index >= longest - counts if side == "left" else index < counts


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_logits_equal_those_of_transformers(side, models, directory):
    ours, theirs = models
    tokenizer = Tokenizer.load(directory)
    ids, mask = batch([tokenizer.encode(prompt) for prompt in PROMPTS], side)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits[mask]
    torch.testing.assert_close(ours(ids, attention_mask_BT=mask).logits_BTV[mask], expected, atol=1e-4, rtol=0)
    if side == "left":
        cache = KVCache(ours.config, len(ids), ids.shape[1])
        pieces = [
            ours(ids[:, part], attention_mask_BT=mask[:, part], cache=cache).logits_BTV
            for part in torch.arange(ids.shape[1]).tensor_split(3)
        ]
        torch.testing.assert_close(torch.cat(pieces, 1)[mask], expected, atol=1e-4, rtol=0)


def test_greedy_tokens_equal_those_of_transformers(models, directory):
    ours, theirs = models
    tokenizer = Tokenizer.load(directory)
    prompts = [tokenizer.encode(prompt) for prompt in PROMPTS]
    ids, mask = batch(prompts, "left")
    end = tokenizer.eos_id
    rows = theirs.generate(ids, attention_mask=mask.long(), max_new_tokens=64, do_sample=False, pad_token_id=end)[
        :, ids.shape[1] :
    ].tolist()
    found = generate(ours, prompts, GenerationConfig(max_new_tokens=64, temperature=0, eos_ids=(end,)))
    assert [each[0].ids for each in found] == [row[: row.index(end)] if end in row else row for row in rows]
    assert "Paris" in tokenizer.decode(found[0][0].ids)


MESSAGES = [
    {"role": "user", "content": "What is 2 + 2?"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "And doubled?\n<|im_end|>"},
]


@pytest.mark.parametrize(
    "messages", [MESSAGES, MESSAGES[:1], [{"role": "system", "content": "Be brief."}, *MESSAGES]], ids=len
)
@pytest.mark.parametrize("opened", [True, False])
def test_the_chat_template_gives_the_ids_of_transformers(opened, messages, directory):
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    expected = theirs.apply_chat_template(messages, add_generation_prompt=opened, tokenize=True, return_dict=False)
    assert Tokenizer.load(directory).encode_chat(messages, add_generation_prompt=opened) == list(expected)


def test_a_chat_by_the_command_line_remembers_what_was_said(directory):
    lines = "What is the capital of France?\nAnd of Italy?\n/reset\nSay hello.\n"
    result = CliRunner().invoke(
        app, ["chat", "--model", str(directory), "--temperature", "0", "--max-new-tokens", "24"], input=lines
    )
    assert result.exit_code == 0, result.output
    assert "capital of Italy is Rome" in result.output.split("Paris", 1)[1]
    assert "Rome" not in result.output.splitlines()[-1]


def test_the_conversation_reads_only_what_is_new(directory, models):
    tokenizer = Tokenizer.load(directory)
    config = GenerationConfig(max_new_tokens=12, temperature=0, eos_ids=(tokenizer.eos_id,))
    conversation = Conversation(models[0], tokenizer, config)
    answers = ["".join(conversation.reply(text)) for text in ("Name a color.", "Name another one.")]
    ids = tokenizer.encode_chat(conversation.messages[:-1])
    ((whole,),) = generate(models[0], [ids], config, decode=tokenizer.decode)
    assert answers[1] == whole.text
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"] * 2


def test_a_prompt_begins_as_the_tokenizer_says(directory):
    ours, theirs = Tokenizer.load(directory), transformers.AutoTokenizer.from_pretrained(directory)
    for prompt in PROMPTS[:5]:
        assert ours.encode_prompt(prompt) == theirs(prompt)["input_ids"]
