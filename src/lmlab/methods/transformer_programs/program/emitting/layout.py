"""Lines of Python no longer than formatted code has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 88  # of black, and ruff as it comes


def collection(before: str, values: Sequence[Any], indent: int, after: str) -> list[str]:
    """A set on one line, or one element a line where that is too long."""
    items = [literal(each) for each in dict.fromkeys(values)]
    line = f"{before}{{{', '.join(items)}}}{after}"
    if len(line) <= WIDTH:
        return [line]
    space = " " * (indent + 4)
    return [f"{before}{{", *(f"{space}{item}," for item in items), f"{' ' * indent}}}{after}"]


def filled(items: Sequence[str], indent: int) -> list[str]:
    """Items with commas, as many on a line as fit."""
    lines, line = list[str](), ""
    for each in items:
        if line and indent + len(line) + len(each) + 2 > WIDTH:
            lines.append(" " * indent + line)
            line = ""
        line += f"{' ' if line else ''}{each},"
    return [*lines, " " * indent + line] if line else lines


SKIP = "  # fmt: skip"
"""Keeps a formatter from giving each entry of a long dictionary a line of its own."""


def mapping(before: str, values: Mapping[Any, Any], indent: int, after: str = SKIP) -> list[str]:
    """A dictionary on one line, or on as few as it fits on.

    Arguments:
        after: behind its closing bracket, unless it is a statement of one line.
    """
    items = [f"{literal(key)}: {literal(value)}" for key, value in values.items()]
    line = f"{before}{{{', '.join(items)}}}{'' if after == SKIP else after}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{before}{{", *filled(items, indent + 4), f"{' ' * indent}}}{after}"]


def call(before: str, arguments: Sequence[str], brackets: str = "()") -> list[str]:
    """A call on one line, or its arguments on lines of their own."""
    line = f"{before}{brackets[0]}{', '.join(arguments)}{brackets[1]}"
    if len(line) <= WIDTH:
        return [line]
    indent = len(before) - len(before.lstrip())
    inner = " " * (indent + 4)
    joined = f"{inner}{', '.join(arguments)}"
    if len(joined) <= WIDTH:
        return [f"{before}{brackets[0]}", joined, f"{' ' * indent}{brackets[1]}"]
    lines = [f"{inner}{each}," for each in arguments]
    return [f"{before}{brackets[0]}", *lines, f"{' ' * indent}{brackets[1]}"]


def wrapped_head(head: str) -> list[str]:
    if len(head) <= WIDTH:
        return [head]
    name, _, rest = head.partition("(")
    arguments, _, result = rest.rpartition(") -> ")
    if len(arguments) + 4 <= WIDTH:
        return [f"{name}(", f"    {arguments}", f") -> {result}"]
    return [f"{name}(", *(f"    {each}," for each in arguments.split(", ")), f") -> {result}"]


def if_all(tests: Sequence[str]) -> list[str]:
    """`if a and b:`, on lines of their own where that is too long."""
    line = f"    if {' and '.join(tests)}:"
    if len(line) <= WIDTH:
        return [line]
    first, *others = tests
    return ["    if (", f"        {first}", *(f"        and {test}" for test in others), "    ):"]


class Identifier(str):
    """A text that is written as the name of what is equal to it; only for names that are known to be identifiers."""


def literal(value: Any) -> str:
    """A value as a Python literal: whatever a text holds, it stays a text."""
    if isinstance(value, Identifier):
        return str(value)
    text = repr(value)
    if not isinstance(value, str) or text.startswith('"') or value.count('"') > value.count("'"):
        return text
    inner = text[1:-1].replace("\\'", "'").replace('"', '\\"')  # the quotes of formatted code
    return f'"{inner}"'
