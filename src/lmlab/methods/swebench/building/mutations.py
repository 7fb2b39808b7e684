"""Bugs by small changes of a syntax tree: what a slip of the hand would do."""

from __future__ import annotations

import ast
import copy
import functools
import io
import random
from collections.abc import Callable, Iterator, Sequence
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
        source: the file with what differs written anew, and all else, comments and blank lines included, as it was.
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
        found = _replaced(source, function, changed)
        if found is not None and found[1] not in seen:
            seen.add(found[1])
            yield Mutant(kind, name, line, found[0])


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


def _replaced(source: str, old: _Function, new: _Function) -> tuple[str, str] | None:
    """The file with a function changed, and its syntax tree's dump.

    The least of the text is written anew that gives the new function: a repair is to hold the change and nothing else.
    Comments of a statement that was written anew would be part of it, and nobody could guess them.
    """
    lines = lines_of(source)
    try:
        (written,) = ast.parse(ast.unparse(ast.fix_missing_locations(new))).body
    except (SyntaxError, ValueError):
        return None
    assert isinstance(written, _Function)
    wanted, widest = ast.dump(written), None
    for text in (*_texts(lines, old, new), _whole(lines, old, written)):
        try:
            module = ast.parse(text)
        except (SyntaxError, ValueError):
            continue
        widest = text, ast.dump(module)
        here = [each for _, each in _functions(module) if _first_line(each) == _first_line(old)]
        if any(ast.dump(each) == wanted for each in here):
            return widest
    return widest  # texts that no unparsing gives back, such as some of f-strings, differ though nothing else does


def _first_line(function: _Function) -> int:
    return min([function.lineno, *(each.lineno for each in function.decorator_list)])


def _texts(lines: Sequence[str], old: ast.AST, new: ast.AST) -> Iterator[str]:
    """Ways to write one node for another, those that keep most first.

    Arguments:
        new: a changed copy of `old`, so that whatever is in both has the place that it has in the file.
    """
    fields = [name for name in old._fields if _told(getattr(old, name, None)) != _told(getattr(new, name, None))]
    if type(old) is type(new) and len(fields) == 1 and not isinstance(old, ast.JoinedStr):
        was, now = getattr(old, fields[0]), getattr(new, fields[0])
        if isinstance(was, ast.AST) and isinstance(now, ast.AST):
            yield from _texts(lines, was, now)
        elif isinstance(was, list) and isinstance(now, list):
            same, end = _alike(was, now)
            gone, come = was[same : len(was) - end], now[same : len(now) - end]
            if len(gone) == len(come) == 1:
                yield from _texts(lines, gone[0], come[0])
            if fields[0] == "decorator_list":
                yield _without(lines, gone[0].lineno, gone[-1].end_lineno, "")
            elif gone and isinstance(gone[0], ast.stmt):
                indent = lines[gone[0].lineno - 1][: gone[0].col_offset]
                text = "".join(_unparsed(each, indent) for each in come)
                yield _without(lines, gone[0].lineno, gone[-1].end_lineno, text)
    if isinstance(old, ast.If) and fields == ["body", "orelse"]:
        yield from _swapped(lines, old)
    if isinstance(old, ast.expr) and isinstance(new, ast.expr):
        for text in _around(lines, new):
            yield _between(lines, old, text)
            yield _between(lines, old, f"({text})")
    if isinstance(old, ast.expr | ast.stmt):
        indent = " " * old.col_offset if isinstance(old, ast.stmt) else ""
        text = _unparsed(new, indent)[:-1].removeprefix(indent)
        yield _between(lines, old, text)
        if isinstance(old, ast.expr):
            yield _between(lines, old, f"({text})")


