"""Questions on the next word, drawn from real text."""

from __future__ import annotations

import random
from collections import Counter

from lmlab.data import Document
from lmlab.evals import build_next_word_items


def documents():
    text = random.__doc__ + "\n".join(each.__doc__ or "" for each in vars(random.Random).values() if callable(each))
    return [
        Document(id="random", text=text, domain="docs"),
        Document(id="counter", text=Counter.__doc__ + Counter.update.__doc__, domain="other"),
    ]


def test_the_right_word_is_what_the_document_has_there():
    texts = {each.id: each.text for each in documents()}
    items = build_next_word_items(documents(), 40, 0)
    assert Counter(item.domain for item in items)["docs"] == 40
    for item in items:
        name, start = item.id.split(":")
        before, after = texts[name][: int(start)], texts[name][int(start) :]
        assert before.endswith(item.context) and after.startswith(item.options[item.gold])
        assert not after[len(item.options[item.gold])].isalnum()
        assert len(set(item.options)) == 4


def test_the_same_seed_draws_the_same_questions():
    assert build_next_word_items(documents(), 10, 1) == build_next_word_items(documents(), 10, 1)
    assert build_next_word_items(documents(), 10, 1) != build_next_word_items(documents(), 10, 2)


def test_frequency_alone_does_not_tell_the_right_word():
    items = build_next_word_items(documents(), 10_000, 0)
    counts = Counter(item.options[item.gold] for item in items)
    right = sum(max(item.options, key=lambda word: (counts[word], word)) == item.options[item.gold] for item in items)
    assert abs(right / len(items) - 0.25) < 0.12
