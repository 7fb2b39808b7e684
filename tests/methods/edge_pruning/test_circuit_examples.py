"""Examples of users, and those that are generated for a tokenizer."""

from __future__ import annotations

import json

import pytest
import torch

from lmlab.data.tokenizer import Tokenizer
from lmlab.errors import UserError
from lmlab.methods.edge_pruning import TASKS, generate, read_examples
from lmlab.methods.edge_pruning.examples.tasks import IOI_TEMPLATES, value_of

_WORDS = (
    "So When Mary and John went to the store, Sarah gave a ring to Paul. True and False or not True is False ( True )"
    " she he doesn't can't isn't is 0 1 2 3 4 5 6 7 8 9 Tom James Mark Peter Michael Anna Laura Emma Jane Alice Julia"
    " Kate David Robert Daniel Emily Lisa Maria Susan A B C D Answer:A Answer:B Answer: sum of difference between"
)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train([" ".join(f"{word} {word}" for word in _WORDS.split())] * 50, 800)


@pytest.fixture
def write(tmp_path):
    def to_file(*rows):
        path = tmp_path / "examples.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    return to_file


def test_lists_of_tokens_need_no_tokenizer(write):
    rows = [
        {"clean": [1, 2, 3], "corrupted": [4, 2, 3], "answer": 5, "distractor": 6},
        {"clean": [1, 2], "corrupted": [4, 2], "answer": 5, "distractor": 6},
    ]
    examples, dropped = read_examples(write(*rows))
    assert examples.clean.tolist() == [[1, 2, 3], [1, 2, 0]] and examples.positions.tolist() == [[2], [1]]
    assert examples.real.tolist() == [[True] * 3, [True, True, False]] and examples.has_answers and dropped == 0


def test_unequal_lengths_name_the_line_both_lengths_and_the_tokens(write, tokenizer):
    path = write(
        {"clean": "So Mary gave a ring", "corrupted": "So Paul gave a ring"},
        {"clean": "So Mary gave a ring", "corrupted": "So Paul gave ring"},
    )
    with pytest.raises(
        UserError, match=r"line 2: clean has \d+ tokens and corrupted \d+: \[.*gave.*\] and \["
    ) as error:
        read_examples(path, tokenizer)
    assert "--drop-mismatched" in error.value.remedy
    examples, dropped = read_examples(path, tokenizer, drop_mismatched=True)
    assert len(examples) == 1 and dropped == 1


def test_an_answer_of_several_tokens_is_refused_with_a_way_out(write, tokenizer):
    path = write(
        {
            "clean": "So Mary gave a ring to",
            "corrupted": "So Paul gave a ring to",
            "answer": " Nebuchadnezzar",
            "distractor": " Paul",
        }
    )
    with pytest.raises(UserError, match="' Nebuchadnezzar' is not a single token but") as error:
        read_examples(path, tokenizer)
    assert "KL" in error.value.remedy and "--first-token" in error.value.remedy
    examples, _ = read_examples(path, tokenizer, first_token=True)
    assert int(examples.answers[0]) == tokenizer.encode(" Nebuchadnezzar")[0]


def test_marked_spans_become_positions(write, tokenizer):
    examples, _ = read_examples(
        write(
            {
                "clean": "So Mary gave <predict>a ring</predict> to",
                "corrupted": "So Paul gave <predict>a ring</predict> to",
            }
        ),
        tokenizer,
    )
    ids = tokenizer.encode("So Mary gave a ring to")
    begins = len(tokenizer.begin_ids)
    first = len(tokenizer.encode("So Mary gave"))
    count = len(tokenizer.encode("So Mary gave a ring")) - first
    assert examples.clean[0].tolist() == tokenizer.begin_ids + ids
    assert examples.positions[0].tolist() == list(range(begins + first - 1, begins + first - 1 + count))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"clean": "a"}, "'corrupted' is missing"),
        ({"clean": [1, -2], "corrupted": [1, 2]}, "must hold token ids"),
        ({"clean": "a", "corrupted": "a"}, "no tokenizer"),
        ({"clean": [1, 2], "corrupted": [1, 2], "positions": [5]}, "lie outside the 2 tokens"),
        ({"clean": [1, 2], "corrupted": [1, 3], "anwser": 1, "distracter": 2}, "Did you mean '(answer|distractor)'"),
        ({"clean": 7, "corrupted": [1]}, "expected a text or a list"),
        ([1], "must hold a mapping of keys to values"),
    ],
)
def test_a_wrong_line_is_named(write, row, message):
    with pytest.raises(UserError, match=f"line 1.*{message}"):
        read_examples(write(row))


