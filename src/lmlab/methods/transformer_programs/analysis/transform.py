"""Changes of programs that keep what they compute, and one that fixes a variable at a value."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lmlab.methods.transformer_programs.analysis.values import merge_values, without_idle_inputs
from lmlab.methods.transformer_programs.program.domains import Domains, domains, partners
from lmlab.methods.transformer_programs.program.ir import (
    SELECT_SUM,
    Lookup,
    Node,
    Program,
    Select,
    Value,
    add_constant,
    ordered,
)
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER, Classifier

Row = tuple[float, ...]
_MOST_KEYS = 50_000  # of a table whose default may be another result
_MOST_MADE = 10_000  # pairs of a predicate, or rows of a table, that a change may make of fewer
_MOST_QUERIES = 2  # heads into whose predicates a table is folded, each of which then repeats it


def simplify(program: Program) -> Program:
    """The same answers with fewer parts: nothing that no answer depends on, equal nodes once, tables without rows and
    inputs that make no difference, results that nothing tells apart as one, tables of one result and of one category
    folded away.
    """
    while True:
        before = program
        program = _tidy(drop_dead(program))
        program = _merge_equal(_fold(merge_values(program, domains(program))))
        if program == before:
            return program


def drop_dead(program: Program) -> Program:
    """Without nodes and features that no answer depends on."""
    live = program.live
    weights: dict[str, Mapping[str, Row]] = {}
    constant = [0.0] * len(program.labels)
    for feature, rows in program.classifier.weights.items():
        if program.classifier.matters(feature):
            weights[feature] = rows
        elif feature not in program.numerical and rows:
            constant = [a + b for a, b in zip(constant, next(iter(rows.values())), strict=True)]
    kept = tuple(node for node in program.nodes if node.name in live)
    names = {*program.inputs, *(node.name for node in kept)}
    changed = replace(
        program, nodes=kept, numerical=frozenset(program.numerical & names),
        classifier=Classifier(program.labels, weights),
    )  # fmt: skip
    return add_constant(changed, tuple(constant))


def fix(program: Program, name: str, value: Value | float) -> Program | None:
    """The program in which a variable is always one value.

    None where heads match its places, or sum it; where the classifier has no row for the value, which the program
    refuses; and where a predicate that says the same without the variable would be too long.
    """
    return _fixed(program, name, value, domains(program))


def _fixed(program: Program, name: str, value: Value | float, known: Domains) -> Program | None:
    readers = [node for node in program.nodes if name in node.reads]
    heads = [node for node in readers if isinstance(node, Select)]
    if any(node.key == name or (node.op == SELECT_SUM and node.value == name) for node in heads):
        return None
    wanted = {node.name: _keys_of(node, value, known) for node in heads if node.query == name}
    if any(
        not 0 < len(known.get(node.key) or ()) * max(1, len(wanted[node.name])) <= _MOST_MADE
        for node in heads
        if node.query == name
    ):
        return None
    weights = dict(program.classifier.weights)
    rows = weights.pop(name, {})
    if name in program.numerical:
        row = tuple(float(value) * each for each in rows[PLACEHOLDER]) if rows else None
    else:  # rows that are all equal hold for any value
        row = rows.get(str(value)) if program.classifier.matters(name) else next(iter(rows.values()), None)
    if rows and row is None:
        return None
    program = replace(program, classifier=Classifier(program.labels, weights))
    program = program if row is None else add_constant(program, row)
    nodes: list[Node] = []
    followers: list[str] = []
    for node in program.nodes:
        if node.name == name:
            continue
        if isinstance(node, Lookup) and name in node.inputs:
            node = _specialized(node, name, value)
            if not node.inputs:
                followers.append(node.name)
                nodes.append(Lookup(node.name, ("positions",), {}, node.default))  # its readers take the value below
                continue
        elif isinstance(node, Select):
            if node.query == name:  # all places look for the same: whatever a place asks by, such as its key
                pairs = tuple((query, key) for query in ordered(known[node.key] or ()) for key in wanted[node.name])
                node = replace(node, query=node.key, predicate=pairs)
            if node.value == name:
                followers.append(node.name)
        nodes.append(node)
    inputs = program.inputs
    changed = replace(program, nodes=tuple(nodes), inputs=inputs)
    for follower in followers:
        node = program.node(follower)
        fixed = _specialized(node, name, value).default if isinstance(node, Lookup) else value
        if fixed is None:
            return None
        further = _fixed(changed, follower, fixed, known)
        if further is None:
            return None
        changed = further
    return drop_dead(changed)


def _keys_of(node: Select, value: Value | float, known: Domains) -> list[Value]:
    """The keys that a value of a head's query looks for, of those that can occur."""
    keys = known.get(node.key)
    return [key for query, key in node.predicate if query == value and (keys is None or key in keys)]


