"""Options made from the fields of a configuration, so that a setting is declared once.

    @app.command()
    @options(SelectionSettings)
    def select(where: In, settings: SelectionSettings, out: Out) -> None: ...

The command gets one option a field, with the field's default, bounds, and the sentence that the class's docstring says
of it, and `settings` as the validated configuration. A command may have several configurations, each by a decorator of
its own.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin

import typer
from pydantic import JsonValue, create_model

from lmlab.config import Config, Flag, field_marks, validate
from lmlab.errors import UserError

F = TypeVar("F", bound=Callable[..., Any])

_PLAIN = (str, int, float, bool)


def options(
    config_type: type[Config],
    into: str = "settings",
    exclude: Collection[str] = (),
    flags: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
    only: Collection[str] | None = None,
    notes: Mapping[str, str] = MappingProxyType({}),
    **defaults: Any,
) -> Callable[[F], F]:
    """Give a command an option for each field of a configuration that a command line can spell.

    Fields that are configurations themselves have none; commands offer `--set` for those.

    Arguments:
        into: the parameter of the command that receives the configuration.
        exclude: fields without an option.
        flags: other spellings of some options than the configuration's, such as those of another tool.
        only: the fields with one, in place of all.
        notes: what this command adds to the help of some, such as what is done where they are left out.
        defaults: other defaults than the configuration's, where leaving an option out means something else.
    """

    exclude = exclude if only is None else set(config_type.model_fields) - set(only)
    open_fields = {*exclude, *(name for name, value in defaults.items() if value is None)}
    spelled = {
        name: parameter
        for name in config_type.model_fields
        if name not in exclude
        and (parameter := _parameter(config_type, name, defaults, flags.get(name, ()), notes.get(name, ""))) is not None
    }
    part = only is not None
    return _decorator(config_type, into, spelled, lambda values: _validated(config_type, values, open_fields, part))


def changes(
    config_type: type[Config],
    fields: Collection[str],
    into: str = "changes",
    notes: Mapping[str, str] = MappingProxyType({}),
) -> Callable[[F], F]:
    """Give a command an option for each of these fields, by which a user changes what a file says.

    The options have no defaults: `into` receives a mapping of those that were given. `notes` are as of `options`.
    """
    spelled = {name: _parameter(config_type, name, {name: None}, (), notes.get(name, "")) for name in fields}
    unspelled = [name for name, parameter in spelled.items() if parameter is None]
    assert not unspelled, f"a command line cannot spell {', '.join(unspelled)}"
    return _decorator(config_type, into, cast(dict[str, inspect.Parameter], spelled), lambda values: values)


def _decorator(
    config_type: type[Config],
    into: str,
    spelled: Mapping[str, inspect.Parameter],
    make: Callable[[dict[str, Any]], Any],
) -> Callable[[F], F]:
    """Put parameters in the place of one, which receives what is made of their values."""

    def decorate(command: F) -> F:
        own = inspect.signature(command, eval_str=True)
        assert into in own.parameters, f"{command.__name__} has no parameter '{into}'"

        @functools.wraps(command)
        def call(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in spelled}
            arguments[into] = make(
                {name: _value(config_type, name, value) for name, value in given.items() if value is not None}
            )
            return command(**arguments)

        parameters = []
        for parameter in own.parameters.values():
            parameters += list(spelled.values()) if parameter.name == into else [parameter]
        keywords = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
        call.__signature__ = own.replace(parameters=keywords)  # type: ignore[attr-defined]
        call.__annotations__ = {each.name: each.annotation for each in keywords} | {"return": own.return_annotation}
        return call  # type: ignore[return-value]

    return decorate


def _validated(
    config_type: type[Config], values: dict[str, Any], may_miss: Collection[str], part: bool = False
) -> Config:
    """The configuration; a required field that the command settles itself, or that may be left out, is None.

    Arguments:
        part: only some of its fields are meant: what it demands of several together is not asked.
    """
    open_fields = {name for name in may_miss if config_type.model_fields[name].is_required()} - set(values)
    if not open_fields and not part:
        return validate(config_type, values, "the options")
    known = validate(_without(config_type, frozenset(open_fields), part), values, "the options")
    return config_type.model_construct(**dict(known))


@functools.lru_cache(maxsize=64)
def _without(config_type: type[Config], names: frozenset[str], part: bool) -> type[Config]:
    """The configuration with some fields that need not be given, and as a part of it without what holds for all."""
    loose: dict[str, Any] = {name: (Any, None) for name in names}
    found = create_model(config_type.__name__, __base__=config_type, **loose)
    if part:
        checks = found.__pydantic_decorators__.model_validators
        for name in [name for name, check in checks.items() if check.info.mode == "after"]:
            del checks[name]
        found.model_rebuild(force=True)
    return found


def _parameter(
    config_type: type[Config],
    name: str,
    defaults: Mapping[str, Any],
    spellings: tuple[str, ...] = (),
    note: str = "",
) -> inspect.Parameter | None:
    """The option of a field as a parameter that Typer reads; None for what a command line cannot spell."""
    info = config_type.model_fields[name]
    shape = _shape(info.annotation)
    if shape is None:
        return None
    kind, is_mapping = shape
    flag = next((mark for mark in field_marks(info) if isinstance(mark, Flag)), Flag())
    default = defaults[name] if name in defaults else info.get_default(call_default_factory=True)
    required = info.is_required() and name not in defaults
    repeated = kind == list[str]
    bounds = {"min": _bound(info, "ge"), "max": _bound(info, "le")} if kind in (int, float) else {}
    names = spellings or flag.names
    if not names and kind is bool and default is False:
        names = (f"--{name.replace('_', '-')}",)  # without it Typer would offer --no-NAME too, which says nothing
    help = f"{(info.description or '').strip()} {note}".strip()
    option = typer.Option(
        *names,
        help=help if _begins_with_values(help, info.annotation) else help[:1].upper() + help[1:],
        metavar=_spelling(config_type, name) if is_mapping else _in_one_word(info.annotation),
        show_default=_shown_default(default) if repeated and not is_mapping else default is not None and not required,
        **{key: value for key, value in bounds.items() if value is not None},
    )
    empty = default is None or (repeated and not default)
    annotation = Annotated[kind | None if empty and not required else kind, option]  # type: ignore[valid-type]
    items = [f"{key}={value}" for key, value in default.items()] if is_mapping and default else default
    shown = inspect.Parameter.empty if required else None if empty else list(items) if repeated else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=shown, annotation=annotation)


def _begins_with_values(help: str, annotation: Any) -> bool:
    """Whether the first word is a value, which is to be typed as it is written: one of the annotation, or the first
    of a list.
    """
    words = re.match(r"([a-z0-9_-]+)(, [a-z0-9_-]+,|,? or )?", help)
    return words is not None and (bool(words[2]) or words[1] in _choices(annotation))


def _choices(annotation: Any) -> set[Any]:
    """The values that an annotation lists, at any depth."""
    arguments = get_args(annotation)
    if get_origin(annotation) is Literal:
        return set(arguments)
    return {value for each in arguments for value in _choices(each)}


def _shown_default(default: Any) -> str | bool:
    return ",".join(map(str, default)) if isinstance(default, list | tuple) and default else False


def _shape(annotation: Any) -> tuple[Any, bool] | None:
    """The type of an option's value, and whether it is a mapping, spelled NAME=VALUE."""
    if annotation in _PLAIN:
        return annotation, False
    if annotation is JsonValue or hasattr(annotation, "spelling"):
        return str, False
    origin, arguments = get_origin(annotation), [each for each in get_args(annotation) if each is not type(None)]
    if origin is Literal:
        return str, False
    if origin is Annotated:
        return _shape(arguments[0])
    if origin in (Union, types.UnionType):
        shapes = [_shape(each) for each in arguments]
        if all(shape is not None and not shape[1] and shape[0] in _PLAIN for shape in shapes):
            kinds = {shape[0] for shape in shapes if shape is not None}
            return (kinds.pop() if len(kinds) == 1 else str), False
        return shapes[0] if len(shapes) == 1 else None
    if origin in (list, tuple) and arguments and _shape(arguments[0]) in ((str, False), (int, False), (float, False)):
        return list[str], False
    if origin is dict and _shape(arguments[1]) is not None:
        return list[str], True
    return (annotation, False) if isinstance(annotation, type) and annotation.__name__ == "Path" else None


