"""How long a program's sequences may be: what it was made for, any length, and never a silent answer beyond."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_network import run_python

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.analysis.minimize import minimize
from lmlab.methods.transformer_programs.analysis.verify import compare_programs, verify
from lmlab.methods.transformer_programs.network.compile import from_program
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.program.emitting.emit import to_python
from lmlab.methods.transformer_programs.program.files import load_program, save_program
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select, check
from lmlab.methods.transformer_programs.program.tables import Classifier

LONG = [["a"] * n + ["b"] * m for n in (1, 2, 7, 40) for m in (0, 1, 9, 60)]


def comparing() -> Program:
    """Whether there are as many a as b, for any length: two counts and a table of pairs."""
    heads = tuple(
        Select("select_sum", f"count_{token}", "tokens", "tokens", "ones", (("a", token), ("b", token)))
        for token in "ab"
    )
    table = Lookup("same", ("count_a", "count_b"), {(n, n): 1 for n in range(30)}, 0)
    return Program(
        ("tokens", "positions", "ones"),
        frozenset({"ones", "count_a", "count_b"}),
        (*heads, table),
        Classifier(("no", "yes"), {"same": {"0": (1.0, 0.0), "1": (0.0, 1.0)}}),
        vocabulary=("a", "b"),
    )


def test_a_program_for_any_length_becomes_a_network_for_long_sequences(counting: Program) -> None:
    network = from_program(counting)
    again = to_program(network)
    long = [["NA"] * n + ["a"] * m for n, m in itertools.product((1, 2, 50, 300), repeat=2)]
    assert network.spec.context > 100 and network.spec.d_var < 20
    assert verify(network, counting, long).equal
    # one count has an end beyond which its table is proved to stay the same
    assert again.longest is None and compare_programs(again, counting, long).equal
    pairs = comparing()
    network = from_program(pairs)
    assert verify(network, pairs, LONG).equal
    again = to_program(network)
    assert compare_programs(again, pairs, LONG).equal
    with pytest.raises(UserError, match="has no row for"):
        Interpreter(again).run([["a"] * (network.spec.context + 1) + ["b"]])


def test_rows_that_are_equal_for_all_positions_are_kept_in_the_network(counting: Program) -> None:
    weights = {**counting.classifier.weights, "positions": {"0": (0.0, 5.0), "1": (0.0, 5.0)}}
    always = replace(counting, classifier=Classifier(counting.labels, weights))
    sequences = [["a"], ["a", "a", "b"]]
    assert Interpreter(always).predict(sequences) == [["more"], ["more"] * 3]
    assert verify(from_program(always), always, sequences).equal


def bounded_by_positions() -> Program:
    """A count with a table for up to 4 places, and a classifier with rows for positions that hardly matter."""
    rows = {
        "kind": {"0": (1.0, 0.0), "1": (0.0, 1.0)},
        "positions": {str(place): (0.001 * place, 0.0) for place in range(4)},
    }
    return Program(
        ("tokens", "positions", "ones"),
        frozenset({"ones", "count"}),
        (
            Select("select_sum", "count", "tokens", "tokens", "ones", (("a", "a"), ("b", "b"))),
            Lookup("kind", ("count",), {(3,): 1, (4,): 1}, 0),
        ),
        Classifier(("few", "many"), rows),
        vocabulary=("a", "b"),
        max_length=4,
    )


def test_minimizing_positions_away_leaves_no_silent_default(tmp_path: Path) -> None:
    program = check(bounded_by_positions(), "here")
    inputs = [list(each) for n in range(1, 5) for each in itertools.product("ab", repeat=n)]
    examples = list(zip(inputs, Interpreter(program).predict(inputs), strict=True))
    shorter = minimize(program, examples, 0.0).program
    assert shorter.reads_positions is None and shorter.longest == 4
    read = load_program(save_program(shorter, tmp_path))
    assert read == shorter
    with pytest.raises(UserError, match=r"5 places, but the program knows 4 \(its tables hold for no more\)"):
        Interpreter(read).run([["a"] * 5])
    with pytest.raises(ValueError, match="5 places; the program knows 4"):
        run_python(tmp_path, to_python(read)).run(["a"] * 5)


def test_minimizing_a_program_for_any_length_changes_no_longer_answer(counting: Program) -> None:
    """Its examples have counts up to 3, most of which are rows of the table; its default answers beyond."""
    table = Lookup("kind", ("count",), {(0,): 0, (1,): 0, (2,): 0}, 1)
    program = replace(counting, nodes=(counting.nodes[0], table))
    inputs = [["a"] * n + ["b"] * m for n in range(1, 4) for m in range(3)]
    examples = list(zip(inputs, Interpreter(program).predict(inputs), strict=True))
    shorter = minimize(program, examples, 0.0).program
    assert shorter.longest is None
    assert compare_programs(shorter, program, [["a"] * n for n in range(1, 30)]).equal


def test_bounded_without_a_length_is_refused(counting: Program) -> None:
    with pytest.raises(UserError, match="'bounded' needs 'max_length'"):
        check(replace(counting, bounded=True), "here")


@pytest.mark.parametrize("inputs", [5, 9])
def test_tables_of_many_wide_inputs_find_their_rows(inputs: int) -> None:
    random = np.random.default_rng(inputs)
    words = [f"w{number}" for number in range(9000)]
    keys = {tuple(words[each] for each in row) for row in random.integers(9000, size=(6000, inputs)).tolist()}
    table = {key: number % 7 for number, key in enumerate(sorted(keys))}
    heads = tuple(
        Select("select_closest", f"h{place}", "positions", "positions", "tokens", ((0, place),))
        for place in range(1, inputs)
    )
    node = Lookup("big", ("tokens", *(head.name for head in heads)), table, 9)
    labels = tuple(str(number) for number in (*range(7), 9))
    rows = {label: tuple(float(label == each) for each in labels) for label in labels}
    program = Program(
        ("tokens", "positions"), frozenset(), (*heads, node), Classifier(labels, {"big": rows}),
        vocabulary=tuple(words), max_length=inputs,
    )  # fmt: skip
    some = sorted(table)[::500]
    mixed = [(*first[:-1], second[-1]) for first, second in itertools.pairwise(some)]
    execution = Interpreter(program).run([list(each) for each in (*some, *mixed)])
    found = [answer[0] for answer in execution.answers]
    assert found == [str(table.get(key, 9)) for key in (*some, *mixed)]