def _distinct(node: Lookup) -> Lookup:
    """The table with each of its inputs once, whose keys agree where they have named one input twice."""
    while len(set(node.inputs)) < len(node.inputs):
        place = next(place for place, name in enumerate(node.inputs) if name in node.inputs[:place])
        first = node.inputs.index(node.inputs[place])
        table = {
            key[:place] + key[place + 1 :]: result for key, result in node.table.items() if key[place] == key[first]
        }
        node = Lookup(node.name, node.inputs[:place] + node.inputs[place + 1 :], table, node.default)
    return node


def _specialized(node: Lookup, name: str, value: Value | float) -> Lookup:
    node = _distinct(node)
    place = node.inputs.index(name)
    inputs = node.inputs[:place] + node.inputs[place + 1 :]
    table = {key[:place] + key[place + 1 :]: result for key, result in node.table.items() if key[place] == value}
    if not inputs:
        return Lookup(node.name, (), {}, table.get((), node.default))
    return Lookup(node.name, inputs, table, node.default)


def _tidy(program: Program) -> Program:
    """Predicates, tables and classifier without what no input reaches; tables without what makes no difference."""
    known = domains(program)
    nodes: list[Node] = []
    for node in program.nodes:
        if isinstance(node, Select):
            found = partners(node.predicate, known.get(node.query), known.get(node.key))
            pairs = tuple((query, key) for query, keys in found.items() for key in sorted(keys, key=str))
            nodes.append(replace(node, predicate=pairs))
        else:
            nodes.append(_short_default(without_idle_inputs(_tidy_table(_distinct(node), known), known), known))
    weights = {feature: _reached(rows, known.get(feature)) for feature, rows in program.classifier.weights.items()}
    return replace(program, nodes=tuple(nodes), classifier=Classifier(program.labels, weights))


def _reached(rows: Mapping[str, Row], values: frozenset[Value] | None) -> Mapping[str, Row]:
    """The rows of values that a feature can have, unless these would be a constant for a value that has no row."""
    texts = {str(value) for value in values or ()}
    kept = {value: row for value, row in rows.items() if value in texts}
    return kept if kept and len(kept) < len(rows) and _refuses_alike(kept, values) else rows


def _refuses_alike(rows: Mapping[str, Row], values: frozenset[Value] | None) -> bool:
    """Whether values without a row are refused: equal rows count as a constant, which answers for any value."""
    return len(set(rows.values())) > 1 or (values is not None and all(str(value) in rows for value in values))


def _sum(
    rows: Mapping[str, Row], others: Mapping[str, Row] | None, values: frozenset[Value] | None
) -> Mapping[str, Row] | None:
    """The rows of two features that are always equal, as those of one; None where they would answer what either has no
    row for.
    """
    if others is None:
        return rows
    if rows.keys() != others.keys():
        return None
    total = {value: tuple(a + b for a, b in zip(row, others[value], strict=True)) for value, row in rows.items()}
    return total if set(total) == {PLACEHOLDER} or _refuses_alike(total, values) else None


def _short_default(node: Lookup, known: Mapping[str, frozenset[Value] | None]) -> Lookup:
    """The table with the result that most keys have as its default."""
    spans = [known.get(name) for name in node.inputs]
    if node.default is None or not node.table or not all(spans):
        return node
    sizes = [ordered(span or ()) for span in spans]
    count = math.prod(map(len, sizes))
    (result, most), *_ = Counter(node.table.values()).most_common(1)
    if count > _MOST_KEYS or most <= count - len(node.table):
        return node
    every = {key: node.table.get(key, node.default) for key in itertools.product(*sizes)}
    return replace(node, table={key: each for key, each in every.items() if each != result}, default=result)


def _tidy_table(node: Lookup, known: Mapping[str, frozenset[Value] | None]) -> Lookup:
    table = {}
    for key, result in node.table.items():
        reached = all(
            name not in known or known[name] is None or value in (known[name] or ())
            for name, value in zip(node.inputs, key, strict=True)
        )
        if reached and result != node.default:
            table[key] = result
    return replace(node, table=table)


def _fold(program: Program) -> Program:
    """Tables of one result become constants; tables of one category go into what reads them."""
    known = domains(program)
    for node in program.nodes:
        if not isinstance(node, Lookup) or node.default is None:
            continue
        if not node.table:
            folded = fix(program, node.name, node.default)
        elif len(node.inputs) == 1 and node.inputs[0] not in program.numerical and known.get(node.inputs[0]):
            folded = _into_readers(program, node, known[node.inputs[0]] or frozenset())
        else:
            continue
        if folded is not None:
            return folded
    return program