def _value(config_type: type[Config], name: str, value: Any) -> Any:
    """What an option says, as the field's validation expects it."""
    annotation = config_type.model_fields[name].annotation
    shape = _shape(annotation)
    if shape is None or not shape[1]:
        # numbers hold no commas, so that several may stand in one word: --tokens 256,512
        split = isinstance(value, list) and _holds_numbers(annotation)
        return [item.strip() for each in value for item in str(each).split(",")] if split else value
    pairs = {}
    texts = _holds_texts(annotation)
    for text in value:
        # numbers hold neither commas nor =, names of columns may; of texts the name may not, and the value may
        for pair in [text] if texts else text.split(","):
            key, equals, item = pair.partition("=") if texts else pair.rpartition("=")
            if not equals or not key.strip():
                raise UserError(f"--{name.replace('_', '-')} {text}: expected {_spelling(config_type, name)}.")
            pairs[key.strip()] = _json(item.strip()) if JsonValue in get_args(annotation) else item.strip()
    return pairs


def _holds_numbers(annotation: Any) -> bool:
    """Whether a field is a list of numbers, or may be one."""
    parts = [each for each in get_args(annotation) if each is not type(None)]
    if get_origin(annotation) in (list, tuple):
        return bool(parts) and _shape(parts[0]) in ((int, False), (float, False))
    return any(_holds_numbers(each) for each in parts)


def _holds_texts(annotation: Any) -> bool:
    """Whether a mapping's values are texts or JSON, and no numbers."""
    return bool({str, JsonValue} & set(get_args(annotation)[1:]))


def _json(text: str) -> Any:
    """A value as JSON, or as the text that it is."""
    from lmlab.files.parsing import ParseError, json_value

    try:
        return json_value(text)
    except ParseError:
        return text


def _in_one_word(annotation: Any) -> str | None:
    """How a configuration is written that has a spelling as one word, such as a price; None for other types."""
    if isinstance(spelling := getattr(annotation, "spelling", None), str):
        return spelling
    return next((found for each in get_args(annotation) if (found := _in_one_word(each)) is not None), None)


def _spelling(config_type: type[Config], name: str) -> str:
    """How an item of a mapping is written."""
    annotation = config_type.model_fields[name].annotation
    if JsonValue in get_args(annotation):
        return "NAME=JSON"
    return "NAME=VALUE" if _holds_texts(annotation) else "NAME=NUMBER"


def _bound(info: Any, which: str) -> Any:
    return next((getattr(mark, which) for mark in info.metadata if hasattr(mark, which)), None)
