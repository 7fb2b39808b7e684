"""Values that nothing tells apart: results of tables that every reader takes alike become one, and inputs on which no
result depends go. Both change no answer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import replace

from lmlab.methods.transformer_programs.program.domains import Domains
from lmlab.methods.transformer_programs.program.ir import Lookup, Node, Program, Value

Kinds = Mapping[Value, Hashable]
"""Of each value of a variable its kind: values of one kind are taken alike by all that reads the variable."""


def merge_values(program: Program, known: Domains) -> Program:
    """The program whose tables give one result for all of a kind: the default if it is among them, else the most common
    one.
    """
    kinds = _kinds(program, known)
    nodes = [
        _merged(node, kinds[node.name]) if isinstance(node, Lookup) and node.name in kinds else node
        for node in program.nodes
    ]
    return replace(program, nodes=tuple(nodes))


def _kinds(program: Program, known: Domains) -> dict[str, Kinds]:
    """The kinds of each node's values; readers stand behind what they read, so that the last nodes go first."""
    kinds: dict[str, Kinds] = {}
    for node in reversed(program.nodes):
        values = known.get(node.name)
        if not values:
            continue  # a number, or a category of which any value may occur
        told: dict[Value, list[Hashable]] = {value: [] for value in values}
        if program.classifier.matters(node.name):
            rows = program.classifier.rows_of(node.name)
            for value in values:
                told[value].append(rows.get(str(value)))
        for reader in program.nodes:
            if node.name in reader.reads:
                for value, each in _told(reader, node.name, values, kinds).items():
                    told[value].append(each)
        kinds[node.name] = {value: tuple(found) for value, found in told.items()}
    return kinds


def _told(reader: Node, name: str, values: frozenset[Value], kinds: Mapping[str, Kinds]) -> dict[Value, Hashable]:
    """What a reader makes of each value of a variable."""
    found: dict[Value, set[Hashable]] = {value: set() for value in values}
    if isinstance(reader, Lookup):
        of_result = kinds.get(reader.name, {})
        usual = None if reader.default is None else of_result.get(reader.default, reader.default)
        for key, result in reader.table.items():
            kind = of_result.get(result, result)
            if reader.default is not None and kind == usual:
                continue
            for place, each in enumerate(reader.inputs):
                value = key[place]
                if each == name and not isinstance(value, float) and value in found:
                    found[value].add((place, *key[:place], *key[place + 1 :], kind))
        return {value: frozenset(each) for value, each in found.items()}
    for query, partner in reader.predicate:
        if reader.query == name and query in found:
            found[query].add(("key", partner))
        if reader.key == name and partner in found:
            found[partner].add(("query", query))
    if reader.value == name:
        taken = kinds.get(reader.name, {})
        for value in values:
            found[value].add(("value", taken.get(value, value)))
    return {value: frozenset(each) for value, each in found.items()}


def _merged(node: Lookup, kinds: Kinds) -> Lookup:
    results = [value for value, _ in Counter(node.table.values()).most_common()]
    chosen: dict[Hashable, Value] = {}
    for value in results if node.default is None else [node.default, *results]:
        chosen.setdefault(kinds[value], value)
    return replace(node, table={key: chosen[kinds[result]] for key, result in node.table.items()})


def without_idle_inputs(node: Lookup, known: Domains) -> Lookup:
    """The table without the first input, if there is one, on whose value no result depends."""
    for place, name in enumerate(node.inputs):
        values = known.get(name)
        if len(node.inputs) < 2 or not values:
            continue  # a count may have values that no row has
        groups: dict[tuple[Value | float, ...], list[Value]] = {}
        for key, result in node.table.items():
            groups.setdefault(key[:place] + key[place + 1 :], []).append(result)
        if all(len(group) == len(values) and len(set(group)) == 1 for group in groups.values()):
            table = {rest: group[0] for rest, group in groups.items()}
            return Lookup(node.name, node.inputs[:place] + node.inputs[place + 1 :], table, node.default)
    return node
