"""Writes a program as Python that needs nothing but the standard library and its tables beside it.

Values from outside are written by `repr` and names are validated identifiers, so that no token becomes code. Sets are
sorted: equal programs give equal text.
"""

from __future__ import annotations

import builtins
import keyword
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lmlab.methods.transformer_programs.program.domains import PADDING, Domains, domains, partners, with_counts
from lmlab.methods.transformer_programs.program.files import EMBEDDINGS, WEIGHTS
from lmlab.methods.transformer_programs.program.ir import SELECT_SUM, Lookup, Node, Program, Select, Value, ordered

_WIDTH = 88
_HEAD = '''\
"""A Transformer Program{title}: python program.py "TOKEN TOKEN ..." prints its answers.

Its weights are read from {files} in this folder.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import {types}
from pathlib import Path

FOLDER = Path(__file__).parent


def read_table(name: str) -> tuple[list[str], list[list[str]]]:
    """The header and the rows of a CSV file beside this one."""
    with open(FOLDER / name, encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return rows[0], rows[1:]
'''
_CLOSEST = '''\
def select_closest(
    keys: Sequence[str | int],
    queries: Sequence[str | int],
    matches: Callable[..., bool],
    causal: bool,
) -> list[int]:
    """The nearest place whose key matches, the left one of two, the own place last.

    The first place where nothing matches.
    """
    chosen = []
    for i, query in enumerate(queries):
        seen = range(i + 1 if causal else len(keys))
        found = [j for j in seen if matches(query, keys[j])]
        chosen.append(min(found, key=lambda j: (j == i, abs(j - i), j), default=0))
    return chosen
'''
_SUM = '''\
def select_sum(
    keys: Sequence[str | int],
    queries: Sequence[str | int],
    values: Sequence[float],
    matches: Callable[..., bool],
    causal: bool,
) -> list[float]:
    """The sum of the values of all places whose key matches."""
    sums = []
    for i, query in enumerate(queries):
        seen = range(i + 1 if causal else len(keys))
        sums.append(sum(values[j] for j in seen if matches(query, keys[j])))
    return sums
'''
_WEIGHTS = '''\
def read_weights() -> tuple[list[str], dict[tuple[str, str], list[float]]]:
    """The labels, and the row of each value of each feature."""
    header, rows = read_table("{weights}")
    return header[2:], {{(row[0], row[1]): [float(x) for x in row[2:]] for row in rows}}


LABELS, ROWS = read_weights()
'''
_WORDS = '''\
def read_words() -> dict[str, list[str]]:
    """The categories of each word."""
    _, rows = read_table("{embeddings}")
    return {{row[0]: row[1:] for row in rows}}


WORDS = read_words()
'''
_SCORES = '''\
def add_categories(
    logits: list[list[float]], feature: str, values: Sequence[str | int]
) -> None:
    """Add the row of each place's value."""
    for place, value in enumerate(values):
        row = ROWS[feature, str(value)]
        logits[place] = [a + b for a, b in zip(logits[place], row, strict=True)]
'''
_NUMBERS = '''\
def add_numbers(
    logits: list[list[float]], feature: str, values: Sequence[float]
) -> None:
    """Add the feature's row times each place's number."""
    row = ROWS[feature, "_"]
    for place, value in enumerate(values):
        logits[place] = [a + value * b for a, b in zip(logits[place], row, strict=True)]
'''
_SPELL = '''\
def spell(token: str) -> str:
    """The token as the program reads it."""
    return {how}
'''
_MAIN = """\
if __name__ == "__main__":
    print(run(sys.argv[1].split()))
"""
_HELPERS = {
    "read_table", "select_closest", "select_sum", "read_weights", "read_words", "add_categories", "add_numbers", "run",
    "csv", "sys", "Callable", "Sequence", "Path", "FOLDER", "LABELS", "ROWS", "WORDS", "known", "logits", "answers",
    "scores", "annotations", "VOCABULARY", "re", "spell",
}  # fmt: skip


def to_python(program: Program) -> str:
    """The text of `program.py`; its tables are those that `save_program` writes."""
    emitter = _Emitter(program)
    return emitter.text()


