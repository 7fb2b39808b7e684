"""The bodies of predicates and tables: the rule that most values follow, and the others before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmlab.methods.transformer_programs.program.domains import Domains
from lmlab.methods.transformer_programs.program.emitting.layout import WIDTH, call, collection, if_all, literal
from lmlab.methods.transformer_programs.program.ir import Lookup, Value, ordered


def predicate_lines(
    found: Mapping[Value, frozenset[Value]], queries: frozenset[Value] | None, keys: frozenset[Value] | None
) -> list[str]:
    """The body of a predicate: exceptions first, then the rule that most values of the query follow."""
    rules: dict[str, list[Value]] = {}
    for query, wanted in found.items():
        for rule in _rules(query, wanted):
            rules.setdefault(rule, []).append(query)
    # a rule that speaks of the query goes before a constant that holds for as many
    best = max(rules, key=lambda rule: (len(rules[rule]), "query" in rule, rule == "False", rule), default="False")
    if queries is None:
        best = "False"  # other values of the query match nothing
    rest = [query for query in found if query not in rules.get(best, ())]
    branches: dict[str, list[Value]] = {}
    for query in rest:
        branches.setdefault(_constant(found[query]), []).append(query)
    lines: list[str] = []
    for rule, values in branches.items():
        if rule == best:
            continue
        lines += _condition("query", values, queries)
        lines.append(f"        return {rule}")
    return [*lines, f"    return {best}"]


def _rules(query: Value, wanted: frozenset[Value]) -> list[str]:
    """The rules that tell what one value of a query looks for."""
    found = [_constant(wanted)]
    if len(wanted) == 1:
        (key,) = wanted
        if key == query:
            found.append("key == query")
        elif isinstance(key, int) and isinstance(query, int):
            found.append(f"key == query {'+' if key > query else '-'} {abs(key - query)}")
    return found


def _constant(wanted: frozenset[Value]) -> str:
    if not wanted:
        return "False"
    if len(wanted) == 1:
        return f"key == {literal(next(iter(wanted)))}"
    return f"key in {{{', '.join(literal(each) for each in ordered(wanted))}}}"


def table_lines(node: Lookup, names: Sequence[str], known: Domains) -> list[str]:
    """The body of a table."""
    results: dict[Value, list[tuple[Any, ...]]] = {}
    for key in sorted(node.table, key=lambda key: [(isinstance(each, str), each) for each in key]):
        if node.default is None or node.table[key] != node.default:
            results.setdefault(node.table[key], []).append(key)
    lines: list[str] = []
    for result, keys in sorted(results.items(), key=lambda item: (isinstance(item[0], str), item[0])):
        for sets in _grouped(keys):
            tests, before = [], list[str]()
            for name, values, place in zip(names, sets, range(len(names)), strict=True):
                test = _test(name, values, known.get(node.inputs[place]))
                if len(f"    if {test}:") > WIDTH // 2 and len(values) > 1:  # a set of its own line, or lines
                    before += collection(f"    values_{place} = ", ordered(set(values)), 4, "")
                    test = f"{name} in values_{place}"
                tests.append(test)
            lines += [*before, *if_all(tests), f"        return {literal(result)}"]
    if node.default is None:
        shown = f"({', '.join(names)}{',' if len(names) == 1 else ''})"
        return [*lines, *call("    raise ValueError", [f'f"no row for {{{shown}!r}}"'])]
    return [*lines, f"    return {literal(node.default)}"]


def _grouped(keys: Sequence[tuple[Any, ...]]) -> Iterable[list[list[Any]]]:
    """Keys of one result as products of sets, one set an input: of two inputs, those first values together that have
    the same second values.
    """
    if len(keys[0]) == 1:
        yield [[key[0] for key in keys]]
        return
    if len(keys[0]) > 2:
        for key in keys:
            yield [[each] for each in key]
        return
    seconds: dict[Any, list[Any]] = {}
    for first, second in keys:
        seconds.setdefault(first, []).append(second)
    groups: dict[tuple[Any, ...], list[Any]] = {}
    for first, members in seconds.items():
        groups.setdefault(tuple(members), []).append(first)
    for members_of, firsts in groups.items():
        yield [firsts, list(members_of)]


def _test(name: str, values: Sequence[Any], domain: frozenset[Value] | None) -> str:
    """`name in {...}`, or shorter for one value and for ranges of numbers."""
    values = ordered(set(values))
    # a range says the same as a set only where no text and no fraction may stand
    numeric = domain is not None and all(isinstance(each, int) for each in (*values, *domain))
    if len(values) == 1:
        return f"{name} == {literal(values[0])}"
    if numeric and len(values) > 2 and values[-1] - values[0] == len(values) - 1:
        return f"{values[0]} <= {name} <= {values[-1]}"
    return f"{name} in {{{', '.join(literal(each) for each in values)}}}"


def _condition(name: str, values: Sequence[Any], domain: frozenset[Value] | None) -> list[str]:
    """`if name in {...}:`"""
    line = f"    if {_test(name, values, domain)}:"
    return [line] if len(line) <= WIDTH else collection(f"    if {name} in ", ordered(set(values)), 4, ":")
