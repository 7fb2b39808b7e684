"""Reads a program from the Python text that the reference code emits (Friedman et al. 2023, appendix).

The text is parsed and never run. Each statement must be one of those that such a text has; anything else is refused
with its line.
"""

from __future__ import annotations

import ast
import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from lmlab.errors import UserError
from lmlab.files import MAX_JSON_BYTES, decode_utf8, open_binary
from lmlab.methods.transformer_programs.program.domains import domains
from lmlab.methods.transformer_programs.program.files import complete
from lmlab.methods.transformer_programs.program.ir import (
    SELECT_CLOSEST,
    SELECT_SUM,
    Lookup,
    Node,
    Program,
    Select,
    Value,
    check,
)
from lmlab.methods.transformer_programs.program.tables import Classifier, Embeddings
from lmlab.progress import console

_HELPERS = {"select_closest", "select", "aggregate", "aggregate_sum"}
_KNOWN_HELPERS = {
    "9315c11778137836", "1e97411c94f66e3a", "d33259d6a2bde04f", "3d239748a9427c6c", "512dcf1e435644d9",
    "41cddc9e1c0af8c6",
}  # fmt: skip
"""Of the helpers' texts the first digits of their SHA-256; two of them have one for places that see what is to their
left alone."""
# how answers are made of scores: other statements, such as a mean in place of the sum, would give other answers
_RESULTS = {
    "logits": r"feature_logits\.groupby\(level=0\)\.sum\((numeric_only=True)?\)\.to_numpy\(\)",
    "classes": r"classifier_weights\.columns\.to_numpy\(\)",
    "predictions": r"classes\[logits\.argmax\(-1\)\]",
    "token_predictions": r"classes\[logits\.argmax\(-1\)\]",
    "pooled": r"logits\.mean\(0\)",
    "prediction": r"classes\[pooled\.argmax\(-1\)\]",
}
_SUM = re.compile(r"pd\.concat\(\[df\.reset_index\(\) for df in \[[\w, ]*\]\]\)")
_CATEGORIES = re.compile(r"Emb\d+")
_END = re.compile(
    r"if tokens\[0\] == '(<s>)':\n    predictions\[0\] = '<s>'"
    r"|if tokens\[-1\] == '(</s>)':\n    predictions\[-1\] = '</s>'"
    r"|if return_details:\n    return \(prediction, logits, feature_logits, token_predictions\)"
)


def import_python(path: str | Path, weights: str | Path | None = None) -> Program:
    """The program in a Python file of the reference's layout.

    Arguments:
        weights: the classifier's CSV; by default the one that the text names, looked for beside the file.

    Raises:
        UserError: a statement is none of those that such a file has, or a table is missing. The message has the line.
    """
    path = Path(path)
    try:
        with open_binary(path) as file:
            text = decode_utf8(file.read(MAX_JSON_BYTES), f"'{path}'")
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"'{path}' is not Python: {error}.") from None
    try:
        return _Reader(path, None if weights is None else Path(weights)).read(module)
    except RecursionError:
        raise UserError(f"'{path}' is nested more deeply than any program in the reference's layout.") from None


