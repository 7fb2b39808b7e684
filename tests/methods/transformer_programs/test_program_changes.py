"""Programs that are made shorter answer as before; those that become networks do too."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from test_network import INPUTS, random_spec, sharpened

from browser import drawn, needs_browser
from lmlab.errors import UserError
from lmlab.methods.transformer_programs.analysis.explain import (
    confusions,
    contributions,
    coverage,
    measure_program,
    write_page,
)
from lmlab.methods.transformer_programs.analysis.minimize import minimize, refit, score
from lmlab.methods.transformer_programs.analysis.transform import fix, simplify
from lmlab.methods.transformer_programs.analysis.verify import compare_oracle, compare_programs, every_input, verify
from lmlab.methods.transformer_programs.network.compile import from_program
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.program.files import load_program
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Node, Program, Select
from lmlab.methods.transformer_programs.program.tables import Classifier
from lmlab.methods.transformer_programs.tasks.rasp import Example


def _labeled(program: Program) -> list[Example]:
    """What a program itself answers: it is right on all of it."""
    answers = Interpreter(program).predict(INPUTS)
    if program.pool_outputs:
        return [
            (tokens, [answer, *["<pad>"] * (len(tokens) - 1)]) for tokens, answer in zip(INPUTS, answers, strict=True)
        ]
    return list(zip(INPUTS, answers, strict=True))


@pytest.mark.parametrize("seed", range(40))
def test_simplifying_changes_no_answer(seed: int) -> None:
    program = to_program(sharpened(random_spec(random.Random(seed)), seed))
    shorter = simplify(program)
    ours, theirs = Interpreter(shorter).run(INPUTS), Interpreter(program).run(INPUTS)
    assert ours.answers == theirs.answers
    assert abs(ours.logits - theirs.logits).max() < 1e-6
    assert shorter.size()["nodes"] <= program.size()["nodes"]
    assert simplify(shorter) == shorter


@pytest.mark.parametrize("seed", range(40))
def test_simplifying_what_fewer_features_decide_changes_no_answer(seed: int) -> None:
    program = to_program(sharpened(random_spec(random.Random(seed)), seed))
    weights = program.classifier.weights
    kept = random.Random(seed).sample(sorted(weights), min(2, len(weights)))
    few = replace(program, classifier=Classifier(program.labels, {name: weights[name] for name in kept}))
    shorter = simplify(few)
    assert abs(Interpreter(shorter).run(INPUTS).logits - Interpreter(few).run(INPUTS).logits).max() < 1e-6
    assert simplify(shorter) == shorter


@pytest.mark.parametrize("seed", range(0, 40, 3))
def test_minimizing_costs_no_more_than_it_may(seed: int) -> None:
    program = to_program(sharpened(random_spec(random.Random(seed)), seed))
    for drop in (0.0, 0.05):
        found = minimize(program, _labeled(program), drop)
        assert score(found.program, _labeled(program)) >= 1 - drop
        assert found.after["lines"] <= found.before["lines"]


@pytest.mark.parametrize("seed", range(40))
def test_a_program_becomes_the_network_that_computes_it(seed: int) -> None:
    program = to_program(sharpened(random_spec(random.Random(seed)), seed))
    if program.embeddings is not None and any("tokens" in node.reads for node in program.nodes):
        with pytest.raises(UserError, match="reads tokens"):
            from_program(program)
        return
    network = from_program(program)
    assert verify(network, program, INPUTS).equal
    assert compare_programs(to_program(network), program, INPUTS).equal


def test_published_programs_become_networks(ground_truth: Path) -> None:
    for name in ("rasp/hist", "rasp/reverse", "rasp_categorical_only/dyck1"):
        program = load_program(ground_truth / "published" / name)
        symbols = [token for token in program.vocabulary or () if not token.startswith("<")][:3]
        inputs = list(every_input(symbols, 4, "<s>"))
        assert verify(from_program(program), program, inputs).equal, name


def test_several_partners_and_tables_without_default_become_networks(counting: Program) -> None:
    head, table = counting.nodes
    assert isinstance(head, Select) and isinstance(table, Lookup)
    pairs = (("a", "a"), ("a", "NA"), ("b", "NA"), ("NA", "NA"), ("NA", "a"), ("NA", "b"))
    near = Select("select_closest", "near", "tokens", "tokens", "tokens", pairs)
    named = Lookup("named", ("near",), {("a",): 0, ("NA",): 1}, None)  # a place that takes 'b' is refused
    known = Lookup("known", ("count",), {(0,): 0, (1,): 1, (2,): 0, (3,): 1}, None)
    rows = {"0": (1.0, 0.0), "1": (0.0, 1.0)}
    program = replace(
        counting,
        nodes=(replace(head, predicate=pairs), near, named, known),
        classifier=Classifier(("once", "more"), {"named": rows, "known": rows}),
    )
    inputs = list(every_input(("a", "b", "NA"), 4))
    network = from_program(program)
    again, kept = to_program(network), []
    for tokens in inputs:
        try:
            answer = Interpreter(program).predict([tokens])
        except UserError as error:
            with pytest.raises(UserError, match=str(error).split("'")[0]):
                Interpreter(again).predict([tokens])
            continue
        assert Interpreter(again).predict([tokens]) == answer
        kept.append(tokens)
    assert 20 < len(kept) < len(inputs) - 20
    assert verify(network, program, kept).equal


def test_layers_with_different_numbers_of_running_counts_become_networks(counting: Program) -> None:
    head = counting.nodes[0]
    assert isinstance(head, Select)
    running = [replace(head, name=f"running_{number}", causal=True) for number in range(2)]
    kind = Lookup("kind", ("count", "running_0"), {(2, 1): 1, (3, 2): 1}, 0)
    third = replace(head, name="third", key="kind", query="kind", predicate=((0, 1), (1, 1)))
    rows = {"third": {"_": (0.5, 0.0)}, "running_1": {"_": (0.0, 0.3)}}
    program = replace(
        counting,
        numerical=counting.numerical | {"running_0", "running_1", "third"},
        nodes=(head, *running, kind, third),
        classifier=Classifier(("once", "more"), rows),
        max_length=5,
        bounded=True,
    )
    network = from_program(program)
    inputs = list(every_input(("a", "b", "NA"), 4))
    assert verify(network, program, inputs).equal
    again = to_program(network)
    assert compare_programs(again, program, inputs).equal and again.longest == 5


def test_equal_nodes_and_dead_ones_go(counting: Program) -> None:
    count, kind = counting.nodes
    twin = replace(count, name="twin")
    second = Lookup("second", ("twin",), kind.table, kind.default) if isinstance(kind, Lookup) else kind
    rows = {"kind": counting.classifier.weights["kind"], "second": {"0": (2.0, 0.0), "1": (0.0, 2.0)}}
    dead = Select("select_closest", "dead", "tokens", "tokens", "positions", (("a", "a"),))
    longer = replace(
        counting, nodes=(count, twin, kind, second, dead), numerical=counting.numerical | {"twin"},
        classifier=Classifier(counting.labels, rows),
    )  # fmt: skip
    shorter = simplify(longer)
    assert [node.name for node in shorter.nodes] == ["count", "kind"]
    assert shorter.classifier.weights["kind"] == {"0": (3.0, 0.0), "1": (0.0, 3.0)}


def _of_letters(nodes: Sequence[Node], weights: dict[str, dict[str, tuple[float, ...]]]) -> Program:
    return Program(
        inputs=("tokens", "positions"), numerical=frozenset(), nodes=tuple(nodes),
        classifier=Classifier(("no", "yes"), weights), vocabulary=("a", "b", "c", "d"), max_length=3,
    )  # fmt: skip


def test_results_that_nothing_tells_apart_become_one() -> None:
    kind = Lookup("kind", ("tokens", "positions"), {("a", 0): 1, ("b", 0): 2, ("b", 1): 2, ("c", 2): 3}, 0)
    head = Select("select_closest", "head", "tokens", "kind", "tokens", ((0, "a"), (1, "b"), (2, "b"), (3, "a")))
    program = _of_letters((kind, head), {"head": {letter: (0.0, float(letter == "b")) for letter in "abcd"}})
    shorter = simplify(program)
    assert shorter.node("kind") == replace(kind, table={("a", 0): 2, ("b", 0): 2, ("b", 1): 2})
    head = shorter.node("head")
    assert isinstance(head, Select) and head.predicate == ((0, "a"), (2, "b"))
    scored = replace(program, classifier=Classifier(
        program.labels, {**program.classifier.weights, "kind": {str(each): (0.0, float(each)) for each in range(4)}},
    ))  # fmt: skip
    assert simplify(scored) == scored  # each has a row of its own
    inputs = list(every_input("abcd", 3))
    assert compare_programs(shorter, program, inputs).equal and len(inputs) == 84


def test_inputs_and_tables_that_make_no_difference_go() -> None:
    idle = Lookup("idle", ("tokens", "positions"), {("a", place): 1 for place in range(3)} | {("b", 0): 0}, 0)
    twice = Lookup("twice", ("tokens", "idle"), {("a", 0): 2, ("a", 1): 3, ("b", 0): 3, ("c", 1): 2}, 4)
    rare = Lookup("rare", ("tokens", "positions"), {(each, 1): 1 for each in "abc"} | {("a", 2): 1, ("a", 0): 1,
        ("b", 0): 1, ("b", 2): 1}, 0)  # fmt: skip
    heads = [
        Select("select_closest", f"by_{name}", "positions", name, "tokens", ((value, 0), (5, 1)))
        for name, value in (("twice", 3), ("rare", 1))
    ]
    rows = {each: (0.0, number / 3) for number, each in enumerate("abcd")}
    program = _of_letters((idle, twice, rare, *heads), {"by_twice": rows, "by_rare": rows})
    shorter = simplify(program)
    assert [node.name for node in shorter.nodes] == ["rare", "by_twice", "by_rare"]
    head = shorter.node("by_twice")
    assert isinstance(head, Select) and (head.query, head.predicate) == ("tokens", (("a", 0), ("b", 0)))
    table = shorter.node("rare")  # of 12 keys, 7 had another result than the default
    assert isinstance(table, Lookup) and (table.default, len(table.table)) == (1, 5)
    assert compare_programs(shorter, program, list(every_input("abcd", 3))).equal


@pytest.mark.parametrize("seed", range(40))
def test_simplifying_answers_nothing_that_was_refused(seed: int) -> None:
    program = to_program(sharpened(random_spec(random.Random(seed)), seed))
    chance = random.Random(seed)
    weights = {
        name: {value: row for value, row in rows.items() if chance.random() < 0.7} or rows
        for name, rows in program.classifier.weights.items()
    }
    few = replace(program, classifier=Classifier(program.labels, weights))
    shorter = simplify(few)
    for tokens in INPUTS:
        try:
            answer = Interpreter(few).predict([tokens])
        except UserError:
            with pytest.raises(UserError):
                Interpreter(shorter).predict([tokens])
            continue
        assert Interpreter(shorter).predict([tokens]) == answer


def test_a_row_that_is_left_alone_is_no_constant(counting: Program) -> None:
    rows = {"0": (1.0, 0.0), "7": (0.0, 1.0)}  # "kind" is 0 or 1
    program = replace(counting, classifier=Classifier(counting.labels, {"kind": rows}))
    assert Interpreter(simplify(program)).predict([["a", "b"]]) == [["once", "once"]]
    with pytest.raises(UserError, match="no row for the value 1 of 'kind'"):
        Interpreter(simplify(program)).predict([["a", "a"]])
    everything = replace(counting, classifier=Classifier(counting.labels, {"kind": rows | {"1": (1.0, 0.0)}}))
    assert not simplify(everything).nodes  # all that it can be has one row
    assert fix(program, "kind", 1) is None and fix(program, "kind", 0) is not None


def test_rows_of_equal_nodes_whose_sum_is_constant_still_refuse_what_both_do() -> None:
    head = Select("select_closest", "head", "tokens", "positions", "tokens", ((0, "a"), (1, "b"), (2, "c")))
    twin = replace(head, name="twin")
    rising = {letter: (0.0, float(number)) for number, letter in enumerate("abc")}
    falling = {letter: (0.0, -each) for letter, (_, each) in rising.items()}
    program = _of_letters((head, twin), {"head": rising, "twin": falling})  # neither has a row for "d"
    for tokens in (["d", "c", "b"], ["a", "b", "c"]):
        if tokens[0] == "a":
            assert Interpreter(simplify(program)).predict([tokens]) == Interpreter(program).predict([tokens])
        else:
            with pytest.raises(UserError, match="no row for the value 'd'"):
                Interpreter(simplify(program)).predict([tokens])
    whole = {"head": rising | {"d": (0.0, 3.0)}, "twin": falling | {"d": (0.0, -3.0)}}
    assert not simplify(replace(program, classifier=Classifier(program.labels, whole))).nodes


def test_a_table_may_name_an_input_twice() -> None:
    kind = Lookup("kind", ("tokens",), {("a",): 1, ("b",): 2}, 0)
    pair = Lookup("pair", ("kind", "kind"), {(1, 1): 5, (2, 2): 6, (1, 2): 7, (0, 0): 8}, 9)
    both = Lookup("both", ("kind", "tokens", "kind"), {(1, "a", 1): 5, (2, "a", 2): 6, (2, "b", 1): 7}, 9)
    rows = {str(each): (0.0, each / 3 - 2) for each in range(5, 10)}
    program = _of_letters((kind, pair, both), {"pair": rows, "both": rows | {"9": (0.0, 0.5)}})
    inputs = list(every_input("abcd", 3))
    shorter = simplify(program)
    assert not shorter.nodes and compare_programs(shorter, program, inputs).equal
    head = Select("select_closest", "head", "positions", "positions", "tokens", ((1, 0), (2, 1)))
    head_pair = replace(pair, inputs=("head", "head"), table={("a", "a"): 5, ("b", "b"): 6, ("a", "b"): 7})
    program = _of_letters((head, head_pair), {"pair": rows})
    shorter = simplify(program)
    assert [node.name for node in shorter.nodes] == ["head"] and compare_programs(shorter, program, inputs).equal
    fixed = fix(program, "head", "b")
    assert fixed is not None and not fixed.nodes
    assert Interpreter(fixed).run([["a"]]).logits[0, 0].tolist() == [0.0, 0.0]  # the row of 6


def test_folding_makes_no_predicate_or_table_of_all_with_all() -> None:
    words = tuple(f"w{number}" for number in range(400))
    kind = Lookup("kind", ("tokens",), {(word,): number % 2 for number, word in enumerate(words[:300])}, 2)
    wide = tuple((query, word) for query in range(3) for word in words[query::2])
    head = Select("select_closest", "head", "tokens", "kind", "tokens", wide)
    before = Select("select_closest", "before", "positions", "positions", "tokens", ((1, 0), (2, 1)))
    table = {(query, word): (number + query) % 3 for query in range(3) for number, word in enumerate(words)}
    both = Lookup("both", ("kind", "before"), table, 3)
    rows = {word: (0.0, number / 3) for number, word in enumerate(words)}
    weights = {"head": rows, "both": {str(each): (0.0, float(each)) for each in range(4)}}
    program = replace(_of_letters((kind, head, before, both), weights), vocabulary=words)
    shorter = simplify(program)
    assert {node.name for node in shorter.nodes} == {"kind", "head", "before", "both"}
    inputs = [[words[5], words[6], words[399]], [words[0], words[1], words[1]]]
    assert compare_programs(shorter, program, inputs).equal
    assert fix(program, "kind", 0) is None  # 400 words that each look for 200
    few = replace(program, nodes=(kind, replace(head, predicate=wide[:20]), before))
    few = replace(few, classifier=Classifier(program.labels, {"head": rows}))
    fixed = fix(few, "kind", 0)
    assert fixed is not None and len(fixed.node("head").predicate) == 400 * 20  # type: ignore[union-attr]


def test_fixing_a_variable_where_another_table_has_no_row_then_is_no_end() -> None:
    """A second variable is fixed in a program that refuses already, because a first one has been fixed beside it."""
    places = {"first": {4: 3}, "after": {4: 5}, "start": dict.fromkeys(range(6), 1), "twin": dict.fromkeys(range(6), 2)}
    heads = tuple(
        Select("select_closest", name, "positions", "positions", "tokens", tuple(pairs.items()))
        for name, pairs in places.items()
    )
    answers = {("a", "a"): "even", ("b", "b"): "odd", ("a", "c"): "odd", ("c", "b"): "even"}
    rows = {("<s>", "<s>", start): 99 for start in "xy"}
    by_value: dict[str, tuple[float, float]] = {"99": (0.0, 0.0)}
    for number, (pair, answer) in enumerate(answers.items()):
        for start, added in (("x", 0), ("y", 10)):
            rows[*pair, start] = number + added
        by_value[str(number)] = (1.0, -1.0) if answer == "even" else (-1.0, 1.0)
        by_value[str(number + 10)] = (-5.0, 4.0) if answer == "even" else (-5.0, 15.0)
    table = Lookup("table", ("first", "after", "start"), rows, None)  # type: ignore[arg-type]
    told = {"x": (0.0, 0.0), "y": (5.0, -5.0)}
    program = Program(
        inputs=("tokens", "positions"), numerical=frozenset(), nodes=(*heads, table), max_length=6,
        classifier=Classifier(("even", "odd"), {"table": by_value, "twin": told}),
        vocabulary=("<s>", "a", "b", "c", "d", "x", "y"),
    )  # fmt: skip
    examples = [
        (["<s>", start, start, pair[0], "d", pair[1]], ["<pad>"] * 4 + [answer, "<pad>"])
        for pair, answer in answers.items()
        for start in "xxxyy"
    ]
    assert score(program, examples) == 1
    found = minimize(program, examples, 0.0)
    assert found.after["accuracy"] == 1 and found.after["nodes"] < found.before["nodes"]
    hasty = minimize(program, examples, 0.0, seconds=0.0)  # what changes no answer alone
    assert hasty.after["accuracy"] == 1 and found.after["nodes"] < hasty.after["nodes"]


def test_a_number_or_what_a_head_asks_by_is_fixed(counting: Program) -> None:
    fixed = fix(counting, "count", 1.0)  # "kind" says once of 1, whatever stands there
    assert fixed is not None and not fixed.nodes
    assert Interpreter(fixed).predict([["a", "a"]]) == [["once", "once"]]
    count = counting.node("count")
    assert isinstance(count, Select)
    asked = Lookup("asked", ("tokens",), {("a",): 1, ("b",): 2}, 3)
    count = replace(count, query="asked", predicate=((1, "a"), (1, "b"), (2, "NA")))
    asking = replace(counting, nodes=(asked, count, counting.node("kind")))
    for value, keys in ((1, {"a", "b"}), (2, {"NA"}), (3, set())):
        fixed = fix(asking, "asked", value)
        assert fixed is not None and [node.name for node in fixed.nodes] == ["count", "kind"]
        found = Interpreter(fixed).run([["a", "b", "NA", "a"]]).variable("count", 0)
        assert found == [sum(each in keys for each in ("a", "b", "NA", "a"))] * 4
    assert fix(counting, "tokens", "a") is None  # a head matches its places


def test_programs_are_compared_with_rules_and_with_each_other(counting: Program) -> None:
    def rule(tokens: list[str]) -> list[str]:
        return ["once" if tokens.count(each) == 1 else "more" for each in tokens]

    inputs = list(every_input("ab", 5))
    assert compare_oracle(counting, rule, inputs).equal  # type: ignore[arg-type]
    kind = counting.nodes[1]
    assert isinstance(kind, Lookup)
    other = replace(counting, nodes=(counting.nodes[0], replace(kind, table={(0,): 0, (1,): 0, (3,): 0})))
    report = compare_programs(counting, other, inputs)
    assert not report.equal and report.first is not None
    assert (
        report.first["tokens"] == ["a", "a", "a"]
        and report.first["program"] == "more"
        and report.first["other program"] == "once"
    )


def test_refitting_finds_what_the_rows_should_be(counting: Program) -> None:
    rows = {"kind": {"0": (0.0, 1.0), "1": (1.0, 0.0)}, "ones": {"_": (0.0, 0.0)}}
    wrong = replace(counting, classifier=Classifier(counting.labels, rows))
    examples = [(tokens, Interpreter(counting).predict([tokens])[0]) for tokens in every_input("ab", 3)]
    assert score(wrong, examples) == 0 and score(refit(wrong, examples), examples) == 1


def test_explaining_tells_what_decided_and_what_is_dead(counting: Program, tmp_path: Path) -> None:
    examples: list[Example] = [(["a", "b", "a"], ["more", "once", "more"]), (["<b>"], ["more"])]
    known = replace(counting, vocabulary=(*(counting.vocabulary or ()), "<b>"))
    execution = Interpreter(known).run([tokens for tokens, _ in examples])
    first, second, rows = contributions(execution, 0, 0)
    assert (first, second) == ("more", "once") and rows == [("kind", "1", 1.0, 0.0)]
    taken = coverage(execution)
    assert dict(taken["count"])["'NA'"] == 0 and dict(taken["kind"]) == {"0": 1, "1": 1, "any other key": 2}
    assert measure_program(known, examples)["accuracy"] == 0.75
    assert confusions(known, examples) == [("more", "once", 1)]
    write_page(known, examples, tmp_path / "page.html", "<script>alert(1)</script>")
    page = (tmp_path / "page.html").read_text()
    assert "<script>alert" not in page and "&lt;script&gt;alert(1)" in page and "\\u003cb\\u003e" in page


def test_rows_that_are_equal_and_means_over_places_are_told_as_they_count(counting: Program) -> None:
    equal = {**counting.classifier.weights, "tokens": {"b": (0.25, 0.5), "NA": (0.25, 0.5)}}
    program = replace(counting, classifier=Classifier(counting.labels, equal), pool_outputs=True)
    execution = Interpreter(program).run([["a", "b", "a"]])
    _, _, rows = contributions(execution, 0, 0)
    assert {row[0] for row in rows} == {"kind", "tokens"}
    order = [program.labels.index(label) for label in contributions(execution, 0, 0)[:2]]
    total = [sum(row[2 + place] for at in range(3) for row in contributions(execution, 0, at)[2]) for place in (0, 1)]
    assert total == pytest.approx(execution.logits[0][order].tolist())


@needs_browser
def test_the_page_of_a_program_fits_a_narrow_window(ground_truth: Path, tmp_path: Path) -> None:
    program = load_program(ground_truth / "published/rasp/sort")
    tokens = ["<s>", *"30412", "</s>"]
    write_page(program, [(tokens, ["<pad>", *"01234", "<pad>"])], tmp_path / "page.html", "long" * 40)
    measure = "const root = document.documentElement; root.title = `${root.scrollWidth} of ${root.clientWidth}`;"
    found = re.search(r'<html[^>]* title="(\d+) of (\d+)"', drawn(tmp_path / "page.html", measure, width=500))
    assert found is not None and int(found[1]) == int(found[2]) <= 500
