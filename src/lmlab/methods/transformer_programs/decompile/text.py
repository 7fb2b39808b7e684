"""A program of averages as Python that needs nothing but the standard library.

Values from outside are written by `repr`, and names are made here, so that no token becomes code.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lmlab.methods.transformer_programs.decompile.form import (
    ONE,
    POSITION,
    TOKEN,
    Form,
    Head,
    Map,
    Neurons,
    innermost,
    inside,
    variables_of,
    within,
)
from lmlab.methods.transformer_programs.decompile.rules import Rule, Value
from lmlab.methods.transformer_programs.program.emitting.helpers import MAIN
from lmlab.methods.transformer_programs.program.emitting.layout import WIDTH, filled, literal

_HEAD = '''\
"""What a language model was read as: python program.py "TOKEN TOKEN ..." prints its answers.

A variable holds shares at each place: of one value for the token itself, of several for an average over places.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence

Shares = Sequence[Mapping[str | int, float]]
'''
_ATTEND = '''\
def attend(places: range, score: Callable[[int, int], float]) -> list[list[float]]:
    """How much each place takes from itself and those before it: a softmax of scores."""
    weights = []
    for q in places:
        scores = [score(q, k) for k in range(q + 1)]
        powers = [math.exp(each - max(scores)) for each in scores]
        weights.append([each / sum(powers) for each in powers])
    return weights


def average(weights: list[list[float]], variable: Shares) -> Shares:
    """The shares of what each place takes."""
    found = []
    for row in weights:
        total: dict[str | int, float] = {}
        for weight, shares in zip(row, variable):
            for value, share in shares.items():
                total[value] = total.get(value, 0.0) + weight * share
        found.append(total)
    return found
'''
_PAIR = '''\
def pair(
    asks: Mapping[str | int, float],
    answers: Mapping[str | int, float],
    rule: Callable[[str | int, str | int], float],
) -> float:
    """A rule between two values, over the shares of both."""
    return sum(x * y * rule(a, b) for a, x in asks.items() for b, y in answers.items())
'''
_NUMBER = '''\
def number(value: str | int) -> int:
    """The number that a value is; -1 for what is none."""
    return int(value) if str(value).isdecimal() else -1