def _into_readers(program: Program, node: Lookup, values: frozenset[Value]) -> Program | None:
    """What reads a table of one category reads that category itself; None where heads take or match its results, where
    what reads it would become too long, or would answer what it refuses.
    """
    source = node.inputs[0]
    result: dict[Value, Any] = {value: node.table.get((value,), node.default) for value in ordered(values)}
    heads = [each for each in program.nodes if isinstance(each, Select) and node.name in each.reads]
    if len(heads) > _MOST_QUERIES or any(node.name in (each.key, each.value) for each in heads):
        return None
    weights = dict(program.classifier.weights)
    rows = weights.pop(node.name, None)
    if rows is not None:
        told = {str(value): rows[str(made)] for value, made in result.items() if str(made) in rows}
        total = _sum(told, weights.get(source), values) if _refuses_alike(told, values) else None
        if total is None:
            return None
        weights[source] = total
    causes: dict[Value, list[Value]] = {}
    for value, made in result.items():
        causes.setdefault(made, []).append(value)
    nodes: list[Node] = []
    for each in program.nodes:
        if each.name == node.name:
            continue
        if isinstance(each, Lookup) and node.name in each.inputs:
            each = _distinct(each)
            made = 0 if source in each.inputs else sum(_made(each, node.name, causes))
            if made > max(_MOST_MADE, len(each.table)):
                return None
            each = _reads_source(each, node.name, source, result, causes)
        elif isinstance(each, Select) and each.query == node.name:
            if sum(len(causes.get(query, ())) for query, _ in each.predicate) > max(_MOST_MADE, len(each.predicate)):
                return None
            pairs = [(value, key) for query, key in each.predicate for value in causes.get(query, ())]
            each = replace(each, query=source, predicate=tuple(pairs))
        nodes.append(each)
    classifier = Classifier(program.labels, weights)
    return replace(program, nodes=tuple(nodes), classifier=classifier)


def _made(node: Lookup, name: str, causes: Mapping[Value, Sequence[Value]]) -> Iterator[int]:
    """Of each row how many it becomes where an input is replaced by what has caused it."""
    place = node.inputs.index(name)
    return (len(causes.get(_category(key[place]), ())) for key in node.table)


def _reads_source(
    node: Lookup, name: str, source: str, result: Mapping[Value, Value], causes: Mapping[Value, Sequence[Value]]
) -> Lookup:
    """A table that reads what another was made from, in place of what it gives.

    Arguments:
        result: of each value of the source.
        causes: the values of the source that have a result.
    """
    place = node.inputs.index(name)
    rest = node.inputs[:place] + node.inputs[place + 1 :]
    if source in rest:  # what it gives is known from an input that is there already
        twin = node.inputs.index(source)
        told = {
            key[:place] + key[place + 1 :]: found
            for key, found in node.table.items()
            if result.get(_category(key[twin])) == key[place]
        }
        return Lookup(node.name, rest, told, node.default)
    table = {
        (*key[:place], value, *key[place + 1 :]): found
        for key, found in node.table.items()
        for value in causes.get(_category(key[place]), ())
    }
    return Lookup(node.name, (*node.inputs[:place], source, *node.inputs[place + 1 :]), table, node.default)


def _category(value: Value | float) -> Value:
    assert not isinstance(value, float), "a category is a text or a whole number"
    return value


def _merge_equal(program: Program) -> Program:
    """Nodes that compute the same become one, whose rows in the classifier are the sum of theirs."""
    seen: dict[Any, str] = {}
    known = domains(program)
    for node in program.nodes:
        what: Any = (
            (node.op, *node.reads, frozenset(node.predicate), node.causal)
            if isinstance(node, Select)
            else (node.op, node.inputs, frozenset(node.table.items()), node.default)
        )
        if what not in seen:
            seen[what] = node.name
        elif (merged := _renamed(program, node.name, seen[what], known)) is not None:
            return merged
    return program


def _renamed(program: Program, old: str, new: str, known: Domains) -> Program | None:
    """The program in which another variable stands for one that is equal to it; None where their rows have no sum."""
    weights = dict(program.classifier.weights)
    rows = weights.pop(old, None)
    if rows is not None:
        total = _sum(rows, weights.get(new), known.get(new))
        if total is None:
            return None
        weights[new] = total

    def name(each: str) -> str:
        return new if each == old else each

    nodes: list[Node] = []
    for node in program.nodes:
        if node.name == old:
            continue
        if isinstance(node, Select):
            node = replace(node, key=name(node.key), query=name(node.query), value=name(node.value))
        elif old in node.inputs:
            node = _distinct(replace(node, inputs=tuple(map(name, node.inputs))))
        nodes.append(node)
    return replace(
        program,
        nodes=tuple(nodes),
        numerical=program.numerical - {old},
        classifier=Classifier(program.labels, weights),
    )


def is_sum(node: Node) -> bool:
    """Whether a node gives numbers."""
    return node.op == SELECT_SUM
