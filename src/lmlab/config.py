"""Configuration is data: dotted overrides, and validation whose errors name the field and the nearest known
key.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, overload

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator

from lmlab.errors import UserError, did_you_mean
from lmlab.files import kind_of, parse_yaml

FloatPrecision = Literal["fp32", "bf16", "auto"]
"""In which numbers a network computes: `auto` is the faster of fp32 and bf16 here."""
Precision = Literal["fp32", "bf16", "auto", "int8", "int4"]
"""How the weights of a model that is read, not trained, are kept: `auto` is the faster of fp32 and bf16; int8 and int4
are for CPUs (`lmlab.models.pack_weights`)."""
PACKED = ("int8", "int4")
"""Those of them whose weights are packed."""
_TOO_LARGE = 2**63
_MOST_PROBLEMS = 20  # that one message tells: a list of a million numbers can be wrong in each


class Config(BaseModel):
    """Base of every configuration: immutable, strict about unknown keys."""

    # a validator is built when it is first used: help needs none
    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False, defer_build=True
    )

    @model_validator(mode="before")
    @classmethod
    def _numbers_are_numbers(cls, data: Any) -> Any:
        """`steps: yes` is a slip that would train for one step: YAML's and Python's true is no number here. Nor is a
        whole number beyond 64 bits, which no library below takes.
        """
        for name, value in data.items() if isinstance(data, Mapping) else ():
            info = cls.model_fields.get(name)
            if isinstance(value, bool) and info is not None and _is_number(info.annotation):
                raise ValueError(f"{name}: a number is needed, got {str(value).lower()}.")
            if isinstance(value, int) and abs(value) >= _TOO_LARGE:
                raise ValueError(f"{name}: the number is too large for 64 bits.")
        return data

    @classmethod
    def __pydantic_init_subclass__(cls, **arguments: Any) -> None:
        """Take the descriptions of fields from the class's docstring, where the source already has them: they are the
        help of options and of generated documentation.
        """
        super().__pydantic_init_subclass__(**arguments)
        for name, text in _attributes_in(cls.__doc__ or "").items():
            if name in cls.model_fields and cls.model_fields[name].description is None:
                cls.model_fields[name].description = text


def _is_number(annotation: Any) -> bool:
    """Whether a type takes numbers, and neither true and false nor just anything."""
    found = set(_alternatives(annotation))
    return bool(found & {int, float}) and not found & {bool, Any, object}


def _alternatives(annotation: Any) -> Iterable[Any]:
    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        return [each for part in get_args(annotation) for each in _alternatives(part)]
    if origin is Annotated:
        return _alternatives(get_args(annotation)[0])
    return [*map(type, get_args(annotation))] if origin is Literal else [annotation]


def _attributes_in(docstring: str) -> dict[str, str]:
    """What the section "Attributes:" of a docstring says of each name; one line may speak of several."""
    _, _, section = inspect.cleandoc(docstring).partition("Attributes:\n")
    entries: list[tuple[str, str]] = []
    for line in section.splitlines():
        if not line.strip():
            continue
        if not line.startswith("    "):
            break
        found = _ATTRIBUTE.match(line)
        if found:
            entries.append((found[1], found[2]))
        elif entries:
            entries[-1] = (entries[-1][0], f"{entries[-1][1]} {line.strip()}")
    return {name.strip(): text for names, text in entries for name in names.split(",")}


_ATTRIBUTE = re.compile(r" {4}(\w+(?:, \w+)*): (.*)$")

C = TypeVar("C", bound=BaseModel)


@dataclass(frozen=True)
class Flag:
    """Marks a field, in `Annotated`: how its option is spelled, where that is not the field's name."""

    names: tuple[str, ...] = ()


class _NoInfluenceMarker:
    pass


NO_INFLUENCE = _NoInfluenceMarker()
"""Marks a field, in `Annotated`, that says how work is done and not what comes out: it may change between two
attempts.
"""


def influences(config: BaseModel) -> dict[str, Any]:
    """The configuration as JSON, without the fields, at any depth, that do not change the results."""
    found: dict[str, Any] = _without_marked(config, config.model_dump(mode="json"))
    return found


def _without_marked(value: Any, dumped: Any) -> Any:
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        return {
            name: _without_marked(getattr(value, name), each)
            for name, each in dumped.items()
            if name not in fields or not any(isinstance(mark, _NoInfluenceMarker) for mark in field_marks(fields[name]))
        }
    if isinstance(value, Mapping):
        return {name: _without_marked(each, dumped[str(name)]) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_marked(each, part) for each, part in zip(value, dumped, strict=True)]
    return dumped


