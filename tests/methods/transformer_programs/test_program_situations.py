"""What can go wrong, and what the user is told; and what users of other implementations have reported.

Rows of the first kind that stand elsewhere: shapes that are too small, tables that are too large and programs that
differ from their network in test_network.py; unseen labels, rejected rows, plateaus and losses that are no number in
test_program_training.py; unknown tokens in test_interpreter.py; tables with odd texts in test_program_files.py and
test_program_hazards.py; statements that the reference does not write in test_import_python.py; runs that it did not
write in test_import_commands.py.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import counting_program
from lmlab.data.documents import Reject
from lmlab.data.labeled import LabeledSequence, read_labeled
from lmlab.errors import UserError
from lmlab.files import read_mapping
from lmlab.methods.transformer_programs.config import DataConfig, TrainSettings
from lmlab.methods.transformer_programs.network.reference import load_reference
from lmlab.methods.transformer_programs.program.files import save_program
from lmlab.methods.transformer_programs.report import training_sections
from lmlab.methods.transformer_programs.tasks.load import load_data, read_examples
from lmlab.methods.transformer_programs.tasks.rasp import task
from lmlab.reports import Note


def rows(path: Path, *records: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in records))
    return str(path)


def test_targets_shorter_than_their_inputs_are_pairs(tmp_path: Path) -> None:
    lines = [f"{' '.join(word)}\t{word[0]} {word[-1]}\n" for word in ("abcabc", "bbcabc", "ccaabb", "aaaaab")]
    (tmp_path / "pairs.tsv").write_text("".join(lines) + "a b\ta b c\n\n")
    data = load_data(DataConfig(data=str(tmp_path / "pairs.tsv"), labels="pairs", max_length=10), tmp_path / "rejects")
    tokens, labels = next(
        each for each in (*data.train.examples, *data.valid.examples) if each[0][1:7] == list("abcabc")
    )
    assert labels == ["<pad>", "a", "c", "<pad>", "<pad>", "<pad>", "<pad>", "<pad>"] and len(tokens) == 8
    assert (
        "3 targets for 2 tokens" in (tmp_path / "rejects").read_text()
        and "line 5" in (tmp_path / "rejects").read_text()
    )
    path = rows(
        tmp_path / "pairs.jsonl", {"tokens": list("abcabc"), "target": ["x", 7]}, {"tokens": ["a"], "target": []}
    )
    first, second = read_labeled(path, "pairs")
    assert isinstance(first, LabeledSequence) and first.labels == ("x", "7", None, None, None, None)
    assert isinstance(second, Reject) and second.reason == "no place has a label"
    columns = tmp_path / "x.tsv"
    columns.write_text("a\tO\nb\tO\n")
    assert [each.labels for each in read_labeled(str(columns), "pairs") if isinstance(each, LabeledSequence)] == [
        ("O",)
    ] * 2


def test_labels_may_mix_texts_and_numbers(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    path = rows(
        tmp_path / "mixed.jsonl",
        *({"tokens": ["c", "b", "é", "a"], "labels": ["3", 2, "1", 1]}, {"tokens": ["b", "b"], "labels": [2, "2"]}) * 6,
    )
    done = lmlab(
        "programs", "train", "--data", path, "--valid", path, "--num-layers", "1", "--cat-heads", "0", "--num-heads",
        "0", "--cat-mlps", "0", "--num-mlps", "0", "--seeds", "1", "--epochs", "30", "--batch-size", "4", "--out",
        tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    ran = lmlab("programs", "run", tmp_path / "run", "c b é a")
    assert "3 2 1 1" in ran.out + ran.err


def test_the_empty_text_is_a_label_and_null_is_none(tmp_path: Path) -> None:
    tokens = rows(tmp_path / "tokens.jsonl", *[{"tokens": ["a", "b", "c"], "labels": ["", None, "x"]}] * 3)
    whole = rows(tmp_path / "whole.jsonl", *({"tokens": ["a"], "label": label} for label in ("", "x") * 3))
    data = load_data(DataConfig(data=str(tokens), valid=str(tokens)))
    assert data.labels == ("", "x") and data.train.labels[0].tolist() == [-1, 0, -1, 1, -1]
    assert read_examples(str(tokens), "tokens", "<s>", None)[0][1] == ["<pad>", "", "<pad>", "x"]
    data = load_data(DataConfig(data=str(whole), valid=str(whole), labels="sequence"))
    assert data.labels == ("", "x") and data.train.labels.tolist() == [0, 1] * 3
    assert read_examples(str(whole), "sequence", None, None)[0][1] == [""]


def test_what_data_hold_is_told_once_and_unseen_labels_count_for_the_most_common_answer_too(
    lmlab: Callable[..., Any], tmp_path: Path
) -> None:
    train = rows(tmp_path / "train.jsonl", *[{"tokens": ["b", "a"], "labels": ["y", "x"]}] * 8, {"tokens": ["a"]})
    valid = rows(tmp_path / "valid.jsonl", *[{"tokens": ["b", "a"], "labels": ["never", "x"]}] * 4)
    done = lmlab(
        "programs", "train", "--data", train, "--valid", valid, "--num-layers", "1", "--seeds", "1", "--epochs", "1",
        "--d-mlp", "2", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = " ".join((done.out + done.err).split())
    assert told.count("'never'") == 1 and told.count("set aside") == 1, told
    assert "most common answer 50.0 %" in told


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"tokens": ["a", "b"], "labels": ["x"]}, "line 1: 2 tokens but 1 label"),
        ({"tokens": "a b", "labels": ["x"]}, "line 1: 'tokens' is not a list of texts"),
        ({"tokens": ["a"], "labels": "x"}, "line 1: 'labels' is not a list"),
        ({"tokens": [], "labels": []}, "line 1: 'tokens' is empty"),
        ({"tokens": ["a"], "labels": [None]}, "line 1: no place has a label"),
        ({"tokens": ["a"], "labels": [1.5]}, "line 1: a label is neither a text, a whole number nor null"),
        ({"tokens": ["<pad>"], "labels": ["x"]}, "line 1: '<pad>' is a reserved mark"),
        ({"tokens": ["<s>"], "labels": ["x"]}, "line 1: '<s>' is a reserved mark"),
        ({"tokens": ["a"], "labels": ["</s>"]}, "line 1: '</s>' is a reserved mark"),
    ],
)
def test_rows_that_cannot_be_used_are_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    path = rows(tmp_path / "bad.jsonl", record)
    with pytest.raises(UserError, match="reserved mark|too few|can be used|unfit|of 1") as told:
        load_data(DataConfig(data=path), tmp_path / "rejects.jsonl")
    rejects = tmp_path / "rejects.jsonl"
    assert message in str(told.value) or message.split(": ", 1)[1] in rejects.read_text()


def test_columns_with_comments_odd_spaces_and_gaps(tmp_path: Path) -> None:
    text = (
        "-DOCSTART- -X- O O\n\n# sent_id = 7\n# text = a #\na\xa0b X O\n# X B-x\n\n \n"
        "one X O\r\ntwo X I-x\r\n\r\nlone\n\n-DOCSTART- -X- O O\nlast  X\tO\n"
    )
    (tmp_path / "a.conll").write_bytes(text.encode())
    found = list(read_labeled(str(tmp_path / "a.conll")))
    kept = [each for each in found if isinstance(each, LabeledSequence)]
    assert [each.tokens for each in kept[:2]] == [("a\xa0b", "#"), ("one", "two")]
    assert kept[0].labels == ("O", "B-x")
    empty = tmp_path / "b.tsv"
    empty.write_text("a\tO\nb\t\n")
    (only,) = read_labeled(str(empty))
    assert isinstance(only, Reject) and "line 2 has no label" in only.reason


def test_running_tells_what_it_cannot_read(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    program = save_program(counting_program(), tmp_path / "program")
    for tokens, message in (
        ("", "is empty"),
        ("a zzz", "place 1: the token 'zzz' is not in the program's vocabulary"),
        ("<pad> a", "'<pad>' is a reserved mark"),
    ):
        told = lmlab("programs", "run", program, tokens)
        assert told.code == 2 and message in " ".join(told.err.split()), told.err
        assert "Traceback" not in told.err
    path = tmp_path / "in.jsonl"
    path.write_text("")
    nothing = lmlab("programs", "run", program, "--input", path)
    assert nothing.code == 0 and not nothing.out.strip()
    rows(path, {"tokens": ["a", 'x"); import os', "a"]}, {"tokens": ["a", 'x"); import os', "a"]})
    twice = lmlab("programs", "run", program, "--input", path)
    assert (twice.out + twice.err).count('["more", "once", "more"]') == 2
    rows(path, {"tokens": [1]})
    assert "line 1: 'tokens' is not a list of texts" in " ".join(
        lmlab("programs", "run", program, "--input", path).err.split()
    )


def test_a_plateau_is_flagged_and_no_error(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    done = lmlab(
        "programs", "train", "--task", "hist", "--size", "400", "--max-length", "5", "--num-layers", "1", "--seeds",
        "2", "--epochs", "0.2", "--batch-size", "64", "--polish", "0", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    told = " ".join((done.out + done.err).split())
    assert re.search(r"Best of 2 seeds \(seed \d\): \d\d\.\d\d % on test, most common answer \d\d\.\d %", told), told
    assert "ALL SEEDS ARE ON A PLATEAU: try more seeds, more heads or more epochs" in told
    results = read_mapping(tmp_path / "run" / "results.json")["program"]
    assert results["plateau"] and results["program"]["faithful"]
    (first, *_) = training_sections(results, None)
    note = first.blocks[0]
    assert (
        isinstance(note, Note) and note.kind == "warning" and "All seeds are on a plateau: the best of 2" in note.text
    )


def test_sequences_may_see_what_is_to_their_left_alone(tmp_path: Path) -> None:
    path = rows(tmp_path / "a.jsonl", *[{"tokens": ["a", "b"], "labels": ["x", "y"]}] * 12)
    assert load_data(DataConfig(data=path, autoregressive=True)).autoregressive
    assert not load_data(DataConfig(data=path)).autoregressive
    with pytest.raises(ValueError, match="autoregressive belongs to data"):
        TrainSettings(task="hist", autoregressive=True)


def test_ties_of_frequency_go_to_the_first() -> None:
    assert task("most_freq").label(["3", "1", "3", "1"]) == ["3", "1", "<s>", "<s>"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_layers": 10**9}, "n_layers is 1000000000 in args.json"),
        ({"n_layers": 2}, "n_layers is 2, but the weights have 1 layers"),
        ({"n_heads_cat": "two"}, "n_heads_cat is 'two' in args.json"),
        ({"n_heads_num": 5}, "the arguments say"),
        ({"dataset": "mystery"}, "is no task whose data can be drawn again"),
        ({"standard": True}, "is a standard Transformer"),
    ],
)
def test_runs_whose_arguments_do_not_fit_are_refused(
    ground_truth: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    theirs = ground_truth / "checkpoints" / "hist"
    shutil.copy(theirs / "model.npz", tmp_path)
    arguments = json.loads((theirs / "args.json").read_text())
    (tmp_path / "args.json").write_text(json.dumps({**arguments, **change}))
    with pytest.raises(UserError, match=message):
        load_reference(tmp_path)