class _Emitter:
    def __init__(self, program: Program) -> None:
        self.program, self.domains = program, domains(program)
        self.needed = program.live | (set(program.classifier.features) & program.numerical)
        for node in reversed(program.nodes):
            if node.name in self.needed:
                self.needed |= set(node.reads)
        self.nodes = [node for node in program.nodes if node.name in self.needed]
        functions = {f"{'match' if isinstance(node, Select) else 'table'}_{node.name}" for node in self.nodes}
        self.names = _local_names(program.variables, functions)

    def text(self) -> str:
        program, title = self.program, str(self.program.about.get("task", ""))
        title = f" ({title})" if title.isidentifier() else ""
        files = WEIGHTS if program.embeddings is None else f"{WEIGHTS} and {EMBEDDINGS}"
        heads = any(isinstance(node, Select) for node in self.nodes)
        parts = [_HEAD.format(title=title, files=files, types="Callable, Sequence" if heads else "Sequence")]
        if program.replace_numbers:
            parts[0] = parts[0].replace("import csv\n", "import csv\nimport re\n", 1)
        if any(isinstance(node, Select) and node.op != SELECT_SUM for node in self.nodes):
            parts.append(_CLOSEST)
        if any(isinstance(node, Select) and node.op == SELECT_SUM for node in self.nodes):
            parts.append(_SUM)
        parts.append(_WEIGHTS.format(weights=WEIGHTS))
        if program.embeddings is not None:
            parts.append(_WORDS.format(embeddings=EMBEDDINGS))
        elif program.vocabulary is not None:
            known = [word for word in program.vocabulary if word != PADDING]
            parts.append("\n".join(_collection("VOCABULARY = ", known, 0, "")) + "\n")
        if program.lower or program.replace_numbers:
            how = "token.lower()" if program.lower else "token"
            parts.append(_SPELL.format(how=f're.sub("[0-9]+", "@", {how})' if program.replace_numbers else how))
        features = program.classifier.features
        if any(feature not in program.numerical for feature in features):
            parts.append(_SCORES)
        if any(feature in program.numerical for feature in features):
            parts.append(_NUMBERS)
        parts += ["\n".join(self._function(node)) + "\n" for node in self.nodes]
        parts += ["\n".join(self._run()) + "\n", _MAIN]
        return "\n\n".join(parts)

    def _function(self, node: Node) -> list[str]:
        if isinstance(node, Select):
            queries, keys = self.domains.get(node.query), self.domains.get(node.key)
            head = f"def match_{node.name}(query: {_type(queries)}, key: {_type(keys)}) -> bool:"
            body = predicate_lines(partners(node.predicate, queries, keys), queries, keys)
            return [*_wrapped_head(head), f'    """Which {node.key} each of {node.query} looks for."""', *body]
        names = list(_argument_names(node))
        numbers = self.program.numerical
        kinds = ["float" if name in numbers else _type(self.domains.get(name)) for name in node.inputs]
        arguments = ", ".join(f"{name}: {kind}" for name, kind in zip(names, kinds, strict=True))
        result = _type(self.domains.get(node.name))
        head = f"def table_{node.name}({arguments}) -> {result}:"
        return _wrapped_head(head) + table_lines(node, names, with_counts(self.program, self.domains))

    def _run(self) -> list[str]:
        program = self.program
        lines = [f"def run(tokens: Sequence[str]) -> {'str' if program.pool_outputs else 'list[str]'}:"]
        lines.append('    """The answer to a sequence of tokens, marks included."""')
        lines += ["    if not tokens:", '        raise ValueError("the sequence is empty")']
        lines += self._inputs()
        for node in self.nodes:
            lines += self._call(node)
        lines.append("    logits = [[0.0] * len(LABELS) for _ in tokens]")
        for feature in program.classifier.features:
            how = "add_numbers" if feature in program.numerical else "add_categories"
            values = self.names[feature]
            if feature not in program.numerical and not program.classifier.matters(feature):
                values = f"[{literal(next(iter(program.classifier.rows_of(feature))))}] * len(tokens)"  # equal rows
            lines += _call(f"    {how}", ["logits", literal(feature), values])
        if program.pool_outputs:
            lines.append("    logits = [[sum(column) / len(tokens) for column in zip(*logits, strict=True)]]")
            lines.append("    return LABELS[max(range(len(LABELS)), key=lambda label: logits[0][label])]")
            return lines
        lines += [
            "    answers = []",
            "    for scores in logits:",
            "        answers.append(LABELS[scores.index(max(scores))])",
            f"    if tokens[0] == {literal(program.bos)}:",
            f"        answers[0] = {literal(program.bos)}",
            f"    if tokens[-1] == {literal(program.eos)}:",
            f"        answers[-1] = {literal(program.eos)}",
            "    return answers",
        ]
        return lines

    def _inputs(self) -> list[str]:
        program, lines = self.program, []
        if program.longest is not None:
            lines += [
                f"    if len(tokens) > {program.longest}:",
                f'        raise ValueError(f"{{len(tokens)}} places; the program knows {program.longest}")',
            ]
        given = "tokens"
        if program.lower or program.replace_numbers:
            given = "spelled"
            lines.append("    spelled = [spell(token) for token in tokens]")
        known = "WORDS" if program.embeddings is not None else "VOCABULARY" if program.vocabulary is not None else None
        if known is not None and "<unk>" in (program.vocabulary or ()):
            lines += [f'    known = [token if token in {known} else "<unk>" for token in {given}]']
        elif known is not None:
            lines += [
                f"    for place, token in enumerate({given}):",
                f"        if token not in {known}:",
                '            raise ValueError(f"unknown token {token!r} at place {place}")',
                f"    known = list({given})",
            ]
        else:
            lines.append(f"    known = list({given})")
        used_known = False
        for name in program.inputs:
            if name not in self.needed:
                continue
            local = self.names[name]
            if name == "tokens":
                lines.append(f"    {local} = known")
                used_known = True
            elif name == "positions":
                lines.append(f"    {local} = list(range(len(tokens)))")
            elif name == "ones":
                lines.append(f"    {local} = [1.0] * len(tokens)")
            else:
                assert program.embeddings is not None
                lines.append(f"    {local} = [{self._category(name)} for token in known]")
                used_known = True
        if not used_known:
            lines = [line for line in lines if not line.startswith("    known = ")]
        return lines

    def _category(self, name: str) -> str:
        embeddings = self.program.embeddings
        assert embeddings is not None
        column = f"WORDS[token][{list(embeddings.columns).index(name)}]"
        if name in self.program.numerical:
            return f"float({column})"
        if embeddings.categories is None:
            return f"int({column})"
        first = embeddings.categories.replace("{i}", name[3:].split("_")[0])
        before, _, after = first.partition("{j")
        width, _, rest = after.partition("}")
        return f"{literal(before)} + {column}.zfill({int(width.strip(':d') or 0)}) + {literal(rest)}"

    def _call(self, node: Node) -> list[str]:
        target = self.names[node.name]
        if isinstance(node, Lookup):
            arguments = [self.names[name] for name in node.inputs]
            if len(arguments) == 1:
                return _call(f"    {target} = ", [f"table_{node.name}(a) for a in {arguments[0]}"], "[]")
            letters = ", ".join(f"x{place}" for place in range(len(arguments)))
            result, source = f"        table_{node.name}({letters})", [*arguments, "strict=True"]
            line = f"{result} for {letters} in zip({', '.join(source)})"
            lines = [line] if len(line) <= _WIDTH else [result, *_call(f"        for {letters} in zip", source)]
            return [f"    {target} = [", *lines, "    ]"]
        causal = repr(node.causal or self.program.autoregressive)
        key, query, value = (self.names[name] for name in node.reads)
        function = f"match_{node.name}"
        if node.op == SELECT_SUM:
            return _call(f"    {target} = select_sum", [key, query, value, function, causal])
        return [
            *_call("    chosen = select_closest", [key, query, function, causal]),
            f"    {target} = [{value}[place] for place in chosen]",
        ]


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
                if len(f"    if {test}:") > _WIDTH // 2 and len(values) > 1:  # a set of its own line, or lines
                    before += _collection(f"    values_{place} = ", ordered(set(values)), 4, "")
                    test = f"{name} in values_{place}"
                tests.append(test)
            lines += [*before, *_if_all(tests), f"        return {literal(result)}"]
    if node.default is None:
        shown = f"({', '.join(names)}{',' if len(names) == 1 else ''})"
        return [*lines, *_call("    raise ValueError", [f'f"no row for {{{shown}!r}}"'])]
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