class _Reader:
    """What has been read of a file so far."""

    def __init__(self, path: Path, weights: Path | None) -> None:
        self.path, self.weights = path, weights
        self.inputs: list[str] = []
        self.numerical: list[str] = []
        self.nodes: list[Node] = []
        self.scored: dict[str, str] = {}  # name of a table of scores -> feature
        self.summed: list[str] | None = None
        self.assigned: set[str] = set()
        self.marks: set[str] = set()  # those that stay as they are in the answer
        self.functions: dict[str, ast.FunctionDef] = {}
        self.patterns: dict[str, tuple[str, str, str, tuple[tuple[Value, Value], ...]]] = {}
        self.classifier: Classifier | None = None
        self.embeddings: Embeddings | None = None
        self.named_categories = False
        self.autoregressive = self.pools = False

    def refuse(self, node: ast.AST, why: str = "is no statement of a program in the reference's layout") -> NoReturn:
        line = getattr(node, "lineno", 0)
        shown = ast.unparse(node).splitlines()[0] if isinstance(node, ast.stmt | ast.expr) else ""
        raise UserError(
            f"'{self.path}', line {line}: {shown!r:.100} {why}.",
            "Only the Python text that the reference writes can be imported; it is parsed, not run.",
        )

    def read(self, module: ast.Module) -> Program:
        run = None
        for function in ast.walk(module):
            if isinstance(function, ast.FunctionDef):
                self._plain(function)
        for statement in module.body:
            match statement:
                case ast.Import() | ast.ImportFrom():
                    self._import(statement)
                case ast.FunctionDef(name="run"):
                    if run is not None:
                        self.refuse(statement, "comes a second time")
                    run = statement
                case ast.FunctionDef(name=name) if name in _HELPERS:
                    self._helper(statement)
                case ast.Assign(targets=[ast.Name(id="examples")]):
                    pass
                case ast.For(iter=ast.Name(id="examples"), body=body) if all(map(_only_shows, body)):
                    pass
                case ast.Expr() if _only_shows(statement):
                    pass
                case _:
                    self.refuse(statement)
        if run is None:
            raise UserError(f"'{self.path}' has no function run(tokens).")
        if [each.arg for each in run.args.args] not in (["tokens"], ["tokens", "return_details"]):
            self.refuse(run, "must take tokens")
        for statement in run.body:
            self._statement(statement)
        last = run.body[-1]
        for statement in run.body[:-1]:
            if isinstance(statement, ast.Return):
                self.refuse(statement, "comes before the end of run()")
        if not isinstance(last, ast.Return):
            self.refuse(last, "is the end of run(), which must return an answer")
        return self._program()

    def _plain(self, function: ast.FunctionDef) -> None:
        """A function as the reference writes it has a name, its arguments and a body, and nothing that would run."""
        given = function.args
        usual = function.name == "run" and [ast.unparse(each) for each in given.defaults] == ["False"]
        odd = given.posonlyargs or given.vararg or given.kwonlyargs or given.kwarg or (given.defaults and not usual)
        if odd or function.decorator_list or function.returns or any(each.annotation for each in given.args):
            self.refuse(function, "is not how the reference writes a function")

    def _program(self) -> Program:
        if self.classifier is None:
            raise UserError(f"'{self.path}': no classifier is read in run().")
        if self.summed is None:
            raise UserError(f"'{self.path}': run() sums no scores.")
        strange = next((name for name in self.summed if name not in self.scored), None)
        if strange is not None:
            raise UserError(f"'{self.path}': the scores '{strange}' are summed but never made.")
        features = [self.scored[name] for name in self.summed]
        lost = next((mark for mark in ("<s>", "</s>") if mark not in self.marks and not self.pools), None)
        if lost is not None:
            raise UserError(f"'{self.path}': run() does not keep {lost} in its answers, as all such programs do.")
        weights = {name: self.classifier.weights[name] for name in features if name in self.classifier.weights}
        absent = next((name for name in features if name not in weights), None)
        if absent is not None:
            raise UserError(f"'{self.path}': the classifier has no rows for '{absent}'.")
        inputs = ["tokens", *(name for name in self.inputs if name != "tokens")]
        program = Program(
            inputs=tuple(inputs),
            numerical=frozenset(self.numerical),
            nodes=tuple(self.nodes),
            classifier=Classifier(self.classifier.labels, weights),
            embeddings=self.embeddings,
            autoregressive=self.autoregressive,
            pool_outputs=self.pools,
            about={"task": self.path.stem},
        )
        program = check(complete(program), f"'{self.path}'")
        self._check_rows(program)
        return program

    def _check_rows(self, program: Program) -> None:
        """With one categorical head a layer, the reference numbers the rows of words that the head's text copies."""
        known = domains(program)
        for name, rows in program.classifier.weights.items():
            values = known.get(name)
            if values and not {str(value) for value in values} & set(rows):
                raise UserError(
                    f"'{self.path}': '{name}' has values such as {min(values, key=str)!r:.60}, but the classifier's"
                    f" rows for it are those of {next(iter(rows))!r:.60} and others.",
                    "The reference writes this for layers of one head, and cannot run it; import the run's directory.",
                )

    def _import(self, statement: ast.Import | ast.ImportFrom) -> None:
        if isinstance(statement, ast.Import):
            if not all(each.name in ("numpy", "pandas") for each in statement.names):
                self.refuse(statement)
        elif not all(_CATEGORIES.fullmatch(each.name) for each in statement.names):
            self.refuse(statement)

    def _helper(self, function: ast.FunctionDef) -> None:
        """A helper's text tells whether places see only what is to their left. Another text than the reference's is
        told, for it is read as if it were that one.
        """
        if any(
            isinstance(each, ast.Import | ast.ImportFrom | ast.Global | ast.Attribute)
            and getattr(each, "attr", "") not in ("append",)
            for each in ast.walk(function)
        ):
            self.refuse(function, "is not the helper that the reference writes")
        for each in ast.walk(function):
            if isinstance(each, ast.Subscript) and isinstance(each.slice, ast.Slice):
                if ast.unparse(each) != "keys[:i + 1]":
                    self.refuse(function, "slices what the reference does not")
                self.autoregressive = True
        if hashlib.sha256(ast.unparse(function).encode()).hexdigest()[:16] not in _KNOWN_HELPERS:
            told = (
                f"'{self.path}', line {function.lineno}: {function.name} is not as the reference writes it, and is read"
            )
            console.print(f"{told} as if it were; what it does otherwise is lost.", style="yellow")

    def _statement(self, statement: ast.stmt) -> None:
        match statement:
            case ast.FunctionDef(name=name):
                if name in self.functions:
                    self.refuse(statement, "comes a second time")
                self.functions[name] = statement
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                self._assign(name, value, statement)
            case ast.If(orelse=[]) if found := _END.fullmatch(ast.unparse(statement)):
                self.marks.update(mark for mark in found.groups() if mark)
            case ast.Return(value=value) if value is not None:
                shown = ast.unparse(value)
                if shown == "prediction":
                    self.pools = True
                elif shown != "predictions.tolist()":
                    self.refuse(statement)
            case ast.Expr(value=ast.Constant()):
                pass
            case _:
                self.refuse(statement)

    def _assign(self, name: str, value: ast.expr, statement: ast.stmt) -> None:
        if name in self.assigned:
            self.refuse(statement, "comes a second time")
        self.assigned.add(name)
        shown = ast.unparse(value)
        if name == "classifier_weights":
            self.classifier = Classifier.read(self.weights or self._table(value, statement))
        elif name == "feature_logits":
            self.summed = self._summed(value)
        elif name in _RESULTS:
            if not re.fullmatch(_RESULTS[name], shown):
                self.refuse(statement)
        elif name == "positions" and shown == "list(range(len(tokens)))":
            self.inputs.append(name)
        elif name == "ones" and shown == "[1 for _ in range(len(tokens))]":
            self.inputs.append(name)
            self.numerical.append(name)
        elif name == "embed_df":
            inner = value.func.value if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) else value
            self.embeddings = Embeddings.read(self._table(inner, statement))
        elif name == "embeddings" and shown == "embed_df.loc[tokens]":
            pass
        elif re.fullmatch(r"var\d+_embeddings", name):
            self._embedding(name, shown, statement)
        elif name.endswith("_scores"):
            self._scores(name, value, statement)
        elif name.endswith("_pattern"):
            self._pattern(name, value, statement)
        elif name.endswith("_outputs") and isinstance(value, ast.Call):
            self._head(name, value, statement)
        elif name.endswith("_outputs") and isinstance(value, ast.ListComp):
            self._mlp(name, value, statement)
        else:
            self.refuse(statement)

    def _table(self, value: ast.expr, statement: ast.stmt) -> Path:
        """The CSV file that a call of read_csv names; its folder was that of somebody else's working directory."""
        match value:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="pd"), attr="read_csv"), args=[ast.Constant(value=str() as text)]
            ) if text:
                return self.path.parent / Path(text).name
        self.refuse(statement, "does not read a CSV file")

    def _embedding(self, name: str, shown: str, statement: ast.stmt) -> None:
        number = name[3:].split("_")[0]
        by_name = re.fullmatch(rf"\[Emb{number}\[f'V\{{i:02\}}'\] for i in embeddings\['{name}'\]\]", shown)
        if not by_name and shown != f"embeddings['{name}'].tolist()":
            self.refuse(statement)
        if self.embeddings is None:
            self.refuse(statement, "comes before the embeddings are read")
        if by_name:
            self.embeddings = replace(self.embeddings, categories="Emb{i}.V{j:02d}")
        self.inputs.append(name)

    def _scores(self, name: str, value: ast.expr, statement: ast.stmt) -> None:
        """`x_scores = classifier_weights.loc[[("x", str(v)) for v in x]]`, with `.mul(x, axis=0)` for numbers."""
        shown = ast.unparse(value)
        found = re.fullmatch(
            r"classifier_weights\.loc\[\[\('(\w+)', (str\(v\)|'_')\) for v in (\w+)\]\]"
            r"(?:\.mul\((\w+), axis=0\))?",
            shown,
        )
        if found is None or found[1] != found[3] or (found[2] == "'_'") != (found[4] is not None):
            self.refuse(statement)
        if found[4] is not None and found[4] != found[1]:
            self.refuse(statement)
        self.scored[name] = found[1]

    def _summed(self, value: ast.expr) -> list[str]:
        if not _SUM.fullmatch(ast.unparse(value)):
            self.refuse(value, "does not sum tables of scores")
        (names,) = (each for each in ast.walk(value) if isinstance(each, ast.List))
        summed = [each.id for each in names.elts if isinstance(each, ast.Name)]
        twice = next((name for name in summed if summed.count(name) > 1), None)
        if twice is not None:
            self.refuse(value, f"sums {twice} more than once")
        return summed

    def _pattern(self, name: str, value: ast.expr, statement: ast.stmt) -> None:
        match value:
            case ast.Call(
                func=ast.Name(id="select_closest" | "select" as how),
                args=[ast.Name(id=key), ast.Name(id=query), ast.Name(id=predicate)],
                keywords=[],
            ) if predicate in self.functions:
                pairs = self._predicate(self.functions[predicate])
                self.patterns[name] = (SELECT_CLOSEST if how == "select_closest" else SELECT_SUM, key, query, pairs)
            case _:
                self.refuse(statement)

    def _head(self, name: str, value: ast.Call, statement: ast.stmt) -> None:
        match value:
            case ast.Call(
                func=ast.Name(id="aggregate" | "aggregate_sum" as how),
                args=[ast.Name(id=pattern), ast.Name(id=source)],
                keywords=[],
            ) if pattern in self.patterns:
                op, key, query, pairs = self.patterns[pattern]
                if (how == "aggregate_sum") != (op == SELECT_SUM):
                    self.refuse(statement, "aggregates what was selected in another way")
                self.nodes.append(Select(op, name, key, query, source, pairs))
                if op == SELECT_SUM:
                    self.numerical.append(name)
            case _:
                self.refuse(statement)

    def _predicate(self, function: ast.FunctionDef) -> tuple[tuple[Value, Value], ...]:
        """`if q in {...}: return k == c`, then further branches; the first that holds counts."""
        names = [each.arg for each in function.args.args]
        if len(names) != 2:
            self.refuse(function, "is no predicate of a query and a key")
        query, key = names
        pairs: dict[Value, Value] = {}
        branches, otherwise = self._branches(function.body)
        if otherwise is not None:
            self.refuse(otherwise, "tells what other queries look for, which a predicate does not")
        for test, compared, where in branches:
            match compared:
                case ast.Compare(left=ast.Name(id=left), ops=[ast.Eq()], comparators=[partner]) if left == key:
                    value = self._value(partner)
                case _:
                    self.refuse(where, "does not compare the key with one value")
            for each in self._members(test, query, where):
                pairs.setdefault(self._value(each), value)
        return tuple(pairs.items())

    def _mlp(self, name: str, value: ast.ListComp, statement: ast.stmt) -> None:
        match value:
            case ast.ListComp(
                elt=ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]),
                generators=[ast.comprehension(target=target, iter=source, ifs=[])],
            ) if function in self.functions:
                pass
            case _:
                self.refuse(statement)
        given = [each.id for each in arguments if isinstance(each, ast.Name)]
        bound = target.elts if isinstance(target, ast.Tuple) else [target]
        taken = [each.id for each in bound if isinstance(each, ast.Name)]
        match source:
            case ast.Call(func=ast.Name(id="zip"), args=zipped, keywords=[]):
                inputs = [each.id for each in zipped if isinstance(each, ast.Name)]
            case ast.Name(id=one):
                inputs = [one]
            case _:
                self.refuse(statement)
        if given != taken or len(given) != len(arguments) or len(inputs) != len(given):
            self.refuse(statement, "does not give a table its inputs in order")
        self.nodes.append(self._lookup(name, tuple(inputs), self.functions[function]))

    def _lookup(self, name: str, inputs: tuple[str, ...], function: ast.FunctionDef) -> Lookup:
        """`key = (a, b)`, branches `if key in {...}: return n`, and a last `return n`, or one behind `else`."""
        arguments = [each.arg for each in function.args.args]
        body = function.body
        match body[0]:
            case ast.Assign(targets=[ast.Name(id="key")], value=value):
                parts = value.elts if isinstance(value, ast.Tuple) else [value]
                if [each.id for each in parts if isinstance(each, ast.Name)] != arguments:
                    self.refuse(body[0])
            case _:
                self.refuse(body[0])
        if len(arguments) != len(inputs):
            self.refuse(function, "takes another number of inputs than it is given")
        branches, otherwise = self._branches(body[1:])
        table: dict[tuple[Value | float, ...], Value] = {}
        for test, result, where in branches:
            outcome = self._value(result)
            for member in self._members(test, "key", where):
                parts = member.elts if isinstance(member, ast.Tuple) else [member]
                key = tuple(self._value(each) for each in parts)
                if len(key) != len(inputs):
                    self.refuse(where, "has a key of another length than its inputs")
                table.setdefault(key, outcome)
        return Lookup(name, inputs, table, None if otherwise is None else self._value(otherwise))

    def _branches(self, body: list[ast.stmt]) -> tuple[list[tuple[ast.expr, ast.expr, ast.stmt]], ast.expr | None]:
        """The tests of a chain of if and elif with what each returns, and what is returned where none holds."""
        found: list[tuple[ast.expr, ast.expr, ast.stmt]] = []
        otherwise: ast.expr | None = None
        pending = list(body)
        while pending:
            statement = pending.pop(0)
            match statement:
                case ast.If(test=test, body=[ast.Return(value=value)], orelse=rest) if value is not None:
                    found.append((test, value, statement))
                    pending = [*rest, *pending]
                case ast.Return(value=value) if value is not None and not pending:
                    otherwise = value
                case ast.Pass():
                    pass
                case _:
                    self.refuse(statement)
        return found, otherwise

    def _members(self, test: ast.expr, name: str, where: ast.stmt) -> list[ast.expr]:
        """The elements of `name in {...}`."""
        match test:
            case ast.Compare(left=ast.Name(id=left), ops=[ast.In()], comparators=[collection]) if left == name:
                match collection:
                    case ast.Set(elts=elements) | ast.List(elts=elements) | ast.Tuple(elts=elements):
                        return elements
                    case ast.Call(func=ast.Name(id="set"), args=[], keywords=[]) | ast.Dict(keys=[]):
                        return []
        self.refuse(where, f"does not test whether {name} is in a set")

    def _value(self, node: ast.expr) -> Value:
        """A literal; categories are `Emb1.V16`, and numbers may be written `np.int64(0)`."""
        match node:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=str() | int() as value):
                return value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() as value)) if not isinstance(value, bool):
                return -value
            case ast.Attribute(value=ast.Name(id=enum), attr=member) if _CATEGORIES.fullmatch(enum):
                return f"{enum}.{member}"
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id="np"), attr="int64" | "int32" | "str_"), args=[inner], keywords=[]
            ):
                return self._value(inner)
        self.refuse(node, "is no value of a program")


def _only_shows(statement: ast.stmt) -> bool:
    """Whether a statement of the examples at the end prints, or runs an example."""
    match statement:
        case ast.Expr(value=ast.Call(func=ast.Name(id="print"))):
            return True
        case ast.Assign(targets=[ast.Name(id="y_hat")], value=ast.Call(func=ast.Name(id="run"))):
            return True
    return False