def names_in(value: Any) -> Any:
    """Names as a list, where commas stand between some of them; what is no text or list is left to validation."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list | tuple):
        return value
    return [name.strip() for each in value for name in str(each).split(",") if name.strip()]


def field_marks(info: Any) -> list[Any]:
    """What a field, or an alternative of its type, is annotated with."""
    marks = list(info.metadata)
    for argument in getattr(info.annotation, "__args__", ()):
        marks += getattr(argument, "__metadata__", ())
    return marks


def apply_overrides(data: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Return `data` with `a.b.c=value` overrides applied; the values are parsed as YAML, list items are addressed by
    number.
    """
    result: dict[str, Any] = _copy(data)
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path.strip():
            raise UserError(f"--set {override}: expected KEY=VALUE, for instance --set model.trainer.steps=100.")
        keys = path.strip().split(".")
        target: Any = result
        for depth, key in enumerate(keys[:-1]):
            target = _descend(target, key, ".".join(keys[: depth + 1]))
        new = parse_yaml(value, f"--set {path}")
        if isinstance(target, list):
            target[_index(target, keys[-1], path)] = new
        elif isinstance(target, dict):
            target[keys[-1]] = new
        else:
            raise UserError(f"--set {path}: '{'.'.join(keys[:-1])}' is {kind_of(target)} and has no keys.")
    return result


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    if isinstance(value, Mapping):
        return {key: item for name, inner in value.items() for key, item in flatten(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """In which settings two nested mappings differ, in words; nothing where they are equal."""
    one, other = flatten(theirs), flatten(ours)
    keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    return "; ".join(f"{key} is {one.get(key)!r}, not {other.get(key)!r}" for key in keys)


def _descend(target: Any, key: str, path: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, key, path)]
    if not isinstance(target, dict):
        raise UserError(f"--set {path}: {kind_of(target)} has no key '{key}'.")
    if target.get(key) is None:
        target[key] = {}
    return target[key]


def _index(target: list[Any], key: str, path: str) -> int:
    if not key.isdigit() or int(key) >= len(target):
        raise UserError(f"--set {path}: expected a number from 0 to {len(target) - 1} in place of '{key}'.")
    return int(key)


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    return [_copy(item) for item in value] if isinstance(value, list) else value


@overload
def validate(kind: type[C], data: Any, where: str) -> C: ...
@overload
def validate(kind: Any, data: Any, where: str) -> Any: ...
def validate(kind: Any, data: Any, where: str) -> Any:
    """Validate `data` as `kind`; all problems at once in one `UserError`, each with its dotted field and a suggestion.

    Arguments:
        kind: a configuration, or any other type that pydantic knows, such as a union of configurations.
        where: what `data` is, for the message: a file and the section within it.
    """
    try:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind.model_validate(data)
        return TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        lines = _explained(_models_in(kind), error.errors())
        if len(lines) == 1:
            raise UserError(f"{where}: {lines[0]}") from None
        count, left = len(lines), len(lines) - _MOST_PROBLEMS
        lines = lines[:_MOST_PROBLEMS] + ([f"... and {left:,} more."] if left > 0 else [])
        raise UserError(f"{where}: {count:,} problems:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def part_of(kind: type[C], config: BaseModel) -> C:
    """The settings of a base class of a configuration, such as those of a method within those of its stage."""
    return kind.model_validate({name: getattr(config, name) for name in kind.model_fields})


def _explained(models: list[type[BaseModel]], problems: list[Any]) -> list[str]:
    """A line of each problem; unknown keys of one place that resemble none share one, and its list."""
    lines: list[str] = []
    unlike: dict[str, list[tuple[int, str]]] = {}
    for problem in problems:
        line = _explain(models, problem)
        hint = line.partition("'. ")[2]
        if problem["type"] == "extra_forbidden" and hint.startswith("Known:"):
            unlike.setdefault(hint, []).append((len(lines), ".".join(map(str, problem["loc"]))))
        lines.append(line)
    merged: dict[int, str | None] = {}
    for hint, found in unlike.items():
        if len(found) > 1:
            merged |= dict.fromkeys((number for number, _ in found))
            merged[found[0][0]] = f"unknown keys {', '.join(repr(name) for _, name in found)}. {hint}"
    told = [merged.get(number, line) for number, line in enumerate(lines)]
    return [line for line in told if line is not None]


def _explain(models: list[type[BaseModel]], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key '{field}'. {did_you_mean(location[-1], _known_keys(models, location[:-1]))}"
        case "missing":
            return f"the key '{field}' is required."
        case "value_error":
            message = str(problem["ctx"]["error"])
            return f"{field}: {message}" if field else message
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            got = kind_of(problem["input"])
            return f"{field}: {message}, got {got}."


def _known_keys(models: list[type[BaseModel]], location: list[str]) -> set[str]:
    """The keys that are legal at a location; parts of the location that are list indices or union tags are
    passed over.
    """
    for part in location:
        inner = [
            nested
            for each in models
            for nested in _models_in(each.model_fields[part].annotation if part in each.model_fields else None)
        ]
        if inner:
            tagged = [each for each in inner if part_is_tag(each, location)]
            models = tagged or inner
        else:
            models = [each for each in models if part_is_tag(each, [part])] or models
    return {name for each in models for name in each.model_fields}


def part_is_tag(model: type[BaseModel], location: list[str]) -> bool:
    """Whether a part of the location is the `kind` that selects this model in a tagged union."""
    field = model.model_fields.get("kind")
    return field is not None and any(part in get_args(field.annotation) for part in location)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list, tuple, dict) or get_origin(annotation) is not None:
        return [found for argument in get_args(annotation) for found in _models_in(argument)]
    return []
