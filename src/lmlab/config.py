"""Configuration is data: YAML files, dotted overrides, and validation whose errors name the field and the nearest known
key.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from lmlab.errors import UserError, did_you_mean


class Config(BaseModel):
    """Base of every configuration: immutable, strict about unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)


C = TypeVar("C", bound=BaseModel)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as users expect it: 1e-3 is a number, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key}' appears twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:float"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    __import__("re").compile(
        r"^[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$"
    ),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML; an error names the file, the line and the column."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise UserError(f"{where}{place}: not valid YAML: {getattr(error, 'problem', error)}.") from None


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file whose top level is a mapping."""
    try:
        text = path.read_text("utf-8")
    except FileNotFoundError:
        raise UserError(f"No such file: '{path}'.") from None
    except IsADirectoryError:
        raise UserError(f"'{path}' is a directory; a YAML file is needed.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"'{path}' is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from None
    value = parse_yaml(text, f"'{path}'")
    if not isinstance(value, dict):
        raise UserError(f"'{path}' must hold a mapping of keys to values, not {_kind(value)}.")
    return value


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
            raise UserError(f"--set {path}: '{'.'.join(keys[:-1])}' is {_kind(target)} and has no keys.")
    return result


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted keys."""
    if isinstance(value, Mapping):
        return {key: item for name, inner in value.items() for key, item in flatten(inner, f"{prefix}{name}.").items()}
    return {prefix.rstrip("."): value}


def _descend(target: Any, key: str, path: str) -> Any:
    if isinstance(target, list):
        return target[_index(target, key, path)]
    if not isinstance(target, dict):
        raise UserError(f"--set {path}: {_kind(target)} has no key '{key}'.")
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


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    names = {dict: "a mapping", list: "a list", str: f"the text '{value}'", bool: f"{value}".lower()}
    return names.get(type(value), str(value))


def validate(model: type[C], data: Any, where: str) -> C:
    """Validate `data` as `model`; all problems at once in one `UserError`, each with its dotted field and a suggestion.

    Arguments:
        where: what `data` is, for the message: a file and the section within it.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        lines = [_explain(model, problem) for problem in error.errors()]
        if len(lines) == 1:
            raise UserError(f"{where}: {lines[0]}") from None
        raise UserError(f"{where}: {len(lines)} problems:\n" + "\n".join(f"  - {line}" for line in lines)) from None


def _explain(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    field = ".".join(location)
    match problem["type"]:
        case "extra_forbidden":
            return f"unknown key '{field}'. {did_you_mean(location[-1], _known_keys(model, location[:-1]))}"
        case "missing":
            return f"the key '{field}' is required."
        case "value_error":
            message = str(problem["ctx"]["error"])
            return f"{field}: {message}" if field else message
        case _:
            message = problem["msg"][0].lower() + problem["msg"][1:]
            got = _kind(problem["input"])
            return f"{field}: {message}, got {got}."


def _known_keys(model: type[BaseModel], location: list[str]) -> set[str]:
    """The keys that are legal at a location; parts of the location that are list indices or union tags are
    passed over.
    """
    models = [model]
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