def _if_all(tests: Sequence[str]) -> list[str]:
    """`if a and b:`, on lines of their own where that is too long."""
    line = f"    if {' and '.join(tests)}:"
    if len(line) <= _WIDTH:
        return [line]
    first, *others = tests
    return ["    if (", f"        {first}", *(f"        and {test}" for test in others), "    ):"]


def _condition(name: str, values: Sequence[Any], domain: frozenset[Value] | None) -> list[str]:
    """`if name in {...}:`"""
    line = f"    if {_test(name, values, domain)}:"
    return [line] if len(line) <= _WIDTH else _collection(f"    if {name} in ", ordered(set(values)), 4, ":")


def _collection(before: str, values: Sequence[Any], indent: int, after: str) -> list[str]:
    """A set on one line, or one element a line where that is too long."""
    items = [literal(each) for each in dict.fromkeys(values)]
    line = f"{before}{{{', '.join(items)}}}{after}"
    if len(line) <= _WIDTH:
        return [line]
    space = " " * (indent + 4)
    return [f"{before}{{", *(f"{space}{item}," for item in items), f"{' ' * indent}}}{after}"]


def _call(before: str, arguments: Sequence[str], brackets: str = "()") -> list[str]:
    """A call on one line, or its arguments on lines of their own."""
    line = f"{before}{brackets[0]}{', '.join(arguments)}{brackets[1]}"
    if len(line) <= _WIDTH:
        return [line]
    indent = len(before) - len(before.lstrip())
    inner = " " * (indent + 4)
    joined = f"{inner}{', '.join(arguments)}"
    if len(joined) <= _WIDTH:
        return [f"{before}{brackets[0]}", joined, f"{' ' * indent}{brackets[1]}"]
    lines = [f"{inner}{each}," for each in arguments]
    return [f"{before}{brackets[0]}", *lines, f"{' ' * indent}{brackets[1]}"]


