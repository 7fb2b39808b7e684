"""What every function of the door has in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from lmlab.errors import from_unforeseen

HERE = "the settings"
"""What messages call the arguments of a call."""

F = TypeVar("F", bound=Callable[..., Any])


def told(function: F) -> F:
    """Let what the system refuses and packages that are missing end in the sentences of the command line."""

    @functools.wraps(function)
    def call(*values: Any, **named: Any) -> Any:
        try:
            return function(*values, **named)
        except (OSError, ModuleNotFoundError) as error:
            raise from_unforeseen(error, purpose=f"lmlab.{function.__name__}") from error

    return cast(F, call)
