"""JSON and YAML that somebody else wrote: bounded in size and depth, strict, and refused with a sentence that names the
file, the place in it and the remedy.

Every reader of lmlab that takes such text goes through `parse_json` or `parse_yaml`, so that what holds for one of them
holds for all: UTF-8 text, no key twice, finite numbers, no nesting or sharing that a few bytes blow up to gigabytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Hashable, Iterator
from typing import Any, NoReturn

import yaml

from lmlab.errors import UserError
from lmlab.words import counted

MAX_JSON_BYTES = 1 << 28  # the index of a model of a trillion parameters has a few MB, an analysis up to a hundred
MAX_YAML_BYTES = 1 << 22  # read at about 1 MB a second; the longest recipe has 20 kB
_MAX_DEPTH = 100  # what recipes, models and results nest is below 20; Python's own recursion ends near 300
_MAX_NODES = 200_000  # of YAML, after aliases are spelled out: an alias bomb of 1 kB has billions
_MAX_DIGITS = 40  # tokenizers write 10 ** 30 for "no limit"; what no float holds is no number of ours
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LONG_NUMBER = re.compile(rf"[0-9]{{{_MAX_DIGITS + 1}}}")
_GREAT_EXPONENT = re.compile(r"[eE]\+?[0-9]{3}")  # 1e308 is the greatest float


def kind_of(value: Any) -> str:
    """What a value is, for a message: "a list", "the text 'x'", "nothing"."""
    if value is None:
        return "nothing"
    if isinstance(value, str):
        return f"the text '{value if len(value) <= 200 else value[:200] + '...'}'"
    names = {dict: "a mapping", list: "a list", tuple: "a list", bytes: "bytes", bool: f"{value}".lower()}
    return names.get(type(value), str(value))


def decode_utf8(data: bytes, where: str) -> str:
    """The text of a whole file, without a byte-order mark.

    Raises:
        UserError: it is not UTF-8.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 text (byte {error.start}).", "Save it as UTF-8.") from None


class ParseError(ValueError):
    """Why a text is not taken, without the place where it stands."""


def json_value(text: str | bytes, allow_nan: bool = False) -> Any:
    """The value of one JSON text.

    Arguments:
        allow_nan: take `NaN` and `Infinity`, which lmlab's own logs hold after a training has diverged.

    Raises:
        ParseError: it is not JSON, not UTF-8, too long or too deep; a key appears twice; a number is not finite.
    """
    if len(text) > MAX_JSON_BYTES:
        raise ParseError(f"it has more than {counted(MAX_JSON_BYTES, 'bytes')}")
    try:
        text = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_int=_whole_number if _LONG_NUMBER.search(text) else None,
            parse_float=_finite if _GREAT_EXPONENT.search(text) else None,
            parse_constant=None if allow_nan else _not_finite,
        )
        if text.count("[") + text.count("{") > _MAX_DEPTH:
            _check_depth(value)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in error.doc.strip() else f"column {error.colno}"
        raise ParseError(f"{error.msg} ({place})") from None
    except UnicodeDecodeError as error:
        raise ParseError(f"not UTF-8 text (byte {error.start})") from None
    except UnicodeEncodeError:
        raise ParseError("it holds half of a character (a lone surrogate such as \\ud800)") from None
    except RecursionError:
        raise ParseError(f"it nests deeper than {_MAX_DEPTH} levels") from None
    return value


def parse_json(text: str | bytes, where: str, allow_nan: bool = False) -> Any:
    """`json_value` of a text from a user.

    Arguments:
        where: the file, and the line if it is one of many, for the message.

    Raises:
        UserError: it is refused; the message says where and why.
    """
    try:
        return json_value(text, allow_nan)
    except ParseError as error:
        raise UserError(f"{where}: not valid JSON: {error}.") from None


def require_mapping(value: Any, where: str) -> dict[str, Any]:
    """The value if it is a mapping of keys to values.

    Raises:
        UserError: it is something else.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where} must hold a mapping of keys to values, not {kind_of(value)}.")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ParseError(f"the key '{twice}' appears twice")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ParseError(f"a number has {len(digits)} digits; at most {_MAX_DIGITS} are read")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    return value if math.isfinite(value) else _not_finite(digits)


def _not_finite(name: str) -> NoReturn:
    raise ParseError(f"{name} is not a finite number")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        level = [inner for each in level if isinstance(each, dict | list) for inner in _children(each)]
        if not level:
            return
    raise RecursionError


def _children(value: dict[Any, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value


_CLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml where it is, ten times as fast


class _Loader(_CLoader):
    """YAML as users mean it: what is not plainly a number, a truth value or nothing is text.

    YAML 1.1 would read `1e-3` as text, `no` as false, `12:30:00` as 45,000, `010` as 8 and `2024-02-30` as an error.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}


