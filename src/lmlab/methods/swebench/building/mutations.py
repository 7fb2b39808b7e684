"""Bugs by small changes of a syntax tree: what a slip of the hand would do."""

from __future__ import annotations

import ast
import copy
import functools
import io
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_Change = tuple[int | None, Callable[[ast.AST], None]]
"""What is done to a node, and the line that it changes where that is not the node's own."""
_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Div,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutant:
    """A changed file.

    Attributes:
        kind: of the change, such as `comparison`.
        function: dotted name of the function in which it is.
        line: of the change, in the original.
        source: the file with that function replaced, and all other lines as they were.
    """

    kind: str
    function: str
    line: int
    source: str


def _comparison(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARE:
        yield None, lambda each: _set_first(each.ops, _COMPARE[type(each.ops[0])]())  # type: ignore[attr-defined]


def _set_first(listed: list[ast.cmpop], value: ast.cmpop) -> None:
    listed[0] = value


def _arithmetic(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in _ARITHMETIC:
        yield None, lambda each: setattr(each, "op", _ARITHMETIC[type(each.op)]())  # type: ignore[attr-defined]


def _constant(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        if isinstance(node.value, bool):
            yield None, lambda each: setattr(each, "value", not each.value)  # type: ignore[attr-defined]
        else:
            yield None, lambda each: setattr(each, "value", each.value + 1)  # type: ignore[attr-defined]
            yield None, lambda each: setattr(each, "value", each.value - 1)  # type: ignore[attr-defined]


def _condition(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield None, lambda each: setattr(each, "test", ast.UnaryOp(ast.Not(), each.test))  # type: ignore[attr-defined]


def _branches(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.If) and node.orelse:
        yield None, lambda each: _swap(each, "body", "orelse")


def _swap(node: ast.AST, one: str, two: str) -> None:
    first, second = getattr(node, one), getattr(node, two)
    setattr(node, one, second)
    setattr(node, two, first)


def _logic(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield None, lambda each: setattr(each, "op", other)


def _arguments(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Call) and len(node.args) >= 2 and not any(isinstance(a, ast.Starred) for a in node.args):
        yield None, lambda each: each.args.insert(0, each.args.pop(1))  # type: ignore[attr-defined]


def _slice(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Slice) and (node.lower is not None or node.upper is not None):
        which = "upper" if node.upper is not None else "lower"
        yield None, lambda each: setattr(each, which, ast.BinOp(getattr(each, which), ast.Add(), ast.Constant(1)))


def _statement(node: ast.AST) -> Iterator[_Change]:
    """Leave out one statement of a body: an assignment, a call, an early return, a conditional."""
    for field in ("body", "orelse", "finalbody"):
        body = getattr(node, field, None)
        if not isinstance(body, list):
            continue
        for place, each in enumerate(body):
            if isinstance(each, ast.Assign | ast.AugAssign | ast.Expr | ast.Return | ast.If | ast.Raise) and not (
                isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant)
            ):
                yield each.lineno, functools.partial(_leave_out, field=field, place=place)


def _leave_out(node: ast.AST, field: str, place: int) -> None:
    body = getattr(node, field)
    del body[place]
    if not body and field == "body":
        body.append(ast.Pass())


def _returned(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, ast.Return) and node.value is not None:
        yield None, lambda each: setattr(each, "value", ast.Constant(None))


def _decorator(node: ast.AST) -> Iterator[_Change]:
    if isinstance(node, _Function) and node.decorator_list:
        yield None, lambda each: each.decorator_list.pop()  # type: ignore[attr-defined]


KINDS: dict[str, Callable[[ast.AST], Iterator[_Change]]] = {
    "comparison": _comparison,
    "arithmetic": _arithmetic,
    "constant": _constant,
    "condition": _condition,
    "branches": _branches,
    "logic": _logic,
    "arguments": _arguments,
    "slice": _slice,
    "statement": _statement,
    "returned": _returned,
    "decorator": _decorator,
}


def mutants(source: str, generator: random.Random, lines: set[int] | None = None) -> Iterator[Mutant]:
    """Changed versions of a file, in random order, each once. Docstrings and annotations are never changed.

    Arguments:
        lines: change only these lines (1-based).
    """
    try:
        module = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    places = list[tuple[str, _Function, int, str, int, int]]()
    for name, function in _functions(module):
        nodes = [function, *_code(function)]
        for number, node in enumerate(nodes):
            for kind, find in KINDS.items():
                for which, (own, _) in enumerate(find(node)):
                    line = getattr(node, "lineno", function.lineno) if own is None else own
                    if lines is None or line in lines:
                        places.append((name, function, number, kind, which, line))
    generator.shuffle(places)
    seen = {ast.dump(module)}
    for name, function, number, kind, which, line in places:
        changed = copy.deepcopy(function)
        node = [changed, *_code(changed)][number]
        _, change = list(KINDS[kind](node))[which]
        change(node)
        text = _replaced(source, function, changed)
        try:
            dump = ast.dump(ast.parse(text)) if text is not None else ""
        except (SyntaxError, ValueError):
            continue
        if text is not None and dump not in seen:
            seen.add(dump)
            yield Mutant(kind, name, line, text)


def _functions(module: ast.Module) -> Iterator[tuple[str, _Function]]:
    def inside(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, _Function]]:
        for node in body:
            if isinstance(node, _Function):
                yield prefix + node.name, node
            elif isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.")

    return inside(module.body, "")


def _code(function: _Function) -> list[ast.AST]:
    """Nodes of the body without docstrings and annotations."""
    found: list[ast.AST] = []
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            continue
        found.append(node)
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_comment"):
                continue
            pending += [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, ast.AST)]
    return found


def lines_of(source: str) -> list[str]:
    """The lines of a file as the parser counts them, with their ends: a form feed, for one, ends none."""
    return io.StringIO(source, newline="").readlines()


def _replaced(source: str, old: _Function, new: _Function) -> str | None:
    """The file with a function written anew: only the statements that differ, so that a patch is as small as the
    change.
    """
    lines = lines_of(source)
    before, after = old.body, new.body
    same = 0
    while same < min(len(before), len(after)) and ast.dump(before[same]) == ast.dump(after[same]):
        same += 1
    end = 0
    while end < min(len(before), len(after)) - same and ast.dump(before[-1 - end]) == ast.dump(after[-1 - end]):
        end += 1
    if len(old.decorator_list) != len(new.decorator_list):
        return _whole(lines, old, new)
    gone, come = before[same : len(before) - end], after[same : len(after) - end]
    if not gone:
        return None
    first, last = gone[0].lineno, gone[-1].end_lineno or gone[-1].lineno
    indent = " " * gone[0].col_offset
    text = "".join(
        f"{indent}{line}\n" if line else "\n"
        for each in come
        for line in ast.unparse(ast.fix_missing_locations(each)).split("\n")
    )
    if not come and len(after) == 0:
        text = f"{indent}pass\n"
    return "".join(lines[: first - 1]) + text + "".join(lines[last:])


def _whole(lines: list[str], old: _Function, new: _Function) -> str:
    first = min([old.lineno, *(each.lineno for each in old.decorator_list)])
    indent = " " * old.col_offset
    text = "".join(f"{indent}{line}\n" if line else "\n" for line in ast.unparse(new).split("\n"))
    return "".join(lines[: first - 1]) + text + "".join(lines[old.end_lineno or old.lineno :])
