"""The form that every program has: a list of nodes over named variables, and a linear classifier
(`transformer-program-ir/1`).

A variable has one value a place: a text, a whole number, or, where it is numerical, a number. Nodes run in order and
each adds the variable of its name. The Python text, the page, the interpreter and the importers are all made from this.
"""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lmlab.errors import UserError, did_you_mean
from lmlab.methods.transformer_programs.program.tables import PLACEHOLDER, Classifier, Embeddings
from lmlab.words import counted

FORMAT = "transformer-program-ir/1"
MOST_PLACES = 100_000  # of a sequence: each head takes their square in time
Value = str | int
Number = int | float

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")
_DIGITS = re.compile(r"[0-9]+")
_EMBEDDING = re.compile(r"var\d+_embeddings")
_NUMBER_INPUT = re.compile(r"num_var\d+_embeddings")
SELECT_CLOSEST, SELECT_SUM, LOOKUP = "select_closest", "select_sum", "lookup"
_OPERATIONS = (SELECT_CLOSEST, SELECT_SUM, LOOKUP)


@dataclass(frozen=True)
class Select:
    """A head: each place takes the value of the nearest place whose key is a partner of its query, or the sum of the
    values of all of them.

    Attributes:
        op: `select_closest` or `select_sum`.
        predicate: pairs of a query's value and its partner; a query's value without a pair never matches.
        causal: a place sees itself and the places to its left only, whatever the program says (a running count).
    """

    op: str
    name: str
    key: str
    query: str
    value: str
    predicate: tuple[tuple[Value, Value], ...]
    causal: bool = False

    @property
    def reads(self) -> tuple[str, ...]:
        """The variables that it reads."""
        return (self.key, self.query, self.value)


@dataclass(frozen=True)
class Lookup:
    """A table.

    Attributes:
        table: for each key, one value an input, the value of the result.
        default: the result of all other keys; None makes them an error.
    """

    name: str
    inputs: tuple[str, ...]
    table: Mapping[tuple[Value | float, ...], Value]
    default: Value | None = None

    op = LOOKUP

    @property
    def reads(self) -> tuple[str, ...]:
        """The variables that it reads."""
        return self.inputs