_TAG = "tag:yaml.org,2002:"
for _name, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F_]+|0b[01_]+|0o[0-7_]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _name, re.compile(f"^(?:{_pattern})$"), [*_first, *([""] * (_name == "null"))])
_SCALARS = {_TAG + name for name in ("bool", "null", "int", "float", "str")}
_MERGE = _TAG + "merge"


def parse_yaml(text: str, where: str) -> Any:
    """The value of one YAML document.

    Raises:
        UserError: it is not YAML, too long or too deep; a key appears twice or is not plain text; an alias holds itself
            or they multiply; a tag makes something else than text, numbers, truth values, lists and mappings. The
            message names the file, the line and the column.
    """
    if len(text) > MAX_YAML_BYTES:
        raise UserError(f"{where} has {counted(len(text), 'characters')}; YAML is read up to {MAX_YAML_BYTES:,}.")
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            _check_nodes(loader, node)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise _yaml_error(where, error.problem_mark or error.context_mark, error.problem or error.context) from None
    except yaml.reader.ReaderError as error:
        raise UserError(
            f"{where}, character {error.position + 1}: not valid YAML: {error.reason} (code {error.character})."
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{where}: not valid YAML: {error}.") from None


def _yaml_error(where: str, mark: Any, problem: Any) -> UserError:
    place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return UserError(f"{where}{place}: not valid YAML: {str(problem).rstrip('.')}.")


def _refuse(node: Any, problem: str) -> NoReturn:
    raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)


def _check_events(text: str) -> None:
    """Bound depth and size before nodes are composed, which recurses."""
    depth = nodes = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.NodeEvent):
            nodes += 1
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            _refuse(event, f"it nests deeper than {_MAX_DEPTH} levels")
        if nodes > _MAX_NODES:
            _refuse(event, f"it has more than {counted(_MAX_NODES, 'values')}")


def _check_nodes(loader: Any, root: Any) -> None:
    """Check tags, keys and aliases before anything is made of them."""
    sizes: dict[int, int] = {}  # of the nodes that are known, aliases spelled out
    above: set[int] = set()

    def size_of(node: Any) -> int:
        if id(node) in sizes:
            return sizes[id(node)]
        if id(node) in above:
            _refuse(node, "the value holds itself through an alias")
        above.add(id(node))
        total = 1 + sum(size_of(inner) for inner in _inner_nodes(loader, node))
        above.remove(id(node))
        if total > _MAX_NODES:
            _refuse(node, f"its aliases multiply it to more than {counted(_MAX_NODES, 'values')}")
        sizes[id(node)] = total
        return total

    size_of(root)


def _inner_nodes(loader: Any, node: Any) -> Iterator[Any]:
    if isinstance(node, yaml.ScalarNode):
        _scalar(loader, node)
    elif isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        yield from node.value
    elif isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        seen: set[Hashable] = set()
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                _refuse(key_node, "a key must be plain text; put text with braces or brackets in quotes")
            key = "<<" if key_node.tag == _MERGE else _scalar(loader, key_node)
            if key in seen:
                _refuse(key_node, f"the key '{key}' appears twice")
            seen.add(key)
            yield value_node
    else:
        _refuse(node, f"the tag '{node.tag}' is not allowed here")


def _scalar(loader: Any, node: Any) -> Any:
    if node.tag not in _SCALARS:
        _refuse(node, f"the tag '{node.tag}' is not allowed here")
    if len(node.value) > _MAX_DIGITS and node.tag in (_TAG + "int", _TAG + "float"):
        _refuse(node, f"a number has more than {_MAX_DIGITS} digits")
    try:
        value = loader.construct_object(node)
    except (ValueError, KeyError, TypeError):
        _refuse(node, f"'{node.value}' is not of the type {node.tag.removeprefix(_TAG)}")
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(node, f"'{node.value}' is not a finite number")
    if type(value) is int and abs(value) >= 1 << 63:
        _refuse(node, f"the number {node.value} is too large")
    if isinstance(value, str) and not value.isprintable():
        try:
            value.encode()
        except UnicodeEncodeError:
            _refuse(node, "half of a character (a lone surrogate such as \\ud800)")
    return value


class _Dumper(yaml.SafeDumper):
    """Quotes what our reader would not take for text: YAML's own writer knows other numbers than it does."""


for _first, _resolvers in _Loader.yaml_implicit_resolvers.items():
    _Dumper.yaml_implicit_resolvers = {
        **_Dumper.yaml_implicit_resolvers,
        _first: [*_Dumper.yaml_implicit_resolvers.get(_first, []), *_resolvers],
    }


def write_yaml(value: Any) -> str:
    """A value as YAML that `parse_yaml` reads back as it is."""
    settings: dict[str, Any] = {"Dumper": _Dumper, "sort_keys": False, "width": 120}
    text: str = yaml.dump(value, allow_unicode=True, **settings)
    if parse_yaml(text, "what was written") == value:
        return text
    escaped: str = yaml.dump(value, allow_unicode=False, **settings)  # line ends of other alphabets do not survive
    return escaped
