"""All commands, of the core and of the methods, for tests of rules that hold for each of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lmlab import cli


def commands() -> Iterator[tuple[str, Any]]:
    """Every command by its words."""

    def below(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
        for name, each in getattr(command, "commands", {}).items():
            yield from below(each, (*path, name))
        if getattr(command, "callback", None) is not None:
            yield " ".join(path), command

    for module, names in cli._ALONE.items():
        for name in names:
            yield from below(cli._commands_in(module)[name], (name,))
    for name, group in cli._groups().items():
        yield from below(cli._loaded(name, group), (name,))


def flag_of(parameter: Any) -> str:
    """How an option is spelled in full; an argument is its name in capitals."""
    return next((each for each in parameter.opts if each.startswith("--")), parameter.name.upper())
