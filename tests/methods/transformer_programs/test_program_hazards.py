"""Tokens, names and counts that a program must not stumble over; and data that is spelled as its training data were."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_network import run_python, sharpened

from lmlab.data.labeled import read_labeled
from lmlab.errors import UserError
from lmlab.files import read_mapping
from lmlab.methods.transformer_programs.analysis.export import export_program
from lmlab.methods.transformer_programs.analysis.verify import every_input, verify
from lmlab.methods.transformer_programs.config import DataConfig, ExportOptions
from lmlab.methods.transformer_programs.network.compile import from_program
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.network.spec import NetworkSpec
from lmlab.methods.transformer_programs.program.emitting.emit import to_python
from lmlab.methods.transformer_programs.program.emitting.layout import literal
from lmlab.methods.transformer_programs.program.files import load_program, save_program
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select, check
from lmlab.methods.transformer_programs.program.tables import Classifier, Embeddings
from lmlab.methods.transformer_programs.tasks.load import draw


@pytest.mark.parametrize("seed", range(6))
def test_the_empty_text_and_the_placeholder_are_tokens_like_any_other(seed: int, tmp_path: Path) -> None:
    spec = NetworkSpec(
        vocabulary=("<pad>", "_", "", "a"), labels=("x", "y"), d_var=6, context=4, num_layers=2, autoregressive=seed > 3
    )
    model = sharpened(spec, seed)
    inputs = list(every_input(["_", "", "a"], 4))
    program = to_program(model)
    assert verify(model, program, inputs).equal
    read = load_program(save_program(program, tmp_path))
    answers = Interpreter(program).predict(inputs)
    assert Interpreter(read).predict(inputs) == answers
    module = run_python(tmp_path, to_python(read))
    assert [module.run(tokens) for tokens in inputs] == answers


def test_no_name_of_a_variable_hides_what_the_text_uses(tmp_path: Path) -> None:
    names = ["ifs", "table_x", "x", "match_h", "h", "spell", "values_0", "prints", "print_1", "known"]
    nodes: list[Select | Lookup] = [Lookup(name, ("tokens",), {("a",): 1}, 0) for name in names if name != "h"]
    nodes.insert(3, Select("select_closest", "h", "tokens", "tokens", "tokens", (("a", "b"),)))
    nodes.append(Lookup("last", ("values_0", "prints", "ifs"), {(1, 1, 1): 1}, 0))
    rows = {each.name: {"0": (1.0, 0.0), "1": (0.0, 1.0)} for each in nodes if each.name != "h"}
    rows["h"] = {"a": (0.0, 3.0), "b": (3.0, 0.0)}
    program = Program(
        ("tokens",), frozenset(), tuple(nodes), Classifier(("0", "1"), rows), vocabulary=("a", "b"), lower=True
    )  # fmt: skip
    module = run_python(save_program(check(program, "here"), tmp_path), to_python(program))
    inputs = list(every_input("abAB", 3))
    assert [module.run(tokens) for tokens in inputs] == Interpreter(program).predict(inputs)


def test_fractions_are_in_no_range_of_whole_numbers(tmp_path: Path) -> None:
    program = Program(
        ("tokens", "num_var0_embeddings"), frozenset({"num_var0_embeddings", "sum"}),
        (
            Select("select_sum", "sum", "tokens", "tokens", "num_var0_embeddings", (("a", "b"), ("b", "b"))),
            Lookup("kind", ("sum",), {(1,): 1, (2,): 1, (3,): 1}, 0),
        ),
        Classifier(("no", "yes"), {"kind": {"0": (1.0, 0.0), "1": (0.0, 1.0)}}),
        Embeddings(("a", "b"), {"num_var0_embeddings": (0.0, 0.5)}), vocabulary=("a", "b"),
    )  # fmt: skip
    module = run_python(save_program(program, tmp_path), to_python(program))
    inputs = list(every_input("ab", 5))
    answers = Interpreter(program).predict(inputs)
    assert answers[inputs.index(["b", "b", "b"])] == ["no", "no", "no"]
    assert [module.run(tokens) for tokens in inputs] == answers
    with pytest.raises(UserError, match="is a number of each word"):
        from_program(program)


def test_texts_are_quoted_as_formatted_code_has_them() -> None:
    for text in ("a", "it's", 'say "hi"', "'\"", "''\"", '"\'"', "\\'", "\n\\n", "\u2028"):
        assert ast.literal_eval(literal(text)) == text
    assert literal("''\"") == '"\'\'\\""' and literal('""\'') == "'\"\"\\''"


def test_sums_of_sums_do_not_carry_over_in_the_network_of_a_program() -> None:
    every = tuple((query, key) for query, key in (("a", "a"),))
    program = Program(
        ("tokens", "positions", "ones"), frozenset({"ones", "one", "two", "three"}),
        (
            Select("select_sum", "one", "tokens", "tokens", "ones", every),
            Select("select_sum", "two", "tokens", "tokens", "one", every),
            Select("select_sum", "three", "tokens", "tokens", "two", every),
            Lookup("kind", ("one", "three"), {(4, 1): 1, (2, 8): 2}, 0),  # 3 and 27 once had the code of 4 and 1
        ),
        Classifier(("x", "y", "z"), {"kind": {"0": (1.0, 0, 0), "1": (0, 1.0, 0), "2": (0, 0, 1.0)}}),
        vocabulary=("<pad>", "a", "b"), max_length=5,
    )  # fmt: skip
    inputs = list(every_input("ab", 5))
    assert verify(from_program(program), program, inputs).equal
    kind = replace(program.nodes[3], table={(1, -1): 1})  # no count is -1; its code once was that of 0 and the greatest
    few = replace(
        program,
        nodes=(program.nodes[0], replace(program.nodes[2], value="ones"), kind),
        max_length=3,
        numerical=frozenset({"ones", "one", "three"}),
    )
    assert verify(from_program(few), few, list(every_input("ab", 3))).equal
    bound = replace(program.nodes[0], value="ones", key="positions", predicate=(("a", 0),))
    unsaid = replace(program, nodes=(bound, *program.nodes[1:]), max_length=None)
    with pytest.raises(UserError, match="'one' reads positions, but the program does not say how many"):
        from_program(unsaid)


def test_a_program_that_came_to_read_no_positions_has_no_silent_defaults(tmp_path: Path) -> None:
    spec = NetworkSpec(
        vocabulary=("<pad>", "a", "b"), labels=("x", "y"), d_var=4, context=4, num_layers=1, cat_heads=0, cat_mlps=0
    )
    model = sharpened(spec, 1)
    with torch.no_grad():
        block = model.blocks[0]
        for gate in (block.key, block.query):
            gate.copy_(torch.tensor([9.0, -9.0]).expand_as(gate))  # type: ignore[operator, union-attr, arg-type]
        model.unembed[0, 4:8] = 0.0  # the rows of positions
    program = to_program(model)
    assert program.longest is None
    longer = [["a"] * count + ["b"] for count in range(1, 12)]
    further = to_program(model, max_length=12)
    assert verify(model, further, longer).equal
    module = run_python(save_program(further, tmp_path), to_python(further))
    assert [module.run(tokens) for tokens in longer] == Interpreter(further).predict(longer)
    table = next(node for node in program.nodes if isinstance(node, Lookup))
    assert table.default is None
    with pytest.raises(UserError, match="has no row for"):
        Interpreter(program).run(longer)


def test_tables_of_reached_rows_are_exported_and_made_short(tmp_path: Path) -> None:
    data = draw(DataConfig(task="hist", size=300, max_length=5))
    spec = NetworkSpec(
        vocabulary=data.vocabulary, labels=data.labels, d_var=8, context=data.context, num_layers=2, d_mlp=8, num_mlps=2
    )
    model = sharpened(spec, 5)
    options = ExportOptions(max_rows=20, exhaustive=100, minimize=True, max_accuracy_drop=0.1)
    manifest = export_program(model, 0, data, tmp_path, options)
    assert manifest["faithful"] and manifest["verification"]["exhaustive"] is None
    program = to_program(model, 0, [tokens for tokens, _ in data.train.examples], 20)
    assert any(isinstance(node, Lookup) and node.default is None for node in program.nodes)
    assert manifest["minimized"]["after"]["accuracy"] >= manifest["minimized"]["before"]["accuracy"] - 0.1


def test_words_are_spelled_as_in_training_wherever_a_program_reads(lmlab: Callable[..., Any], tmp_path: Path) -> None:
    rows = [
        {"tokens": [word, number], "labels": [word.lower(), "number"]}
        for word in ("Paris", "PARIS", "rome", "ROME", "Oslo")
        for number in ("12", "7", "1999", "3x")
    ]
    file, longer = tmp_path / "rows.jsonl", {"tokens": ["Oslo"] * 9, "labels": ["oslo"] * 9}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = lmlab(
        "programs", "train", "--data", file, "--valid", file, "--test", file, "--lower", "--replace-numbers",
        "--num-layers", "1", "--cat-heads", "1", "--num-heads", "0", "--cat-mlps", "0", "--num-mlps", "0", "--d-mlp",
        "4", "--seeds", "1", "--epochs", "40", "--batch-size", "10", "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.code == 0, done.err
    program = tmp_path / "run" / "program" / "program"
    text = read_mapping(program / "program.json")
    assert text["lower"] and text["replace_numbers"] and set(text["vocabulary"]) >= {"paris", "@", "@x"}
    assert read_mapping(program / "manifest.json")["accuracy"]["test"] == 1.0
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, longer]))
    measured = lmlab("programs", "evaluate", program, "--data", file)
    told = " ".join((measured.out + measured.err).split())
    assert measured.code == 0 and "accuracy: 100.00 %" in told
    assert "1 of 21 sequences are longer than the program's 4 places and left out" in told
    ran = lmlab("programs", "run", program, "OSLO 31")
    assert "oslo number" in ran.out + ran.err
    module = run_python(program, (program / "program.py").read_text())
    assert module.run(["<s>", "OSLO", "31", "</s>"]) == ["<s>", "oslo", "number", "</s>"]
    page = tmp_path / "page.html"
    assert lmlab("programs", "explain", program, "--data", file, "--out", page).code == 0 and "@x" in page.read_text()
    wrong = lmlab("programs", "evaluate", program, "--data", file, "--labels", "sequence")
    assert wrong.code == 2 and "an answer for each token" in " ".join(wrong.err.split())
    file.write_text("")
    empty = lmlab("programs", "minimize", program, "--data", file, "--out", tmp_path / "short")
    assert empty.code == 2 and "holds no labeled sequences" in " ".join(empty.err.split())


def test_columns_label_tokens_alone(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text("I O\nlive O\n")
    assert len(list(read_labeled(str(tmp_path / "a.conll")))) == 1
    with pytest.raises(UserError, match="has columns, which label tokens, not sequences"):
        list(read_labeled(str(tmp_path / "a.conll"), "sequence"))


def words_program(**changes: Any) -> Program:
    """A tagger of embedded words."""
    words = ("<pad>", "<unk>", "<s>", "</s>", "one", "two", 'x"); import os', "Emb0.V01", "NA")
    categories = Embeddings(
        words,
        {"var0_embeddings": (0, 0, 1, 1, 2, 2, 3, 0, 3), "var1_embeddings": (0, 1, 0, 1, 0, 1, 0, 1, 2)},
        "Emb{i}.V{j:02d}",
    )
    head = Select(
        "select_closest", "near", "var0_embeddings", "var1_embeddings", "var0_embeddings",
        (("Emb1.V00", "Emb0.V02"), ("Emb1.V01", "Emb0.V03"), ("Emb1.V02", "Emb0.V09")),
    )  # fmt: skip
    pair = Lookup("pair", ("near", "var1_embeddings"), {("Emb0.V02", "Emb1.V01"): 1, ("Emb0.V03", "Emb1.V00"): 1}, 0)
    rows = {f"Emb0.V{number:02d}": (number / 3, 0.5) for number in range(4)}
    program = Program(
        ("var0_embeddings", "var1_embeddings"),
        frozenset(),
        (head, pair),
        Classifier(("x", "y"), {"pair": {"0": (0.0, 0.1), "1": (1.0, 0.0)}, "near": rows}),
        embeddings=categories,
        vocabulary=words,
    )
    return check(replace(program, **changes), "here")


@pytest.mark.parametrize("tables", ["csv", "enum"])
@pytest.mark.parametrize("few", [False, True])
def test_words_that_the_program_refuses_are_refused_by_its_text(tables: Any, few: bool, tmp_path: Path) -> None:
    program = words_program()
    if few:  # words of the table that the vocabulary does not have
        program = replace(program, vocabulary=("<pad>", "<s>", "</s>", "one", "two", "NA"))
    module = run_python(save_program(program, tmp_path), to_python(program, tables))
    known = [word for word in program.vocabulary or () if word != "<pad>"]
    inputs = list(every_input(known, 3))
    assert [module.run(tokens) for tokens in inputs] == Interpreter(program).predict(inputs)
    for strange in ("<pad>", "<unk>", 'x"); import os', "Two"):
        if strange == "<pad>" or few:
            with pytest.raises(UserError, match="reserved mark|not in the program's"):
                Interpreter(program).predict([["one", strange]])
            with pytest.raises(ValueError, match="reserved mark|unknown token"):
                module.run(["one", strange])
        else:
            assert module.run(["one", strange]) == Interpreter(program).predict([["one", strange]])[0]
    with pytest.raises(ValueError, match="reserved mark"):
        module.run(["<pad>"])


def test_categories_are_enumerations_where_asked_for(tmp_path: Path) -> None:
    program = words_program()
    text = to_python(program, "enum")
    assert "class Emb0(StrEnum):" in text and "{Emb1.V00: Emb0.V02, " in text
    assert '    Emb0.V03: ["x\\"); import os", "NA"],' in text or 'Emb0.V03: [\'x"); import os\', "NA"]' in text
    directory = save_program(program, tmp_path / "program")
    module = run_python(directory, text)
    (directory / "embeddings.csv").unlink()
    assert module.run(["one", "NA"]) == Interpreter(program).predict([["one", "NA"]])[0]
    python = [sys.executable, "-m"]
    for command in (
        ["ruff", "check", "--isolated", "."],
        ["ruff", "format", "--isolated", "--check", "."],
        ["mypy", "--strict", "--config-file=", "program/program.py"],
    ):
        done = subprocess.run([*python, *command], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    numbers = replace(program.embeddings, categories=None) if program.embeddings else None
    with pytest.raises(UserError, match="which no enumeration has"):
        to_python(replace(program, embeddings=numbers, nodes=(), classifier=Classifier(("x", "y"), {})), "enum")
    for pattern in ("str{i}x.V{j}", "E.V{i}_{j}"):
        renamed = replace(program.embeddings, categories=pattern) if program.embeddings else None
        changed = replace(program, embeddings=renamed, nodes=(), classifier=Classifier(("x", "y"), {}))
        if pattern.startswith("str"):
            assert "class str0x(StrEnum)" in to_python(changed, "enum")
        else:
            with pytest.raises(UserError, match="No enumeration can be called 'E'"):
                to_python(changed, "enum")


def test_a_program_without_a_vocabulary_knows_the_words_of_its_table() -> None:
    program = replace(words_program(), vocabulary=None)
    assert Interpreter(program).predict([["never", "NA"]]) == Interpreter(program).predict([["<unk>", "NA"]])
