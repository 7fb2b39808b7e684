"""Which values a variable can have, as far as a program's tables tell."""

from __future__ import annotations

from collections.abc import Mapping

from lmlab.methods.transformer_programs.program.ir import SELECT_SUM, Lookup, Program, Value, ordered

PADDING = "<pad>"
Domains = Mapping[str, frozenset[Value] | None]
"""The values of each categorical variable; None where any may occur."""


def domains(program: Program) -> dict[str, frozenset[Value] | None]:
    """The domain of each categorical variable. Padding is no value: programs run on tokens alone."""
    found: dict[str, frozenset[Value] | None] = {}
    for name in program.inputs:
        if name in program.numerical:
            continue
        if name == "positions":
            found[name] = None if program.max_length is None else frozenset(range(program.max_length))
        elif name == "tokens":
            known = program.vocabulary
            found[name] = None if known is None else frozenset(known) - {PADDING}
        elif program.embeddings is not None:
            found[name] = frozenset(each for each in program.embeddings.values(name) if not isinstance(each, float))
    for node in program.nodes:
        if isinstance(node, Lookup):
            results = frozenset(node.table.values())
            found[node.name] = results if node.default is None else results | {node.default}
        elif node.op != SELECT_SUM:
            found[node.name] = found[node.value]
    return found


def with_counts(program: Program, known: Domains) -> Domains:
    """The same with 0 for each number that is always whole: a sum of ones, or a sum of such sums."""
    whole = {"ones"} & set(program.inputs)
    for node in program.nodes:
        if node.op == SELECT_SUM and node.reads[-1] in whole:
            whole.add(node.name)
    return {**known, **dict.fromkeys(whole, frozenset({0}))}


def partners(
    pairs: tuple[tuple[Value, Value], ...], queries: frozenset[Value] | None, keys: frozenset[Value] | None
) -> dict[Value, frozenset[Value]]:
    """For each value that a query can have, the keys that it matches and that can occur."""
    found: dict[Value, set[Value]] = {query: set() for query in (queries or ())}
    for query, key in pairs:
        if (queries is None or query in queries) and (keys is None or key in keys):
            found.setdefault(query, set()).add(key)
    return {query: frozenset(found[query]) for query in ordered(found)}