Node = Select | Lookup


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        inputs: the variables at the start: tokens, positions, ones, and those of `embeddings`.
        numerical: the variables that are numbers.
        nodes: in the order in which they run.
        classifier: the answer is the arg max of the sum of its rows over all variables.
        embeddings: what each word is at the start, for programs that do not read tokens themselves.
        autoregressive: a place sees itself and the places to its left only.
        pool_outputs: one answer a sequence, from the mean of the logits over places.
        bos, eos: marks; where a sequence begins or ends with them, so does the answer.
        vocabulary: the tokens that are known; None if no file says so.
        max_length: places that the program knows, marks included; None if any number.
        bounded: it runs on no more places although nothing reads positions, because its tables hold no further.
        lower, replace_numbers: tokens are read in lower case; each run of their digits is read as @.
        about: what else its file says, kept as it is.
    """

    inputs: tuple[str, ...]
    numerical: frozenset[str]
    nodes: tuple[Node, ...]
    classifier: Classifier
    embeddings: Embeddings | None = None
    autoregressive: bool = False
    pool_outputs: bool = False
    bos: str = "<s>"
    eos: str = "</s>"
    vocabulary: tuple[str, ...] | None = None
    max_length: int | None = None
    bounded: bool = False
    lower: bool = False
    replace_numbers: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def labels(self) -> tuple[str, ...]:
        """The possible answers, in the order in which ties are decided."""
        return self.classifier.labels

    @property
    def variables(self) -> tuple[str, ...]:
        """All variables in the order in which they come to be."""
        return (*self.inputs, *(node.name for node in self.nodes))

    def node(self, name: str) -> Node:
        """The node of a name."""
        return next(each for each in self.nodes if each.name == name)

    @property
    def live(self) -> frozenset[str]:
        """The variables on which an answer can depend."""
        live = {name for name in self.variables if self.classifier.matters(name)}
        for node in reversed(self.nodes):
            if node.name in live:
                live.update(node.reads)
        return frozenset(live)

    @property
    def reads_positions(self) -> str | None:
        """Why the program is bound to the lengths that it was made for: what reads positions; None if nothing does."""
        for node in self.nodes:
            if node.name in self.live and "positions" in node.reads:
                return f"'{node.name}' reads positions"
        if self.classifier.matters("positions"):
            return "the classifier has rows for positions"
        return None

    @property
    def bound_by(self) -> str | None:
        """Why the program is bound to its `max_length`; None if it is not."""
        return self.reads_positions or ("its tables hold for no more" if self.bounded else None)

    @property
    def longest(self) -> int | None:
        """The greatest number of places that it can run on; None for any."""
        return self.max_length if self.bound_by else None

    def size(self) -> dict[str, int]:
        """How long it is: nodes, pairs of predicates, rows of tables, features and rows of the classifier."""
        selects = [node for node in self.nodes if isinstance(node, Select)]
        lookups = [node for node in self.nodes if isinstance(node, Lookup)]
        return {
            "nodes": len(self.nodes),
            "predicate_pairs": sum(len(node.predicate) for node in selects),
            "table_rows": sum(len(node.table) for node in lookups),
            "features": len(self.classifier.features),
            "classifier_rows": self.classifier.num_rows,
        }


def spelled(token: str, lower: bool, replace_numbers: bool) -> str:
    """A token as a program, or its training, spells it."""
    token = token.lower() if lower else token
    return _DIGITS.sub("@", token) if replace_numbers else token


def check(program: Program, where: str) -> Program:
    """The program itself, once it is sure to run.

    Raises:
        UserError: a name is no identifier or is taken, a node reads what is not there yet, a value is of a wrong kind.
    """
    known: set[str] = set()
    for name in program.inputs:
        _new(name, known, where)
        if not (name in ("tokens", "positions", "ones") or _EMBEDDING.fullmatch(name) or _NUMBER_INPUT.fullmatch(name)):
            raise UserError(f"{where}: unknown input '{name}'. {did_you_mean(name, ('tokens', 'positions', 'ones'))}")
        if name not in ("tokens", "positions", "ones") and (
            program.embeddings is None or name not in program.embeddings.columns
        ):
            raise UserError(f"{where}: the input '{name}' has no column in the embeddings.")
        if name == "ones" and name not in program.numerical:
            raise UserError(f"{where}: 'ones' must be among the numerical variables.")
    all_names = set(program.variables)
    for node in program.nodes:
        place = f"{where}, node '{node.name}'"
        for name in node.reads:
            if name not in known:
                later = "comes only later: nodes run in order" if name in all_names else "does not exist"
                raise UserError(f"{place} reads '{name}', which {later}. {did_you_mean(name, known)}".rstrip())
        _new(node.name, known, where)
        if isinstance(node, Select):
            _check_select(program, node, place)
        else:
            _check_lookup(program, node, place)
    for name in program.numerical - all_names:
        raise UserError(f"{where}: the numerical variable '{name}' does not exist. {did_you_mean(name, all_names)}")
    if program.max_length is not None and program.max_length > MOST_PLACES:
        raise UserError(f"{where}: 'max_length' is {program.max_length:.3g}; at most {MOST_PLACES:,} places are known.")
    if program.bounded and program.max_length is None:
        raise UserError(f"{where}: 'bounded' needs 'max_length', which says to how many places.")
    for mark in (program.bos, program.eos):
        if spelled(mark, program.lower, program.replace_numbers) != mark:
            raise UserError(f"{where}: the mark {mark!r:.60} would be spelled otherwise.", "Choose another mark.")
    if program.embeddings is not None and program.vocabulary is not None:
        strange = next((word for word in program.vocabulary if word not in program.embeddings.index), None)
        if strange is not None:
            raise UserError(f"{where}: the word {strange!r:.60} of the vocabulary has no embeddings.")
    _check_classifier(program, where)
    return program


def _new(name: str, known: set[str], where: str) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise UserError(f"{where}: {name!r:.120} is not a name (letters, digits and _, no digit first).")
    if name in known:
        raise UserError(f"{where}: the name '{name}' is given twice.")
    known.add(name)


def _check_select(program: Program, node: Select, place: str) -> None:
    for role in ("key", "query"):
        if getattr(node, role) in program.numerical:
            raise UserError(f"{place}: its {role} '{getattr(node, role)}' is numerical; heads match categories.")
    sums = node.op == SELECT_SUM
    if sums != (node.value in program.numerical):
        kind = "a category, but select_sum adds numbers" if sums else "numerical, but select_closest takes a category"
        raise UserError(f"{place}: its value '{node.value}' is {kind}.")
    if sums != (node.name in program.numerical):
        raise UserError(
            f"{place}: a {node.op} gives {'numbers' if sums else 'categories'}; 'numerical' says otherwise."
        )
    for role, values in (("query", (q for q, _ in node.predicate)), ("key", (k for _, k in node.predicate))):
        if getattr(node, role) == "positions":
            for value in values:
                if not isinstance(value, int) or value < 0:
                    raise UserError(f"{place}: the position {value!r:.60} is out of range; positions are 0, 1, 2, ...")


def _check_lookup(program: Program, node: Lookup, place: str) -> None:
    if node.name in program.numerical:
        raise UserError(f"{place}: a lookup gives categories; 'numerical' says otherwise.")
    if not node.inputs:
        raise UserError(f"{place}: a lookup needs inputs.")
    for key in node.table:
        if len(key) != len(node.inputs):
            values, inputs = counted(len(key), "values"), counted(len(node.inputs), "inputs")
            raise UserError(f"{place}: the key {list(key)!r:.120} has {values} for {inputs}.")
        for name, value in zip(node.inputs, key, strict=True):
            if isinstance(value, str) if name in program.numerical else isinstance(value, float):
                kind = "a number" if name in program.numerical else "a category"
                raise UserError(f"{place}: the key {list(key)!r:.120} does not fit '{name}', which is {kind}.")


def _check_classifier(program: Program, where: str) -> None:
    names = set(program.variables)
    for name in program.classifier.features:
        if name not in names:
            raise UserError(f"{where}: the classifier's feature '{name}' is no variable. {did_you_mean(name, names)}")
        rows = program.classifier.rows_of(name)
        if name in program.numerical and set(rows) != {"_"}:
            raise UserError(f"{where}: the classifier must have the one row '_' for the numerical variable '{name}'.")


def add_constant(program: Program, row: tuple[float, ...]) -> Program:
    """Add a row to all logits: to that of the constant 1, which is there for it."""
    if not any(row):
        return program
    if "ones" not in program.inputs:
        program = replace(program, inputs=(*program.inputs, "ones"), numerical=program.numerical | {"ones"})
    weights = dict(program.classifier.weights)
    before = weights.get("ones", {}).get(PLACEHOLDER, (0.0,) * len(row))
    weights["ones"] = {PLACEHOLDER: tuple(a + b for a, b in zip(before, row, strict=True))}
    return replace(program, classifier=Classifier(program.labels, weights))


def variables_of_categories(program: Program) -> Iterator[str]:
    """The variables that are categories."""
    return (name for name in program.variables if name not in program.numerical)


def is_value(value: Any) -> bool:
    """Whether a JSON value is a value of a category: a text or a whole number."""
    return isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool))


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ordered(values: Iterable[Any]) -> list[Any]:
    """Values in one order whatever their kinds: numbers first."""
    return sorted(values, key=lambda value: (isinstance(value, str), value))
