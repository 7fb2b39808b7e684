"""Programs that nobody has written: odd tokens, several partners, tables without defaults, any mixture of inputs.
Files, Python text, simplified programs and networks all answer, or refuse, as the interpreter does.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_network import run_python

from lmlab.errors import UserError
from lmlab.methods.transformer_programs.analysis.transform import simplify
from lmlab.methods.transformer_programs.analysis.verify import verify
from lmlab.methods.transformer_programs.network.compile import from_program
from lmlab.methods.transformer_programs.network.convert import to_program
from lmlab.methods.transformer_programs.program.emitting.emit import Tables, to_python
from lmlab.methods.transformer_programs.program.files import load_program, save_program
from lmlab.methods.transformer_programs.program.interpret import Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Program, Select, Value, check
from lmlab.methods.transformer_programs.program.tables import Classifier, Embeddings

TOKENS = [
    "a",
    "1",
    "0",
    "",
    "_",
    "NA",
    "nan",
    '"); import os',
    "x,y",
    "l\nm",
    "<unk>",
    "\\",
    "{i}",
    "é",
    "Emb0.V01",
    "'",
]
REFUSED = "refused"


class Draw:
    """A random program."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.words = self.random.sample(TOKENS, self.random.randint(2, 5))
        known = [*(["<pad>"] if self.random.random() < 0.5 else []), *self.words, "<s>", "</s>"]
        self.length = self.random.choice([None, 4, 5])
        self.values: dict[str, list[Value]] = {"tokens": [*self.words, "<s>", "</s>"]}
        self.embeddings: Embeddings | None = None
        if self.random.random() < 0.35:
            columns = {f"var{i}_embeddings": tuple(self.random.randrange(3) for _ in known) for i in range(2)}
            self.embeddings = Embeddings(
                tuple(known), columns, self.random.choice(["Emb{i}.V{j:02d}", None, "C{i}.k{j}"])
            )
            self.values = {
                name: sorted({each for each in self.embeddings.values(name) if not isinstance(each, float)}, key=str)
                for name in columns
            }
        self.inputs = (*self.values, "positions", "ones")
        if self.length is not None:
            self.values["positions"] = list(range(self.length))
        self.numbers, self.nodes = ["ones"], list[Select | Lookup]()
        for number in range(self.random.randint(1, 5)):
            self.nodes.append(self.node(f"n{number}"))
        causal, pooled = self.random.random() < 0.3, self.random.random() < 0.25
        program = Program(
            self.inputs, frozenset(self.numbers), tuple(self.nodes), self.classifier(), self.embeddings, causal, pooled,
            vocabulary=tuple(known), max_length=self.length,
        )  # fmt: skip
        self.program = check(program, "here")

    def node(self, name: str) -> Select | Lookup:
        one, kind = self.random.choice, self.random.random()
        if kind < 0.65:
            sums, query, key = kind > 0.35, one(list(self.values)), one(list(self.values))
            value = one(self.numbers if sums else list(self.values))
            pairs = [(each, one(self.values[key])) for each in self.values[query] for _ in range(one([0, 1, 1, 1, 2]))]
            if sums:
                self.numbers.append(name)
            else:
                self.values[name] = self.values[value]
            op = "select_sum" if sums else "select_closest"
            return Select(op, name, key, query, value, tuple(dict.fromkeys(pairs)), self.random.random() < 0.2)
        among = one([self.numbers, list(self.values), [*self.numbers, *self.values]])
        inputs = tuple(dict.fromkeys(one(among) for _ in range(self.random.randint(1, 3))))
        results = one([[0, 1, 2], [0, 1, 2], ["yes", 2, "no"]])
        table: dict[tuple[Any, ...], Value] = {
            tuple(self.random.randrange(6) if each in self.numbers else one(self.values[each]) for each in inputs): one(
                results
            )
            for _ in range(self.random.randint(0, 8))
        }
        default = one([*results, None]) if self.random.random() < 0.3 else one(results)
        self.values[name] = list(dict.fromkeys([*table.values(), *([] if default is None else [default])])) or [0]
        return Lookup(name, inputs, table, default)

    def classifier(self) -> Classifier:
        labels = tuple(self.random.sample(["x", "y", "", '"q"', "a,b"], 3))

        def row() -> tuple[float, ...]:
            return tuple(round(self.random.uniform(-2, 2), self.random.choice([0, 3])) for _ in labels)

        weights: dict[str, dict[str, tuple[float, ...]]] = {}
        for name, values in self.values.items():
            if self.random.random() < 0.6:
                same = row() if self.random.random() < 0.2 else None
                weights[name] = {str(value): same or row() for value in values}
        weights |= {name: {"_": row()} for name in self.numbers if self.random.random() < 0.4}
        return Classifier(labels, weights or {"ones": {"_": row()}})

    def sequences(self) -> list[list[str]]:
        drawn = [[self.random.choice(self.words) for _ in range(self.random.randint(1, 4))] for _ in range(12)]
        first = self.words[0]
        return [*drawn, ["<s>", first], [first, "</s>"], ["zzz", first], ["<pad>"], [first] * 9, []]


def answers(run: Callable[[Sequence[str]], Any], sequences: Sequence[Sequence[str]]) -> list[Any]:
    """Answers, or that there is none."""
    found: list[Any] = []
    for tokens in sequences:
        try:
            found.append(run(tokens))
        except (UserError, ValueError):
            found.append(REFUSED)
    return found


def by_interpreter(program: Program) -> Callable[[Sequence[str]], Any]:
    interpreter = Interpreter(program)
    return lambda tokens: interpreter.predict([tokens])[0]


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_made_of_a_program_answers_as_it_does(seed: int, tmp_path: Path) -> None:
    drawn = Draw(seed)
    program, sequences = drawn.program, drawn.sequences()
    expected = answers(by_interpreter(program), sequences)
    assert expected[-1] == expected[-3] == REFUSED
    read = load_program(save_program(program, tmp_path))
    assert answers(by_interpreter(read), sequences) == expected
    every: tuple[Tables, ...] = ("csv", "enum")
    for tables in every if program.embeddings is not None and program.embeddings.categories else every[:1]:
        assert answers(run_python(tmp_path, to_python(read, tables)).run, sequences) == expected, tables
    shorter = answers(by_interpreter(simplify(program)), sequences)
    assert [a for a, b in zip(shorter, expected, strict=True) if b != REFUSED] == [b for b in expected if b != REFUSED]
    try:
        network = from_program(program)
    except UserError:
        return
    known = [each for each, answer in zip(sequences, expected, strict=True) if answer != REFUSED]
    known = [each for each in known if len(each) <= network.spec.context]
    assert verify(network, program, known).equal
    again = to_program(network, reach=known)
    assert answers(by_interpreter(again), known) == answers(by_interpreter(program), known)