def _swapped(lines: Sequence[str], old: ast.If) -> Iterator[str]:
    """The branches of a condition in each other's place, with their comments; nothing where they share a line."""
    first, last = old.test.end_lineno or old.lineno, old.end_lineno or old.lineno
    other = old.orelse[0]
    starts = [
        number
        for number in range(old.body[-1].end_lineno or 0, other.lineno)
        if lines[number][old.col_offset :].startswith(("else", "elif"))
    ]
    if not starts or lines[first - 1].split("#")[0].rstrip()[-1:] != ":" or old.body[0].lineno <= first:
        return
    start, body = starts[-1], lines[first : starts[-1]]
    middle, branch = lines[start], lines[start + 1 : last]
    if middle[old.col_offset :].startswith("elif"):
        inner = " " * (old.body[0].col_offset - old.col_offset)
        branch = [inner + middle.replace("elif", "if", 1), *(inner + line if line.strip() else line for line in branch)]
        middle = f"{middle[: old.col_offset]}else:{middle[len(middle.rstrip()) :]}"
    elif other.lineno == start + 1:
        return
    yield "".join([*lines[:first], *branch, middle, *body, *lines[last:]])


def _around(lines: Sequence[str], new: ast.expr) -> Iterator[str]:
    """Ways to write a new expression around those parts of it that stand in the file, which are cut out as they are."""
    kept = list[str]()

    class Cut(ast.NodeTransformer):
        def generic_visit(self, node: ast.AST) -> ast.AST:
            if node is not shape and isinstance(node, ast.expr) and not isinstance(node, ast.Starred):
                text = _cut(lines, node)
                if text is not None:
                    kept.append(text)
                    return ast.Name(f"{_HOLE}{len(kept) - 1}_", ast.Load())
            return super().generic_visit(node)

    shape = copy.deepcopy(new)
    skeleton = ast.unparse(ast.fix_missing_locations(Cut().visit(shape)))
    for form in ("{}", "({})"):  # the first is what people write, and may bind otherwise
        text = skeleton
        for number, part in enumerate(kept):
            text = text.replace(f"{_HOLE}{number}_", form.format(part))
        if kept:
            yield text


_HOLE = "_lmlab_cut_"


def _cut(lines: Sequence[str], node: ast.expr) -> str | None:
    """The text of an expression in the file; None where that is another one, as it was changed or made anew."""
    last, end = getattr(node, "end_lineno", None), getattr(node, "end_col_offset", None)
    if last is None or end is None or last > len(lines):
        return None
    # Not ast.get_source_segment, which takes the whole file apart for each node
    whole = [line.encode() for line in lines[node.lineno - 1 : last]]
    whole[-1] = whole[-1][:end]
    whole[0] = whole[0][node.col_offset :]
    text = b"".join(whole).decode("utf-8", "replace")
    try:
        same = ast.dump(ast.parse(f"({text})", mode="eval").body) == ast.dump(node)
    except (SyntaxError, ValueError):
        return None
    return text if same else None


def _told(value: object) -> str:
    if isinstance(value, list):
        return str([_told(each) for each in value])
    return ast.dump(value) if isinstance(value, ast.AST) else repr(value)


def _alike(before: Sequence[ast.AST], after: Sequence[ast.AST]) -> tuple[int, int]:
    """How many nodes are equal at the beginning and at the end."""
    most = min(len(before), len(after))
    same = 0
    while same < most and _told(before[same]) == _told(after[same]):
        same += 1
    end = 0
    while end < most - same and _told(before[-1 - end]) == _told(after[-1 - end]):
        end += 1
    return same, end


def _unparsed(node: ast.AST, indent: str) -> str:
    return "".join(f"{indent}{line}\n" if line else "\n" for line in ast.unparse(node).split("\n"))


def _without(lines: Sequence[str], first: int, last: int | None, text: str) -> str:
    """The file with other text in the place of whole lines."""
    return "".join(lines[: first - 1]) + text + "".join(lines[last or first :])


def _between(lines: Sequence[str], node: ast.expr | ast.stmt, text: str) -> str:
    """The file with other text in the place of a node; the parser counts columns in bytes."""
    last = node.end_lineno or node.lineno
    before = lines[node.lineno - 1].encode()[: node.col_offset].decode()
    after = lines[last - 1].encode()[node.end_col_offset or 0 :].decode()
    return "".join(lines[: node.lineno - 1]) + before + text + after + "".join(lines[last:])


def _whole(lines: Sequence[str], old: _Function, new: _Function) -> str:
    return _without(lines, _first_line(old), old.end_lineno, _unparsed(new, " " * old.col_offset))
