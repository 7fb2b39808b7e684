"""Programs run as their authors say, on every published case."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmlab.errors import UserError
from lmlab.files import read_jsonl
from lmlab.methods.transformer_programs.program import interpret
from lmlab.methods.transformer_programs.program.files import load_program
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select, check
from lmlab.methods.transformer_programs.program.tables import Classifier, Embeddings


def test_all_published_programs_on_all_cases(ground_truth: Path) -> None:
    paths = sorted((ground_truth / "published").rglob("program.json"))
    assert len(paths) == 16
    for path in paths:
        program, cases = load_program(path), list(read_jsonl(path.parent / "cases.jsonl"))
        tokens = [case["tokens"] for case in cases]
        execution = Interpreter(program).run(tokens)
        assert execution.answers == [case["faithful"] for case in cases], path
        assert Interpreter(program, "emitted").predict(tokens) == [case["emitted"] for case in cases], path
        for number, case in enumerate(cases):
            for name, values in case.get("variables", {}).items():
                assert execution.variable(name, number) == values, (path, name)
            if "logits" in case:
                found = execution.logits[number, : len(case["tokens"])]
                np.testing.assert_allclose(found, case["logits"], atol=1e-3)


def _closest(causal: bool, predicate: tuple[tuple[str, str], ...]) -> Program:
    return Program(
        inputs=("tokens", "positions", "ones"),
        numerical=frozenset({"ones"}),
        nodes=(Select("select_closest", "head", "tokens", "tokens", "positions", predicate, causal),),
        classifier=Classifier(("x",), {"ones": {"_": (1.0,)}}),
    )


def _nearest_by_hand(tokens: list[str], place: int, partners: set[tuple[str, str]], causal: bool, rule: str) -> int:
    """The rule as one reads it, one place at a time."""
    matches = [j for j, key in enumerate(tokens) if (tokens[place], key) in partners and (j <= place or not causal)]
    if not matches:
        return 0
    if rule == "faithful":
        others = [j for j in matches if j != place]
        return min(others, key=lambda j: (abs(j - place), j)) if others else place
    return min(matches, key=lambda j: (len(matches) if j == place else abs(j - place), j))


@pytest.mark.parametrize("rule", ["faithful", "emitted"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("cells", [1 << 22, 8])
def test_a_head_takes_the_nearest_place(rule: str, causal: bool, cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether all places are looked at together, or, as in long sequences, some at a time."""
    monkeypatch.setattr(interpret, "_MOST_CELLS", cells)
    for pairs in ({("a", "a"), ("b", "a")}, {("a", "b"), ("a", "a"), ("b", "b")}, {("b", "b")}):
        program = _closest(causal, tuple(sorted(pairs)))
        sequences = [list(each) for n in range(1, 6) for each in itertools.product("ab", repeat=n)]
        execution = Interpreter(program, rule).run(sequences)  # type: ignore[arg-type]
        for number, tokens in enumerate(sequences):
            expected = [_nearest_by_hand(tokens, place, pairs, causal, rule) for place in range(len(tokens))]
            assert execution.variable("head", number) == expected, (tokens, pairs)


def test_a_program_that_reads_no_positions_runs_at_any_length(counting: Program) -> None:
    assert counting.longest is None
    answers = Interpreter(counting).predict([["a"] * 50, ["a", "b"] * 3 + ["NA"]])
    assert answers[0] == ["more"] * 50
    assert answers[1] == ["more"] * 6 + ["once"]
    bound = replace(counting, nodes=(*counting.nodes, _closest(False, (("a", "a"),)).nodes[0]), max_length=4)
    assert Interpreter(bound).predict([["a"] * 9]) == [["more"] * 9]  # the head that reads positions is not live
    rows = {**bound.classifier.weights, "head": {str(n): (float(n), 0.0) for n in range(4)}}
    live = replace(bound, classifier=Classifier(("once", "more"), rows))
    with pytest.raises(UserError, match="has 9 places, but the program knows 4 \\('head' reads positions\\)"):
        Interpreter(live).predict([["a"] * 9])


def test_long_sequences_take_little_memory(counting: Program) -> None:
    tracemalloc.start()
    try:
        answers = Interpreter(counting).predict([["a", *["NA"] * 4999]])
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert answers == [["once", *["more"] * 4999]]
    assert most < 100e6  # places by places alone would be 200 MB
    with pytest.raises(UserError, match="Sequence 1 has 100,001 places; at most 100,000 are run"):
        Interpreter(counting).predict([["a"] * 100_001])


def test_unknown_tokens_become_unk_or_are_named(counting: Program) -> None:
    with pytest.raises(UserError, match="Sequence 2, place 1: the token 'q' is not in the program's vocabulary"):
        Interpreter(counting).predict([["a"], ["a", "q"]])
    embeddings = Embeddings(("<unk>", "NA"), {"var0_embeddings": (0, 1)}, "Emb{i}.V{j:02d}")
    rows = {"var0_embeddings": {"Emb0.V00": (1.0, 0.0), "Emb0.V01": (0.0, 1.0)}}
    inputs = ("tokens", "positions", "ones", "var0_embeddings")
    program = Program(
        inputs, frozenset({"ones"}), (), Classifier(("u", "k"), rows), embeddings, vocabulary=embeddings.words
    )
    assert Interpreter(check(program, "it")).predict([["NA", "null", "NA"]]) == [["k", "u", "k"]]
    with pytest.raises(UserError, match="Sequence 1 is empty"):
        Interpreter(program).predict([[]])


def test_a_table_without_a_default_refuses_what_it_has_no_row_for(counting: Program) -> None:
    nodes = (counting.nodes[0], Lookup("kind", ("count",), {(1,): 0, (2,): 1}, None))
    strict = Interpreter(replace(counting, nodes=nodes))
    assert strict.predict([["a", "a", "b"]]) == [["more", "more", "once"]]
    with pytest.raises(UserError, match="The table 'kind' has no row for \\[3.0\\]"):
        strict.predict([["a", "a", "a"]])


def test_wide_tables_give_the_same_as_small_ones() -> None:
    random = np.random.default_rng(0)
    keys = {(int(a), int(b), int(c)) for a, b, c in random.integers(0, 400, (900, 3))}
    table = {key: int(sum(key) % 7) for key in keys}
    counts = tuple(f"num_var{i}_embeddings" for i in range(3))
    rows = [*sorted(keys)[:50], (1000, 0, 0)]
    words = tuple(f"w{i}" for i in range(len(rows)))
    columns = {name: tuple(float(row[i]) for row in rows) for i, name in enumerate(counts)}
    program = Program(
        ("tokens", "positions", "ones", *counts), frozenset({"ones", *counts}), (Lookup("t", counts, table, 9),),
        Classifier(("x",), {"ones": {"_": (1.0,)}}), Embeddings(words, columns), vocabulary=words,
    )  # fmt: skip
    found = Interpreter(check(program, "it")).run([list(words)]).variable("t", 0)
    assert found == [table.get(row, 9) for row in rows]