'''
_ACTIVATIONS = {
    "gelu": "0.5 * x * (1 + math.erf(x / math.sqrt(2)))",
    "gelu_tanh": "0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))",
    "gelu_quick": "x / (1 + math.exp(-1.702 * x))",
    "relu": "max(x, 0.0)",
    "silu": "x / (1 + math.exp(-x))",
}


def to_text(form: Form) -> str:
    """The text of `program.py`; `run` takes all tokens that the model is given, its begin mark too."""
    return _Writer(form).text()


def own_part(text: str) -> str:
    """What of a text is this program's own: its tables and `run`."""
    start = text.index("# what follows is this program's own")
    body = text[start:].splitlines()[1:]
    end = next(number for number, line in enumerate(body) if line.startswith("if __name__"))
    return "\n".join(body[:end]).strip("\n")


def own_lines(text: str) -> int:
    """How many lines that is."""
    return sum(bool(line.strip()) and '"""' not in line for line in own_part(text).splitlines())


@dataclass(frozen=True)
class _Seen:
    """A variable at a place, as an expression.

    Attributes:
        single: one value; else shares.
        numeric: a position.
        whole: the shares add up to 1, so that what holds for any value holds as it is.
    """

    text: str
    single: bool
    numeric: bool = False
    whole: bool = True


class _Writer:
    def __init__(self, form: Form) -> None:
        self.form = form
        maps = (form.answer, *(part.maps for part in form.parts))
        read = {variable for each in maps for key in each for variable in variables_of(key)}
        self.used = {each for variable in read for each in within(variable)}
        self.tables: list[str] = []
        self.needs_pair = self.needs_number = False

    def text(self) -> str:
        form = self.form
        heads = [part for part in form.parts if isinstance(part, Head)]
        neurons = [part for part in form.parts if isinstance(part, Neurons)]
        body = self._run()
        parts = [_HEAD]
        if heads:
            parts.append(_ATTEND)
        if self.needs_pair:
            parts.append(_PAIR)
        if self.needs_number:
            parts.append(_NUMBER)
        if neurons:
            formula = _ACTIVATIONS[form.activation]
            parts.append(f'def bend(x: float) -> float:\n    """{form.activation}"""\n    return {formula}\n')
        own = "# what follows is this program's own\n" + "\n".join([*self._vocabulary(), *self.tables])
        parts += [own + "\n", "\n".join(body) + "\n", MAIN]
        return "\n\n".join(parts)

    def _vocabulary(self) -> list[str]:
        return [*_wrapped("TOKENS = ", self.form.tokens), *_wrapped("LABELS = ", self.form.labels)]

    def _run(self) -> list[str]:
        form = self.form
        lines = [
            "def run(tokens: Sequence[str]) -> list[str]:",
            '    """The answer at each place."""',
            "    for token in tokens:",
            "        if token not in TOKENS:",
            '            raise ValueError(f"unknown token {token!r}")',
        ]
        if any(POSITION in variable for variable in self.used):
            lines += [
                f"    if len(tokens) > {form.places}:",
                f'        raise ValueError(f"{{len(tokens)}} places; the program knows {form.places}")',
            ]
        lines.append("    places = range(len(tokens))")
        if self._averaged(TOKEN):
            lines.append("    token: Shares = [{each: 1.0} for each in tokens]")
        if self._averaged(POSITION):
            lines.append("    position: Shares = [{place: 1.0} for place in places]")
        for part in form.parts:
            lines += self._head(part) if isinstance(part, Head) else self._neurons(part)
        lines += ["    answers = []", "    for q in places:"]
        terms = [term for name, map_ in form.answer.items() for term in self._term(name, map_)]
        lines += _summed("        scores = {label: ", terms or ["0.0"], " for label in LABELS}", 8)
        lines += ["        answers.append(max(scores, key=lambda label: scores[label]))", "    return answers"]
        return lines

    def _averaged(self, variable: str) -> bool:
        """Whether some head averages a variable."""
        return any(variable != each and innermost(each) == variable for each in self.used)

    def _head(self, part: Head) -> list[str]:
        terms = [term for (query, key), map_ in part.products.items() for term in self._product(query, key, map_)]
        lines = _summed(f"    {part.name} = attend(places, lambda q, k: ", terms or ["0.0"], ")", 4)
        for variable in sorted(self.used, key=lambda each: (len(each), each)):  # what it is averaged from is shorter
            pair = inside(variable)
            if pair is not None and pair[0] == part.name:
                lines.append(f"    {_local(variable)} = average({part.name}, {_local(pair[1])})")
        return lines

    def _neurons(self, part: Neurons) -> list[str]:
        lines = [f"    {part.name}: list[dict[str | int, float]] = []", "    for q in places:"]
        lines.append("        inner = {")
        for name in self.form.values(part.name):
            terms = [self._column(read, name, map_) for read, map_ in part.reads.items()]
            terms = [each for each in terms if each]
            lines += _summed(f"            {literal(name)}: ", terms or ["0.0"], ",", 12)
        lines += ["        }", f"        {part.name}.append({{name: bend(x) for name, x in inner.items()}})"]
        return lines

    def _column(self, read: str, name: Value, map_: Map) -> str:
        """What one neuron reads of a variable."""
        column = map_.matrix()[:, map_.answers.index(name)].tolist()
        if read == ONE:
            return f"{column[0]:.4g}" if column[0] else ""
        table = {value: each for value, each in zip(map_.asks, column, strict=True) if each}
        if not table:
            return ""
        shown = "{" + ", ".join(f"{literal(value)}: {each:.4g}" for value, each in table.items()) + "}"
        if read in (TOKEN, POSITION):
            return f"{shown}.get({'tokens[q]' if read == TOKEN else 'q'}, 0.0)"
        if len(table) == 1:
            ((value, each),) = table.items()
            return f"{each:.4g} * {_local(read)}[q].get({literal(value)}, 0.0)"
        self.needs_pair = True
        return f"pair({_local(read)}[q], {shown}, lambda a, b: a == b)"

    def _seen(self, variable: str, place: str) -> _Seen:
        """A variable at a place: one value as it stands, or shares."""
        plain = {ONE: "1", TOKEN: f"tokens[{place}]", POSITION: place}
        if variable in plain:
            return _Seen(plain[variable], single=True, numeric=variable == POSITION)
        return _Seen(f"{_local(variable)}[{place}]", single=False, whole=innermost(variable) in (TOKEN, POSITION))

    def _product(self, query: str, key: str, map_: Map) -> list[str]:
        return self._between(map_, self._seen(query, "q"), self._seen(key, "k"))

    def _term(self, read: str, map_: Map) -> list[str]:
        """What a variable says of an answer."""
        return self._between(map_, self._seen(read, "q"), _Seen("label", single=True))

    def _between(self, map_: Map, a: _Seen, b: _Seen) -> list[str]:
        """A map between two variables, as expressions to be added."""
        if map_.table is not None:
            return [self._paired(self._table(map_), a, b)]
        rules = zip(map_.rules, map_.factors.tolist(), strict=True)
        return [f"{factor:.5g} * {self._rule(rule, a, b)}" for rule, factor in rules if factor]

    def _rule(self, rule: Rule, a: _Seen, b: _Seen) -> str:
        if rule.kind == "same" and a.single != b.single:
            one, shares = (a, b) if a.single else (b, a)
            return f"{shares.text}.get({one.text}, 0.0)"
        if rule.kind in ("is", "both"):
            tests = [(b, rule.what), *([(a, rule.of)] if rule.kind == "both" else [])]
            parts = [
                f"({side.text} == {literal(value)})" if side.single else f"{side.text}.get({literal(value)}, 0.0)"
                for side, value in tests
            ]
            # the shares of an average add up to 1, the numbers of neurons to anything
            return " * ".join([*parts, *([] if a.whole or rule.kind == "both" else [f"sum({a.text}.values())"])])
        integers = a.numeric and b.numeric
        x, y = (a.text, b.text) if a.single and b.single else ("a", "b")
        return self._paired(self._formula(rule, x, y, integers), a, b)

    def _formula(self, rule: Rule, a: str, b: str, integers: bool) -> str:
        """A rule between two values."""
        if rule.kind == "same":
            return f"({b} == {a})"
        if rule.kind == "is":
            return f"({b} == {literal(rule.what)})"
        if rule.kind == "shift":
            return f"({b} == {a} {'+' if rule.by > 0 else '-'} {abs(rule.by)})"
        if rule.kind == "every":
            return f"(({a} - {b}) % {rule.by} == {rule.what})"
        if not integers:
            self.needs_number = True
            a, b = f"number({a})", f"number({b})"
        if rule.kind == "rising":
            return b
        if rule.kind in ("below", "above"):
            return f"max({a} - {b}, 0)" if rule.kind == "below" else f"max({b} - {a}, 0)"
        return f"({b} {'<' if rule.kind == 'less' else '>'} {a})"

    def _paired(self, formula: str, a: _Seen, b: _Seen) -> str:
        """A formula of a and b over the shares of both; as it is where both are single values."""
        if a.single and b.single:
            return formula.replace("(a, b)", f"({a.text}, {b.text})")
        self.needs_pair = True
        sides = [f"{{{each.text}: 1.0}}" if each.single else each.text for each in (a, b)]
        return f"pair({', '.join(sides)}, lambda a, b: {formula})"

    def _table(self, map_: Map) -> str:
        name = f"TABLE_{sum(line.startswith('TABLE_') for line in self.tables)}"
        rows: dict[Value, dict[Value, float]] = {}
        for asks, row in zip(map_.asks, map_.matrix().tolist(), strict=True):
            rows[asks] = {answers: each for answers, each in zip(map_.answers, row, strict=True) if each}
        groups: dict[tuple[tuple[Value, float], ...], list[Value]] = {}
        for asks, row in rows.items():
            if row:
                groups.setdefault(tuple(row.items()), []).append(asks)
        self.tables.append(f"{name}: dict[tuple[str | int, str | int], float] = {{")
        for row, members in groups.items():
            if len(members) > 1:
                inner = ", ".join(f"({literal(b_)}, {each:.4g})" for b_, each in row)
                asked = ", ".join(map(literal, members))
                comma = "," if len(row) == 1 else ""
                line = f"    **{{(a, b): x for a in ({asked}) for b, x in ({inner}{comma})}},"
                self.tables += [line]
            else:
                entries = [f"({literal(members[0])}, {literal(b_)}): {each:.4g}" for b_, each in row]
                self.tables += filled(entries, 4)
        self.tables.append("}")
        return f"{name}.get((a, b), 0.0)"


def _local(variable: str) -> str:
    """The name of a variable in the text: a1(a0(token)) is a1_a0_token."""
    return variable.replace("(", "_").replace(")", "")


def _wrapped(before: str, values: Mapping[str, Any] | tuple[str, ...]) -> list[str]:
    line = f"{before}[{', '.join(map(literal, values))}]"
    if len(line) <= WIDTH:
        return [line]
    return [f"{before}[", *filled([literal(each) for each in values], 4), "]"]


def _summed(before: str, terms: list[str], after: str, indent: int) -> list[str]:
    first, *others = terms
    signed = [first, *(f"- {each[1:]}" if each.startswith("-") else f"+ {each}" for each in others)]
    line = f"{before}{' '.join(signed)}{after}"
    if len(line) <= WIDTH or len(terms) == 1:
        return [line]
    space = " " * (indent + 4)
    return [f"{before}(", *(f"{space}{each}" for each in signed), f"{' ' * indent}){after}"]