def test_fields_of_ones_own_may_resemble_those_that_are_there(write):
    row = {"clean": [1], "corrupted": [2], "answer": 1, "distractor": 2, "answer_id": "a"}
    assert read_examples(write(row))[0].has_answers


def test_splits_are_taken_where_they_are_named(write):
    rows = [{"clean": [1], "corrupted": [2], "split": "train"}, {"clean": [3], "corrupted": [4], "split": "test"}]
    assert read_examples(write(*rows), split="test")[0].clean.tolist() == [[3]]
    with pytest.raises(UserError, match="no split 'validation': it has"):
        read_examples(write(*rows), split="validation")
    assert len(read_examples(write({"clean": [1], "corrupted": [2]}), split="test")[0]) == 1
    with pytest.raises(UserError, match="no split 'testing': its lines name none"):
        read_examples(write({"clean": [1], "corrupted": [2]}), split="testing")


@pytest.mark.parametrize("name", list(TASKS))
def test_generated_pairs_are_of_equal_length_with_single_token_answers(tokenizer, write, name):
    rows = generate(name, tokenizer, 20, seed=1)
    examples, dropped = read_examples(write(*rows), tokenizer)
    assert len(examples) == 20 and dropped == 0 and examples.has_answers
    assert bool((examples.clean != examples.corrupted).any(1).all())
    assert bool((examples.answers != examples.distractors).all())
    assert rows == generate(name, tokenizer, 20, seed=1) and rows != generate(name, tokenizer, 20, seed=2)


def test_the_corrupted_prompt_of_ioi_has_neither_name_and_test_has_templates_of_its_own(tokenizer):
    train, test = (generate("ioi", tokenizer, 40, split=split) for split in ("train", "test"))
    for row in train:
        assert row["clean"].count(row["distractor"].strip()) == 2 and row["clean"].count(row["answer"].strip()) == 1
        assert (
            row["answer"].strip() not in row["corrupted"].split()
            and row["distractor"].strip() not in row["corrupted"].split()
        )
    assert not {row["template"] for row in train} & {row["template"] for row in test} and len(IOI_TEMPLATES) == 15


def test_values_of_expressions_follow_pythons_precedence(tokenizer):
    for row in generate("boolean", tokenizer, 30, shots=1):
        for text in (row["clean"], row["corrupted"]):
            solved, asked = text.split("\n")
            expression, value = solved.split(" is ")
            assert str(eval(expression)) == value  # noqa: S307 (words of our own)
            assert value_of(asked.removesuffix(" is")) == eval(asked.removesuffix(" is"))  # noqa: S307
        assert row["answer"] == f" {value_of(row['clean'].split(chr(10))[1].removesuffix(' is'))}"


def test_an_unknown_task_and_a_poor_tokenizer_are_named(tokenizer):
    with pytest.raises(UserError, match="Did you mean 'ioi'"):
        generate("ioii", tokenizer, 3)
    bytes_only = Tokenizer.train(["a"], 257)
    with pytest.raises(UserError, match="single tokens"):
        generate("ioi", bytes_only, 3)


def test_tokens_beyond_the_vocabulary_are_refused(network, task_of, write):
    examples, _ = read_examples(write({"clean": [1, 99], "corrupted": [2, 3]}))
    task = task_of(network("llama"))
    with pytest.raises(UserError, match="beyond the model's vocabulary of 61"):
        type(task)(task.masked, examples)
    assert torch.equal(examples.weights, torch.ones(1, 1))