def _wrapped_head(head: str) -> list[str]:
    if len(head) <= _WIDTH:
        return [head]
    name, _, rest = head.partition("(")
    arguments, _, result = rest.rpartition(") -> ")
    if len(arguments) + 4 <= _WIDTH:
        return [f"{name}(", f"    {arguments}", f") -> {result}"]
    return [f"{name}(", *(f"    {each}," for each in arguments.split(", ")), f") -> {result}"]


def _type(domain: frozenset[Value] | None) -> str:
    if domain is None:
        return "str | int"
    kinds = {type(each) for each in domain}
    return {frozenset({int}): "int", frozenset({str}): "str"}.get(frozenset(kinds), "str | int")


def _argument_names(node: Lookup) -> Iterable[str]:
    """What a table's arguments are called: after what they read, or by letters where that says nothing."""
    used = {f"values_{place}" for place in range(len(node.inputs))}
    for name in node.inputs:
        short = name.removesuffix("_outputs").removesuffix("s") or name
        while short in used or hasattr(builtins, short) or short in _HELPERS or keyword.iskeyword(short):
            short += "_"
        used.add(short)
        yield short


def _local_names(names: Sequence[str], functions: set[str]) -> dict[str, str]:
    """A local variable for each variable of the program, none of which hides what the text uses."""
    found: dict[str, str] = {}
    taken = _HELPERS | set(dir(builtins)) | functions | {"chosen", "place", "token", "tokens", "spelled", "a"}
    for name in names:
        local = name
        while local in taken:
            local += "_"
        taken.add(local)
        found[name] = local
    return found


def literal(value: Any) -> str:
    """A value as a Python literal: whatever a text holds, it stays a text."""
    text = repr(value)
    if not isinstance(value, str) or text.startswith('"') or value.count('"') > value.count("'"):
        return text
    inner = text[1:-1].replace("\\'", "'").replace('"', '\\"')  # the quotes of formatted code
    return f'"{inner}"'
