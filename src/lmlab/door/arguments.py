"""What users hand to functions of `import lmlab`: taken in every form that has one meaning, and else refused by name.

Each function returns the value as the rest of lmlab expects it, or raises a `UserError` that names the argument.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmlab.errors import UserError

_ROLES = ("system", "user", "assistant", "tool")
_NAMES = {
    "NoneType": "nothing",
    "str": "a text",
    "bool": "true or false",
    "int": "a number",
    "float": "a number",
    "bytes": "bytes",
    "dict": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "ndarray": "an array",
    "set": "a set, which has no order",
}


def called(value: Any) -> str:
    """What a value is, in a message."""
    name = type(value).__name__
    number = "a number" if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else None
    return number or _NAMES.get(name, f"a value of type {name}")


def place(value: Any, name: str) -> Path:
    """A path, of a text or a path."""
    if not isinstance(value, str | os.PathLike):
        raise UserError(f"{name}: a path is needed, not {called(value)}.")
    text = os.fspath(value)
    if not isinstance(text, str):
        raise UserError(f"{name}: a path is needed as text, not as bytes.", "Use os.fsdecode.")
    if not text.strip():
        raise UserError(f"{name}: the path is empty.")
    if "\0" in text:
        raise UserError(f"{name}: {text!r:.100} is no path.")
    return Path(_encodable(text, name))


def place_or_none(value: Any, name: str) -> Path | None:
    """A path, or nothing."""
    return None if value is None else place(value, name)


def text(value: Any, name: str) -> str:
    """A text."""
    if not isinstance(value, str):
        decode = "Decode it first." if isinstance(value, bytes) else None
        raise UserError(f"{name}: a text is needed, not {called(value)}.", decode)
    return _encodable(str(value), name)


def _encodable(value: str, name: str) -> str:
    """Text that UTF-8 can write: half of a pair of surrogates is no character."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{name}: {value[error.start : error.end]!r} at character {error.start} is no character.",
            "Where did it come from? text.encode('utf-8', 'replace').decode() gives a text without it.",
        ) from None
    return value


def texts(value: Any, name: str, single: bool = True) -> list[str]:
    """Several texts, of any sequence or iterator of texts.

    Arguments:
        single: a text alone stands for a list of one.
    """
    if isinstance(value, str):
        if single:
            return [text(value, name)]
        raise UserError(f"{name}: a list of texts is needed, not a text.", f"Write [{str(value)!r:.40}].")
    if not _is_list(value):
        wanted = "a text or a list of texts" if single else "a list of texts"
        raise UserError(f"{name}: {wanted} is needed, not {called(value)}.")
    return [text(each, f"{name}[{number}]") for number, each in enumerate(value)]


def words(value: Any, name: str) -> list[str]:
    """Names: a text with commas between them, or a list."""
    found = texts(value, name)
    return [word.strip() for each in found for word in each.split(",") if word.strip()]


def messages(value: Any, name: str = "messages") -> list[dict[str, Any]]:
    """A conversation: a text, which a user says, or messages with `role` and `content`.

    Raises:
        UserError: a message is of another form; its number is named.
    """
    if isinstance(value, str):
        return [{"role": "user", "content": text(value, name)}]
    if not _is_list(value):
        raise UserError(
            f"{name}: a text or a list of messages is needed, not {called(value)}.",
            'A message is {"role": "user", "content": "..."}.',
        )
    found = [_message(each, f"{name}[{number}]") for number, each in enumerate(value)]
    if not found:
        raise UserError(f"{name}: the conversation is empty.")
    return found


def _message(value: Any, name: str) -> dict[str, Any]:
    form = 'A message is {"role": "user", "content": "..."}; roles are ' + f"{', '.join(_ROLES)}."
    if not isinstance(value, Mapping):
        raise UserError(f"{name}: a message is needed, not {called(value)}.", form)
    message = dict(value)
    for key in ("role", "content"):
        if key not in message and not (key == "content" and message.get("tool_calls")):
            there = f"; there are {', '.join(map(repr, message))}" if message else ""
            raise UserError(f"{name}: the key '{key}' is missing{there}.", form)
    if not isinstance(message["role"], str):
        raise UserError(f"{name}: role: a text is needed, not {called(message['role'])}.", form)
    content = message.get("content")
    parts = isinstance(content, Sequence) and all(isinstance(each, Mapping) for each in content)
    if not isinstance(content, str) and not parts and not (content is None and message.get("tool_calls")):
        raise UserError(f"{name}: content: a text is needed, not {called(content)}.", form)
    if isinstance(content, str):
        message["content"] = text(content, f"{name}: content")
    return message


def _is_list(value: Any) -> bool:
    """Whether it is a sequence, an array or an iterator: something with an order and several things in it."""
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping | set | frozenset):
        return False
    return getattr(value, "ndim", 1) > 0


def whole(value: Any, name: str, least: int = 0) -> int:
    """A whole number, of any kind of number that is one."""
    number = plain(value)
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if not isinstance(number, int) or isinstance(number, bool):
        shown = f"{number}" if isinstance(number, float) else called(value)
        raise UserError(f"{name}: a whole number is needed, not {shown}.")
    if number < least:
        raise UserError(f"{name}: {number} is less than {least}.")
    return number


def plain(value: Any) -> Any:
    """A setting as JSON has it: scalars and arrays of NumPy and tensors as numbers and lists, paths as texts."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, str):
        return text(value, "the settings")
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value)) if type(value) in (list, tuple) else list(map(plain, value))
    if type(value).__module__.partition(".")[0] in ("numpy", "torch") and hasattr(value, "tolist"):
        return plain(value.tolist())
    return value
