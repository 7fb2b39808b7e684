"""A small model that chats, and questions about chapters."""

from __future__ import annotations

import json
import string

import pytest
from tutor_questions import question

from lmlab.data import ChatConfig, Tokenizer, chat_tokenizer
from lmlab.models import ModelConfig, Transformer, save_pretrained

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="session")
def tutor(tmp_path_factory):
    """The directory of a model of random weights with a window of 1,024 tokens."""
    place = tmp_path_factory.mktemp("tutor")
    text = string.printable + "the chapter about stars says that a parsec is a unit of length " * 5
    tokenizer = chat_tokenizer(Tokenizer.train([text] * 3, 320), ChatConfig()).with_chat_template(TEMPLATE)
    shape = ModelConfig(vocab_size=320, num_layers=2, d_model=32, num_heads=2, max_seq_len=1024)
    model = Transformer(shape).initialize(3)
    for parameter in model.parameters():
        parameter.data *= 4  # so that what it writes depends on what it has read
    save_pretrained(model, place)
    tokenizer.save(place)
    return place


@pytest.fixture
def questions(tmp_path):
    """Twelve questions about four chapters."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(question(n, n // 3)) + "\n" for n in range(12)))
    return path


@pytest.fixture
def judge_script(tmp_path):
    """Replies of a judge: by the question."""
    rows = [
        {
            "match": r"What is said of (1|4|7)\?",
            "text": "PRESENTATION: GRADE: 2/3\nCORRECTNESS: so. GRADE: 1.5/3",
        },
        {"match": r"What is said of (2|5)\?", "text": "PRESENTATION: GRADE: 1/3\nCORRECTNESS: GRADE: 3/3"},
        {"match": "", "text": "PRESENTATION: GRADE: 3/3\nCORRECTNESS: GRADE: 2/3"},
    ]
    path = tmp_path / "judge.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
