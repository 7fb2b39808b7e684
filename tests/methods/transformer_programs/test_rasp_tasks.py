"""Generators draw what the reference draws, and labels are what the tasks say."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from lmlab.errors import UserError
from lmlab.files import read_json
from lmlab.methods.transformer_programs.tasks.rasp import TASKS, Example, generate, split


def _hash(rows: Sequence[Example]) -> str:
    text = "\n".join(" ".join(tokens) + "\t" + " ".join(labels) for tokens, labels in rows)
    return hashlib.sha256(text.encode()).hexdigest()


def test_splits_are_those_of_the_reference(ground_truth: Path) -> None:
    rows = read_json(ground_truth / "rasp_splits.json")
    assert len(rows) == 10
    for row in rows:
        wanted = (row["dataset_size"], row["vocab_size"], row["min_length"], row["max_length"], row["seed"])
        parts = split(generate(row["task"], *wanted), row["seed"])
        assert [_hash(part) for part in parts] == [row[f"sha256_{n}"] for n in ("train", "valid", "test")], row["task"]
        assert [list(map(list, each)) for each in parts[2][:3]] == row["first_test"]


@pytest.mark.parametrize(
    ("name", "tokens", "labels"),
    [
        ("reverse", "<s> 1 2 0 </s>", "<pad> 0 2 1 <pad>"),
        ("sort", "<s> 2 10 1 </s>", "<pad> 1 10 2 <pad>"),
        ("hist", "<s> 3 1 3", "<pad> 2 1 2"),
        ("double_hist", "<s> 3 1 3 0", "<pad> 1 2 1 2"),
        ("most_freq", "<s> 3 1 3 1", "<pad> 3 1 <s> <s>"),
        ("most_freq", "<s> 1 3 3 0", "<pad> 3 1 0 <s>"),
        ("dyck1", "<s> ( ) ( ) ) (", "<pad> P T P T F F"),
        ("dyck2", "<s> ( { } ) ( }", "<pad> P P P T P F"),
        ("induction", "<s> a 1 b 0 a 1 b", "<pad> <unk> <pad> <unk> <pad> 1 <pad> 0"),
    ],
)
def test_labels(name: str, tokens: str, labels: str) -> None:
    assert TASKS[name].label(tokens.split()) == labels.split()


@pytest.mark.parametrize("name", TASKS)
def test_the_oracle_labels_what_is_drawn(name: str) -> None:
    vocab_size, min_length, max_length = TASKS[name].defaults
    for tokens, labels in generate(name, 50, vocab_size, min_length, max_length, seed=random.randrange(1000)):
        assert TASKS[name].label(tokens) == labels and len(tokens) == len(labels)


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(UserError, match="no length from min_length 9 to 7 symbols"):
        generate("hist", 5, 8, 9, 8, 0)
    with pytest.raises(UserError, match="vocab_size 3 leaves no symbols for sort"):
        generate("sort", 5, 3, 1, 8, 0)
    with pytest.raises(UserError, match="Unknown task 'hits'. Did you mean 'hist'"):
        generate("hits", 5, 8, 1, 8, 0)
