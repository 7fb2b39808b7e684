"""What a program does on data: accuracy, confusions, which branches are taken, and what decided an answer; and the page
that shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lmlab.evals.spans import span_scores
from lmlab.files import write_text
from lmlab.methods.transformer_programs.analysis.minimize import described
from lmlab.methods.transformer_programs.analysis.page import render
from lmlab.methods.transformer_programs.program.domains import domains, partners, with_counts
from lmlab.methods.transformer_programs.program.emitting.bodies import predicate_lines, table_lines
from lmlab.methods.transformer_programs.program.files import ordered_keys
from lmlab.methods.transformer_programs.program.interpret import Execution, Interpreter
from lmlab.methods.transformer_programs.program.ir import Lookup, Node, Program, Select
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER
from lmlab.methods.transformer_programs.tasks.rasp import PAD, Example

_SHOWN = 30  # inputs to step through
_LONGEST = 120  # lines of a table or predicate that the page shows
_WORDS = 60  # words of a category that the page lists


def measure_program(program: Program, examples: Sequence[Example], with_spans: bool = False) -> dict[str, float | int]:
    """Accuracy of labels and of whole sequences, and macro F1 over labels; with spans, strict precision, recall, F1."""
    answers = Interpreter(program).predict([tokens for tokens, _ in examples])
    pairs, whole = _pairs(program, answers, examples)
    scores = [_f1(label, pairs) for label in sorted({wanted for wanted, _ in pairs})]
    figures: dict[str, float | int] = {
        "labels": len(pairs),
        "accuracy": sum(wanted == answer for wanted, answer in pairs) / max(1, len(pairs)),
        "sequence_accuracy": sum(whole) / max(1, len(whole)),
        "macro_f1": sum(scores) / max(1, len(scores)),
    }
    if with_spans:
        kept = [
            [(wanted, answer) for wanted, answer in zip(labels, found, strict=True) if wanted != PAD]
            for found, (_, labels) in zip(answers, examples, strict=True)
        ]
        found = [[answer for _, answer in row] for row in kept]
        truth = [[wanted for wanted, _ in row] for row in kept]
        figures |= {f"span_{name}": value for name, value in span_scores(found, truth).items()}
    return figures


def _pairs(
    program: Program, answers: Sequence[Any], examples: Sequence[Example]
) -> tuple[list[tuple[str, str]], list[bool]]:
    """The right label and the answer of each labeled place, and whether each whole sequence is right."""
    pairs: list[tuple[str, str]] = []
    whole = []
    for answer, (_, labels) in zip(answers, examples, strict=True):
        if program.pool_outputs:
            here = [(next((label for label in labels if label != PAD), PAD), answer)]
        else:
            here = [(wanted, given) for wanted, given in zip(labels, answer, strict=True) if wanted != PAD]
        pairs += here
        whole.append(all(wanted == given for wanted, given in here))
    return pairs, whole


def _f1(label: str, pairs: Sequence[tuple[str, str]]) -> float:
    right = sum(wanted == label == answer for wanted, answer in pairs)
    of_it = sum(wanted == label for wanted, _ in pairs) + sum(answer == label for _, answer in pairs)
    return 2 * right / of_it if of_it else 0.0


def confusions(program: Program, examples: Sequence[Example]) -> list[tuple[str, str, int]]:
    """The wrong answers: right label, answer, how often; the most common first."""
    pairs, _ = _pairs(program, Interpreter(program).predict([tokens for tokens, _ in examples]), examples)
    counts = Counter(pair for pair in pairs if pair[0] != pair[1])
    return [(wanted, answer, count) for (wanted, answer), count in counts.most_common()]


def coverage(execution: Execution) -> dict[str, list[tuple[str, int]]]:
    """For each node how often each of its branches is taken: values of the query of a head, keys of a table. Those with
    0 are dead on this data.
    """
    program = execution.program
    valid = np.arange(int(execution.lengths_B.max(initial=1)))[None, :] < execution.lengths_B[:, None]
    found = {}
    for node in program.nodes:
        columns = [_values(execution, name, valid) for name in node.reads]
        if isinstance(node, Select):
            asked = Counter(columns[1])
            queries = {query: 0 for query, _ in node.predicate} | asked
            found[node.name] = [
                (repr(query), queries[query]) for query in sorted(queries, key=lambda q: (str(type(q)), q))
            ]
        else:
            hits = Counter(zip(*columns, strict=True))
            rows = [(_key(key), hits.pop(key, 0)) for key in ordered_keys(node.table)]
            found[node.name] = [*rows, ("any other key", sum(hits.values()))]
    return found


def _key(key: tuple[Any, ...]) -> str:
    return ", ".join(map(repr, key))


def _values(execution: Execution, name: str, valid: np.ndarray) -> list[Any]:
    column = execution.columns[name][valid].tolist()
    if name in execution.program.numerical:
        return [int(each) if float(each).is_integer() else each for each in column]
    return [execution.names[each] for each in column]


def contributions(
    execution: Execution, sequence: int, place: int
) -> tuple[str, str, list[tuple[str, str, float, float]]]:
    """What decided an answer.

    Returns:
        the answer, the label next to it, and for each feature its value and what it adds to the logits of both; those
        that decide most first.
    """
    program = execution.program
    logits = execution.logits[sequence] if program.pool_outputs else execution.logits[sequence, place]
    first, *rest = np.argsort(-logits, kind="stable").tolist()
    second = rest[0] if rest else first
    rows = []
    for feature, table in program.classifier.weights.items():
        value = execution.variable(feature, sequence)[place]
        if feature in program.numerical:
            weights, scale = table[PLACEHOLDER], float(value)
        else:  # rows that are all equal hold for any value
            scale, known = 1.0, program.classifier.matters(feature)
            weights = table[str(value)] if known else next(iter(table.values()))
        if program.pool_outputs:  # the answer's logits are a mean over places
            scale /= int(execution.lengths_B[sequence])
        rows.append((feature, str(value), scale * weights[first], scale * weights[second]))
    rows.sort(key=lambda row: -abs(row[2] - row[3]))
    return program.labels[first], program.labels[second], rows


def write_page(program: Program, examples: Sequence[Example], path: str | Path, title: str) -> None:
    """Write the page of a program; it loads nothing from anywhere."""
    execution = Interpreter(program).run([tokens for tokens, _ in examples])
    taken = coverage(execution)
    known = with_counts(program, domains(program))
    variables: list[dict[str, Any]] = []
    for name in program.variables:
        node = None if name in program.inputs else program.node(name)
        variables.append(
            {
                "name": name,
                "kind": node.op if node else "number" if name in program.numerical else "category",
                "live": name in program.live,
                "reads": list(dict.fromkeys(node.reads)) if node else [],
                "readers": [each.name for each in program.nodes if name in each.reads],
                "text": _node_text(node, known, program.numerical) if node else _input_text(program, name),
                "branches": taken.get(name, []),
                "scored": program.classifier.matters(name),
            }
        )
    weights = {
        name: [[value, list(row)] for value, row in rows.items()][:_LONGEST]
        for name, rows in program.classifier.weights.items()
    }
    data = {
        "variables": variables,
        "weights": weights,
        "labels": list(program.labels),
        "examples": [_example(execution, number, examples[number]) for number in range(min(_SHOWN, len(examples)))],
    }
    figures = measure_program(program, examples)
    dead = [(name, key) for name, rows in taken.items() for key, count in rows if not count and key != "any other key"]
    page = render(title, data, figures, described(program), confusions(program, examples)[:40], dead[:200], len(dead))
    write_text(Path(path), page)


def _input_text(program: Program, name: str) -> str:
    if name == "ones":
        return "The number 1 at every place."
    if name == "positions":
        return "The number of the place, from 0."
    if name == "tokens" or program.embeddings is None:
        return "The tokens themselves."
    groups: dict[Any, list[str]] = {}
    for word, value in zip(program.embeddings.words, program.embeddings.values(name), strict=True):
        groups.setdefault(value, []).append(word)
    lines = [
        f"{value}: {', '.join(words[:_WORDS])}"
        for value, words in sorted(groups.items(), key=lambda item: str(item[0]))
    ]
    return "\n".join(lines)


def _node_text(node: Node, known: Any, numerical: Collection[str]) -> str:
    if isinstance(node, Select):
        queries, keys = known.get(node.query), known.get(node.key)
        body = predicate_lines(partners(node.predicate, queries, keys), queries, keys)
        how = "the value of the nearest match" if node.op == "select_closest" else "the sum over all matches"
        side = ", places up to its own" if node.causal else ""
        head = f"query: {node.query}\nkey: {node.key}\nvalue: {node.value} ({how}{side})\n\ndef matches(query, key):"
    else:
        assert isinstance(node, Lookup)
        names = list(node.inputs)
        categories = {name: None if name in numerical else values for name, values in known.items()}
        body = table_lines(node, names, known, categories)
        head = f"def {node.name}({', '.join(names)}):"
    more = [f"    ... {len(body) - _LONGEST} more lines"] if len(body) > _LONGEST else []
    return "\n".join([head, *body[:_LONGEST], *more])


def _example(execution: Execution, number: int, example: Example) -> dict[str, Any]:
    program, (tokens, labels) = execution.program, example
    answer = execution.answers[number]
    decided = []
    for place in range(len(tokens)):
        first, second, rows = contributions(execution, number, place)
        shown = [[name, value, round(a, 3), round(b, 3)] for name, value, a, b in rows[:20]]
        decided.append([first, second, shown])
    return {
        "tokens": list(tokens),
        "labels": list(labels),
        "answers": [answer] * len(tokens) if program.pool_outputs else list(answer),
        "columns": {name: execution.variable(name, number) for name in program.variables},
        "places": {name: found[number, : len(tokens)].tolist() for name, found in execution.places.items()},
        "decided": decided,
    }
