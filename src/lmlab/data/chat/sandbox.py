"""Jinja for chat templates, which are programs from outside: what they see and may call is what `transformers` gives
them, and they can neither run for long nor grow large.

Python cannot stop a single long operation, so each is looked at before it runs: loops count what they go through,
calls, operators and filters look at the sizes of what they get, and all of them at the clock.
"""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, ClassVar, cast

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lmlab.words import counted

MAX_STEPS = 10**6  # of loops and calls: a thousand for each of a thousand messages
MAX_SIZE = 2**24  # characters or items of one value: several times the longest context there is
MAX_SECONDS = 5.0  # of processor time: templates take milliseconds
MAX_NUMBER = 10**6  # that sets the size of something, such as a width
MARK = "generation_mark"
_SIZED_FILTERS = {"to_json", "batch", "slice"}
_SIZED = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "wordwrap", "to_json", "batch", "slice"}
_WIDE = re.compile(r"\d{7,}|%\(?\w*\)?[-+ #0]*\*")


class OutOfBounds(TemplateError):
    """The template runs for too long, or makes something too large."""


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. `bounded` stands around every rendering."""

    intercepted_binops: ClassVar[frozenset[str]] = frozenset({"+", "*", "**", "%"})  # type: ignore[misc]

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationBlock])
        self._budget = _Budget()
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda format: datetime.now().strftime(format),
            "dict": _TemplateDict(),
            "namespace": _TemplateNamespace,
        }
        del self.globals["lipsum"]  # writes as much nonsense as it is asked for
        self.filters["tojson"] = _to_json
        self.filters = {name: self._bounded_filter(function) for name, function in self.filters.items()}
        self.concat = self._join  # type: ignore[method-assign]

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Count anew."""
        self._budget.steps, self._budget.deadline = 0, time.thread_time() + MAX_SECONDS
        try:
            yield
        finally:
            self._budget.deadline = float("inf")

    def step(self) -> None:
        """One more pass through a loop, or call."""
        self._budget.steps += 1
        if self._budget.steps > MAX_STEPS:
            raise OutOfBounds(f"it takes more than {counted(MAX_STEPS, 'steps')}")
        if time.thread_time() > self._budget.deadline:
            raise OutOfBounds(f"it runs for more than {MAX_SECONDS:.0f} seconds")

    def counted(self, iterable: Any) -> Any:
        """What a loop goes through."""
        return _Counted(iterable, self.step)

    def joined(self, *parts: Any) -> str:
        """The operator `~`."""
        return self._join(map(str, parts))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """A call in a template; the odd names, which are jinja2's, leave the others to it."""
        __self.step()
        if isinstance(owner := getattr(__obj, "__self__", None), str):
            _check_method(owner, __obj.__name__, [*args, *kwargs.values()])
        return _sized(super().call(__context, __obj, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator of `intercepted_binops`."""
        self.step()
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        _check_size(_size_of_result(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def _join(self, parts: Iterable[str]) -> str:
        parts = list(parts)
        _check_size(sum(map(len, parts)))
        return "".join(parts)

    def _bounded_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__.lstrip("_").removeprefix("do_")

        @functools.wraps(function)  # also copies what says whether it wants the environment or the context
        def bounded(*args: Any, **options: Any) -> Any:
            self.step()
            values = [*args, *options.values()]
            texts = [number for number, value in enumerate(values) if isinstance(value, str)]
            if name == "join":  # the value may be any iterable, before the text between its items
                values[:0], texts = [str(options.get("d", args[2] if len(args) > 2 else ""))], [0]
            if texts or name in _SIZED_FILTERS:
                first = texts[0] if texts else -1
                _check_method(values[first] if texts else "", name, values[first + 1 :])
            return _sized(function(*args, **options))

        return bounded


class GenerationBlock(Extension):
    """`{% generation %}...{% endgeneration %}`: its text, between marks if the variable `generation_mark` is given."""

    tags: ClassVar[set[str]] = {"generation"}  # type: ignore[misc]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        name = nodes.Name(MARK, "load")
        mark = nodes.Output([nodes.CondExpr(nodes.Test(name, "defined", [], [], None, None), name, None)])
        return nodes.Scope([mark, *body, mark]).set_lineno(line)


class _Budget(threading.local):
    """What a rendering has used; a server renders in several threads."""

    steps, deadline = 0, float("inf")


class _Bounds(NodeTransformer):
    """Puts what counts into a template: around what loops go through, and in place of `~`."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _ask("counted", [cast(nodes.Expr, node.iter)], node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _ask("joined", node.nodes, node.lineno)


def _ask(method: str, arguments: list[nodes.Expr], line: int) -> nodes.Call:
    call = nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None)
    call.set_lineno(line, override=True)
    return call


class _Counted:
    """An iterable that counts; it has a length where the other has one."""

    def __init__(self, iterable: Any, step: Callable[[], None]) -> None:
        self._iterable, self._step = iterable, step

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            self._step()
            yield item

    def __len__(self) -> int:
        return len(self._iterable)


class _TemplateDict:
    """`dict` without what leads out of the sandbox."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _TemplateNamespace(Namespace):
    """`namespace` whose names do not start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that an attribute may be called self
        self, *rest = args
        for name in (attributes := dict(*rest, **kwargs)):
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}")


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict | bytes) else 0


def _size_of_result(operator: str, left: Any, right: Any) -> int:
    """Characters, items or, of a number, bits that an operator would make, at most."""
    numbers = isinstance(left, int) and isinstance(right, int)
    if operator == "**" and numbers:
        return int(left.bit_length() * max(0, right))
    if operator == "*" and numbers:
        return int(left.bit_length() + right.bit_length())
    if operator == "*":
        return max(
            _size(left) * right if isinstance(right, int) else 0, _size(right) * left if isinstance(left, int) else 0
        )
    return _size(left) + _size(right) if operator == "+" else 0


def _check_size(size: int) -> None:
    if size > MAX_SIZE:
        raise OutOfBounds(f"it makes something of more than {counted(MAX_SIZE, 'characters')} or items")


def _sized(value: Any) -> Any:
    _check_size(_size(value))
    return value


def _check_format(format: str) -> None:
    if _WIDE.search(format):
        raise OutOfBounds("it writes with a width that is computed, or of more than six digits")


def _check_method(text: str, name: str, values: Sequence[Any]) -> None:
    """Look at what a method of a text, or a filter of that name, would make."""
    numbers = [value for value in values if isinstance(value, int)]
    if name in _SIZED and max(numbers, default=0) > MAX_NUMBER:
        raise OutOfBounds(f"it gives {name} a number of more than {MAX_NUMBER:,}")
    if name in ("format", "format_map"):
        _check_format(text)
    elif name == "replace" and len(values) > 1 and isinstance(values[0], str) and isinstance(values[1], str):
        times = text.count(values[0]) if values[0] else len(text) + 1
        _check_size(len(text) + times * len(values[1]))
    elif name == "join" and values:
        items = values[0] if isinstance(values[0], list | tuple | str) else []
        _check_size(len(text) * len(items) + sum(map(_size, items)))
    elif name in ("expandtabs", "indent"):
        _check_size(len(text) * (1 + max(numbers, default=8)))  # the width of a tab
    elif name == "translate":
        _check_size(len(text) * max((_size(value) for table in values for value in dict(table).values()), default=1))


def _refuse(message: str) -> None:
    raise TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
