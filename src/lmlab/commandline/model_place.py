"""A command's model, named either way: `lmlab serve MODEL` and `lmlab serve --model MODEL` are the same."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import typer
from typer.models import ArgumentInfo

from lmlab.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

_NAMED = "model_named"  # the parameter behind --model


def takes_model(command: F) -> F:
    """Let a command whose first argument is `model` take it as `--model` too.

    With `--model`, the arguments that follow it move one place forward: `trace --model DIR TEXTS` is `trace DIR TEXTS`.
    """
    own = inspect.signature(command, eval_str=True)
    arguments = [name for name, each in own.parameters.items() if isinstance(_info(each), ArgumentInfo)]
    assert arguments[:1] == ["model"], f"{command.__name__} takes no model first"
    many = get_origin(_kind(own.parameters[arguments[-1]])) is list
    required = [name for name in arguments if own.parameters[name].default is inspect.Parameter.empty]

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        named = given.pop(_NAMED)
        if named is not None:
            held = [given[name] if isinstance(given[name], list) else [given[name]] for name in arguments]
            words = [named, *(each for part in held for each in part if each is not None)]
            if len(words) > len(arguments) and not many:
                raise UserError(f"The model is given twice: '{given['model']}' and --model {named}.", "Leave one out.")
            for place, name in enumerate(arguments):
                last = many and place == len(arguments) - 1
                own_words = words[place:] if last else words[place : place + 1]
                read = [_as(own.parameters[name], each) for each in own_words]
                given[name] = (read or None) if last else next(iter(read), None)
        missing = [name for name in required if given[name] is None]
        if missing:
            remedy = "Name it first, or with --model." if missing[0] == "model" else f"Name it behind {arguments[0]}."
            raise UserError(f"{missing[0].upper()} is missing.", f"{remedy} --help shows an example.")
        return command(**given)

    parameters: list[inspect.Parameter] = []
    for name, each in own.parameters.items():
        if name not in required:
            parameters.append(each)
            continue
        kind, info = _kind(each), cast(ArgumentInfo, _info(each))
        kind_or_none: Any = kind | None
        optional = Annotated[kind_or_none, typer.Argument(help=info.help, metavar=name.upper(), show_default=False)]
        parameters.append(each.replace(default=None, annotation=optional))
        if name == "model":
            option = typer.Option("--model", help="The model, in place of the argument.", show_default=False)
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(
                inspect.Parameter(_NAMED, keyword, default=None, annotation=Annotated[kind_or_none, option])
            )
    keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    call.__signature__ = own.replace(parameters=keywords)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in keywords} | {"return": own.return_annotation}
    return call  # type: ignore[return-value]


def _info(parameter: inspect.Parameter) -> Any:
    if get_origin(parameter.annotation) is not Annotated:
        return None
    return next((each for each in get_args(parameter.annotation)[1:] if isinstance(each, ArgumentInfo)), None)


def _kind(parameter: inspect.Parameter) -> Any:
    """The type of an argument."""
    return get_args(parameter.annotation)[0]


def _as(parameter: inspect.Parameter, value: Any) -> Any:
    """A value that was read for the argument before, in this one's type."""
    kind = _kind(parameter)
    kind = get_args(kind)[0] if get_origin(kind) is list else kind
    return kind(value) if value is not None and isinstance(kind, type) else value
