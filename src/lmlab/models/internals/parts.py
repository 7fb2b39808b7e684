"""Functions of a module that are called by themselves, and not by way of its `forward`.

Whoever spreads a model over processes keeps its weights in shares and gathers them around `forward`. A function that
uses a module's weights at another time is marked with `part`. All parts of a module run through one method
(`give_runner`), so that whoever wraps that method has wrapped them all, whatever they are called and wherever they are
written.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")

RUNNER = "run_part"
"""The method that runs a module's parts, where a module has been given one."""


def part(function: Callable[Concatenate[M, P], R]) -> Callable[Concatenate[M, P], R]:
    """Mark a function, or a method, whose first argument is a module and that uses its weights outside `forward`."""

    @wraps(function)
    def call(module: M, /, *arguments: P.args, **named: P.kwargs) -> R:
        runner = getattr(module, RUNNER, None)
        if runner is None:
            return function(module, *arguments, **named)
        result: R = runner(function, *arguments, **named)
        return result

    return call


def give_runner(module: nn.Module) -> str:
    """Give a module the method through which its parts run from now on, and return the method's name, so that it can
    be wrapped.
    """

    def run(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return function(module, *arguments, **named)

    setattr(module, RUNNER, run)
    return RUNNER
