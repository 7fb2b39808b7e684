"""The bodies of predicates and tables: the rule that most values follow, and the others before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmlab.methods.transformer_programs.program.domains import Domains
from lmlab.methods.transformer_programs.program.emitting.layout import (
    SKIP,
    WIDTH,
    call,
    collection,
    if_all,
    literal,
    mapping,
)
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
    branches.pop(best, None)
    lines: list[str] = []
    single = {query: next(iter(found[query])) for query in rest if len(found[query]) == 1}
    listed = _listed(single, best, queries)
    if listed is not None and len(listed) < 2 * sum(rule.startswith("key == ") for rule in branches) + 1:
        branches = {rule: values for rule, values in branches.items() if not rule.startswith("key == ")}
    else:
        listed = [f"    return {best}"]
    for rule, values in branches.items():
        lines += _condition("query", values, queries)
        lines.append(f"        return {rule}")
    return [*lines, *listed]


def _listed(keys: Mapping[Value, Value], best: str, queries: frozenset[Value] | None) -> list[str] | None:
    """The key of each query as a dictionary, with the rule for all others; None where that cannot be said so."""
    others = best.removeprefix("key == ") if best.startswith("key == ") else None
    plain = queries is not None and len({isinstance(each, str) for each in (*queries, *keys)}) == 1
    if not keys or not plain or (others is None and best != "False"):
        return None
    kinds = f"dict[{_kind(keys)}, {_kind(keys.values())}]"
    lines = mapping(f"    keys: {kinds} = ", {query: keys[query] for query in ordered(set(keys))}, 4)
    return [*lines, f"    return key == keys.get(query{'' if others is None else f', {others}'})"]


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


def table_lines(node: Lookup, names: Sequence[str], known: Domains, categories: Domains) -> list[str]:
    """The body of a table.

    Arguments:
        known: the values of what it reads, also of counts.
        categories: of categories alone.
    """
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
    short = _as_mapping(node, names, categories)
    if short is not None and len(short) <= len(lines):
        return short
    if node.default is None:
        shown = f"({', '.join(names)}{',' if len(names) == 1 else ''})"
        return [*lines, *call("    raise ValueError", [f'f"no row for {{{shown}!r}}"'])]
    return [*lines, f"    return {literal(node.default)}"]


def _kind(values: Iterable[Any]) -> str:
    """The type of some values."""
    kinds = {"str" if isinstance(each, str) else "int" for each in values}
    return "str | int" if len(kinds) > 1 else next(iter(kinds))


def _as_mapping(node: Lookup, names: Sequence[str], known: Domains) -> list[str] | None:
    """A table of one or two categories as a dictionary; None of numbers and of tables without a default."""
    if node.default is None or len(names) > 2:
        return None
    for name in node.inputs:
        domain = known.get(name)
        if domain is None or len({isinstance(each, str) for each in domain}) != 1:
            return None
    kept = {key: node.table[key] for key in node.table if node.table[key] != node.default}
    if not kept or len({isinstance(each, str) for each in (*kept.values(), node.default)}) > 1:
        return None
    if len(names) == 1:
        rows = {key: kept[(key,)] for key in ordered({each for (each,) in kept})}
        kinds = f"dict[{_kind(rows)}, {_kind(rows.values())}]"
        return [
            *mapping(f"    results: {kinds} = ", rows, 4),
            f"    return results.get({names[0]}, {literal(node.default)})",
        ]
    firsts, seconds = ([key[place] for key in kept] for place in range(2))
    kinds = f"dict[{_kind(firsts)}, dict[{_kind(seconds)}, {_kind(kept.values())}]]"
    lines = [f"    results: {kinds} = {{"]
    for first in ordered({each for each, _ in kept}):
        row = {second: kept[first, second] for second in ordered({b for a, b in kept if a == first})}
        lines += mapping(f"        {literal(first)}: ", row, 8, ",")
    first_name, second_name = names
    rows_of_one_line = all(line.endswith("},") for line in lines[1:])
    closing = "    }" if rows_of_one_line else f"    }}{SKIP}"
    return [*lines, closing, f"    return results.get({first_name}, {{}}).get({second_name}, {literal(node.default)})"]


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
